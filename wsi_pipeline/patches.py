"""Patches off the slide: blocks decoded ahead on threads, in bounded memory, and cut into patches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box
from wsi_pipeline.grid import Block, Grid
from wsi_pipeline.slide import Pixels


@dataclass(frozen=True, eq=False)
class CutPatches:
    """A block's patches: uint8 [n, patch_px, patch_px, 3], and bool [n], False where not wholly readable."""

    rgb: NDArray[np.uint8]
    readable: NDArray[np.bool_]


def read_blocks(
    blocks: Iterable[Block], grid: Grid, read: Callable[[Box], Pixels], threads: int
) -> Iterator[tuple[Block, CutPatches]]:
    """Each block with its patches, in the blocks' order.

    `read` gives the pixels of a box of the grid's plane, and is called from `threads` threads; at most
    `threads` + 1 blocks are in memory beside the one given out. Raises what `read` raises.
    """

    def load(block: Block) -> CutPatches:
        return cut_patches(read(block.read_box), block, grid)

    waiting: deque[tuple[Block, Future[CutPatches]]] = deque()
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
