"""Patches off the slide: blocks decoded ahead on threads, in bounded memory, and cut into patches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.geometry import Box
from wsi_pipeline.grid import Block, Grid, Plan
from wsi_pipeline.slide import Pixels, Slide

T = TypeVar("T")

# Threads that decode ahead of the PNG writer.
EXPORT_THREADS = 2


@dataclass(frozen=True, eq=False)
class CutPatches:
    """A block's patches: uint8 [n, patch_px, patch_px, 3], and bool [n], False where not wholly readable."""

    rgb: NDArray[np.uint8]
    readable: NDArray[np.bool_]


def read_blocks(
    blocks: Iterable[Block], grid: Grid, read: Callable[[Box], Pixels], threads: int
) -> Iterator[tuple[Block, CutPatches]]:
    """Each block with its patches, in the blocks' order.

    `read` gives the pixels of a box of the grid's plane; see `load_blocks`.
    """
    return load_blocks(blocks, lambda block: cut_patches(read(block.read_box), block, grid), threads)


def load_blocks(
    blocks: Iterable[Block], load: Callable[[Block], T], threads: int
) -> Iterator[tuple[Block, T]]:
    """Each block with what `load` makes of it, in the blocks' order.

    `load` is called from `threads` threads; at most `threads` + 1 blocks are in memory beside the one given out.
    Raises what `load` raises.
    """
    waiting: deque[tuple[Block, Future[T]]] = deque()
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


def cut_patches(pixels: Pixels, block: Block, grid: Grid) -> CutPatches:
    """The block's patches out of the pixels of its read box."""
    size = grid.patch_px
    rgb = np.empty((len(block.patches), size, size, 3), np.uint8)
    readable = np.ones(len(block.patches), np.bool_)
    all_readable = bool(pixels.readable.all())
    for i, (column, row) in enumerate(block.patches):
        box = grid.patch_box(int(column), int(row))
        x, y = box.x - block.read_box.x, box.y - block.read_box.y
        rgb[i] = pixels.rgb[y : y + size, x : x + size]
        if not all_readable:
            readable[i] = pixels.readable[y : y + size, x : x + size].all()
    return CutPatches(rgb, readable)


def readable_patches(pixels: Pixels, block: Block, grid: Grid) -> NDArray[np.bool_]:
    """bool [n]: which of the block's patches can be read wholly in the pixels of its read box."""
    if pixels.readable.all():
        return np.ones(len(block.patches), np.bool_)
    # Of a table of sums, four corners give the unreadable pixels of a patch.
    lost = np.pad(np.cumsum(np.cumsum(~pixels.readable, axis=0), axis=1), ((1, 0), (1, 0)))
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


def write_patches(
    slide: Slide,
    plan: Plan,
    labels: NDArray[np.int8] | None,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write each patch as PNG in the IDC set's layout; gives the number that could not be decoded.

    The names are <0|1>/<slide>_x<x0>_y<y0>_class<0|1>.png with level-0 pixels, or unlabelled/<slide>_x.._y...png
    without `labels`, int8 [n] of the kept patches.
    """
    grid = plan.grid
    x0, y0, _ = patch_positions(plan)
    index = np.full(plan.kept.shape, -1)
    index[plan.kept] = np.arange(len(x0))
    todo = plan.scored.copy()  # a patch on the rim of two blocks is written once
    total, unreadable = int(todo.sum()), 0
    for block, cut in read_blocks(
        plan.blocks(), grid, lambda box: slide.read_readable(box, grid.plane), EXPORT_THREADS
    ):
        for (column, row), rgb, readable in zip(block.patches, cut.rgb, cut.readable, strict=True):
            if not todo[row, column]:
                continue
            todo[row, column] = False
            if not readable:
                unreadable += 1
                continue
            i = index[row, column]
            label = "unlabelled" if labels is None else str(labels[i])
            suffix = "" if labels is None else f"_class{label}"
            (folder / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(folder / label / f"{slide.name}_x{x0[i]}_y{y0[i]}{suffix}.png")
        if progress:
            progress(total - int(todo.sum()), total)
    return unreadable
