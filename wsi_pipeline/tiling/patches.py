"""Patches off the slide: blocks decoded ahead on threads, in bounded memory, and cut into patches."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Box
from wsi_pipeline.slides.slide import Pixels
from wsi_pipeline.tiling.grid import Block, Grid, Plan
from wsi_pipeline.tiling.rectangles import split_into_rectangles

log = logging.getLogger(__name__)

B = TypeVar("B")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CutPatches:
    """A block's patches: uint8 [n, patch_px, patch_px, 3], and bool [n], False where not wholly readable."""

    rgb: NDArray[np.uint8]
    readable: NDArray[np.bool_]


def read_blocks(
    blocks: Iterable[Block], grid: Grid, read: Callable[[Box], Pixels], threads: int
) -> Iterator[tuple[Block, CutPatches]]:
    """Each block with its patches, in the blocks' order.

    `read` gives the pixels of a box of the grid's plane, and is called several times for a block whose patches lie
    far apart; see `load_blocks`.
    """
    return load_blocks(blocks, lambda block: read_patches(block, grid, read), threads)


def load_blocks(
    blocks: Iterable[B], load: Callable[[B], T], threads: int
) -> Generator[tuple[B, T], None, None]:
    """Each block, or what else is read at once, with what `load` makes of it, in their order.

    `load` is called from `threads` threads; at most `threads` + 1 blocks are in memory beside the one given out.
    Raises what `load` raises.
    """
    waiting: deque[tuple[B, Future[T]]] = deque()
    todo = iter(blocks)
    with ThreadPoolExecutor(threads, thread_name_prefix="reader") as pool:
        try:
            while True:
                while len(waiting) <= threads and (block := next(todo, None)) is not None:
                    waiting.append((block, pool.submit(load, block)))
                if not waiting:
                    return
                block, loaded = waiting.popleft()
                yield block, loaded.result()
        finally:
            for _, future in waiting:
                future.cancel()


def read_patches(block: Block, grid: Grid, read: Callable[[Box], Pixels]) -> CutPatches:
    """The block's patches, read in boxes that hold little else."""
    parts = split_block(block, grid)
    if len(parts) == 1:
        return cut_patches(read(block.read_box), block, grid)
    size = grid.patch_px
    rgb = np.empty((len(block.patches), size, size, 3), np.uint8)
    readable = np.empty(len(block.patches), np.bool_)
    for which, part in parts:
        cut = cut_patches(read(part.read_box), part, grid)
        rgb[which], readable[which] = cut.rgb, cut.readable
    return CutPatches(rgb, readable)


def split_block(block: Block, grid: Grid) -> list[tuple[NDArray[np.intp], Block]]:
    """The block in parts whose read boxes hold little that no patch needs: which of its patches, and the part."""
    parts = split_into_rectangles(block.patches)
    if len(parts) == 1:
        return [(parts[0], block)]
    return [(part, part_of(block, part, grid)) for part in parts]


def part_of(block: Block, which: NDArray[np.intp] | NDArray[np.bool_], grid: Grid) -> Block:
    """The block with some of its patches alone, read no further than they reach."""
    patches = block.patches[which]
    return replace(block, patches=patches, read_box=_common_box(patches, grid))


def cut_patches(pixels: Pixels, block: Block, grid: Grid) -> CutPatches:
    """The block's patches out of the pixels of its read box."""
    corners = block.patches * grid.stride_px - (block.read_box.x, block.read_box.y)
    rgb = _squares(pixels.rgb, corners, grid.patch_px)
    if pixels.unreadable is None:
        return CutPatches(rgb, np.ones(len(corners), np.bool_))
    lost = np.asarray(_squares(pixels.unreadable, corners, grid.patch_px).any(axis=(1, 2)), np.bool_)
    return CutPatches(rgb, ~lost)


def _common_box(patches: NDArray[np.integer], grid: Grid) -> Box:
    (left, top), (right, bottom) = patches.min(axis=0), patches.max(axis=0)
    first, last = grid.patch_box(int(left), int(top)), grid.patch_box(int(right), int(bottom))
    return Box(first.x, first.y, last.right - first.x, last.bottom - first.y)


def _squares(image: NDArray[Any], corners: NDArray[np.integer], side: int) -> NDArray[Any]:
    """A copy [n, side, side, ...] of the image's squares whose upper left corners, [n, (x, y)], are these."""
    image = np.ascontiguousarray(image)
    height, width, *channels = image.shape
    down, right = image.strides[:2]
    row_of_square = np.dtype((np.void, side * right))  # copied as one
    windows: NDArray[np.void] = np.ndarray(
        (height - side + 1, width - side + 1, side), row_of_square, image, strides=(down, right, down)
    )
    rows = windows[corners[:, 1], corners[:, 0]]  # [n, side]
    squares: NDArray[Any] = rows.view(image.dtype).reshape(len(corners), side, side, *channels)
    return squares


def readable_patches(pixels: Pixels, block: Block, grid: Grid) -> NDArray[np.bool_]:
    """bool [n]: which of the block's patches can be read wholly in the pixels of its read box."""
    if pixels.unreadable is None:
        return np.ones(len(block.patches), np.bool_)
    # Of a table of sums, four corners give the unreadable pixels of a patch.
    lost = np.pad(np.cumsum(np.cumsum(pixels.unreadable, axis=0), axis=1), ((1, 0), (1, 0)))
    x, y = (block.patches * grid.stride_px - (block.read_box.x, block.read_box.y)).T
    right, bottom = x + grid.patch_px, y + grid.patch_px
    return np.asarray(lost[bottom, right] - lost[y, right] - lost[bottom, x] + lost[y, x] == 0)


def patch_positions(plan: Plan) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Level-0 x0 and y0 (floored) of each kept patch, int32 [n], and its tissue share, float32 [n].

    In row order, as every other list of kept patches.
    """
    rows, columns = np.nonzero(plan.kept)
    plane, stride = plan.grid.plane, plan.grid.stride_px
    x0 = np.floor(plane.origin_x0 + columns * stride * plane.downsample_x + 1e-6).astype(np.int32)
    y0 = np.floor(plane.origin_y0 + rows * stride * plane.downsample_y + 1e-6).astype(np.int32)
    return x0, y0, plan.tissue[rows, columns]
