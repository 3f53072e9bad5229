"""Scores of patches into the cells of the map: where patches overlap, weighted values and weights are added
and divided once.

Every patch weighs the same over its whole area. Sums are in float64 and in a fixed order, so that neither
the size of the blocks nor the order in which they come changes a bit of the map.
"""

import enum
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.grid import Block, Grid, Plan

if TYPE_CHECKING:  # the store takes Status from here
    from wsi_pipeline.store import SlideStore

log = logging.getLogger(__name__)

# A chunk is hardly any work, but waits for the disk, or for the answer of an object store.
WRITERS = 4


class Status(enum.IntEnum):
    """What a cell of the map is; the values of `labels/status`."""

    BACKGROUND = 0
    SCORED = 1
    REJECTED = 2
    UNREADABLE = 3
    PLANNED = 4


def initial_status(plan: Plan) -> NDArray[np.uint8]:
    """uint8 [row, column] of the map before anything is scored: planned, rejected or background."""
    size = plan.grid.map_size
    status = np.full((size.height, size.width), Status.BACKGROUND, np.uint8)
    for flags, value in ((plan.rejected, Status.REJECTED), (plan.scored, Status.PLANNED)):
        rows, columns = flags.shape
        for dy, dx in np.ndindex(plan.grid.patch_cells, plan.grid.patch_cells):
            cells = status[dy :: plan.grid.stride_cells, dx :: plan.grid.stride_cells][:rows, :columns]
            cells[flags] = value
    return status


def commit_blocks(
    scored: Iterable[tuple[Block, NDArray[np.float32], NDArray[np.float32] | None]],
    plan: Plan,
    store: "SlideStore",
    before_each: Callable[[], None],
) -> Iterator[Block]:
    """Bring scored blocks into the store while the next ones are scored; each block once it is there, in their order.

    `scored` gives blocks of the plan with scores and, of an ensemble, spread, as `classify_blocks` does. `before_each`
    is called before each is written, from the threads that write, and may raise. Raises what it, `scored` and
    `SlideStore.write_block` raise; what is then being written is still written.
    """
    untouched = initial_status(plan)

    def commit(block: Block, scores: NDArray[np.float32], spread: NDArray[np.float32] | None) -> None:
        log.debug("done block %d, %d", block.cells.x, block.cells.y)
        cells = block.cells
        before = untouched[cells.y : cells.bottom, cells.x : cells.right]
        values, status = stitch_block(plan.grid, block, scores, before)
        deviation = None if spread is None else stitch_block(plan.grid, block, spread, before)[0]
        before_each()
        store.write_block(cells, values, status, deviation)

    begun: deque[tuple[Block, Future[None]]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="writer") as pool:
        try:
            for block, scores, spread in scored:
                begun.append((block, pool.submit(commit, block, scores, spread)))
                while begun and (len(begun) > WRITERS or begun[0][1].done()):
                    yield _committed(*begun.popleft())
            while begun:
                yield _committed(*begun.popleft())
        finally:
            for _, written in begun:
                written.cancel()


def _committed(block: Block, written: Future[None]) -> Block:
    written.result()
    return block


def stitch_block(
    grid: Grid, block: Block, scores: NDArray[np.float32], status: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The block's cells: float32 values, NaN where not scored, and their status.

    `scores` is float32 [n], one for each of `block.patches`, NaN where the patch could not be read; `status`
    the block's cells before.
    """
    shape = (block.cells.height, block.cells.width)
    total, weight = np.zeros(shape), np.zeros(shape)
    unreadable = np.zeros(shape, np.bool_)
    good = ~np.isnan(scores)
    columns, rows = block.patches[:, 0], block.patches[:, 1]
    for y, x in _cells_of(grid, columns, rows):
        y, x = y - block.cells.y, x - block.cells.x
        inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
        scored, lost = inside & good, inside & ~good
        # Patches start on distinct cells: within one offset no cell comes twice.
        total[y[scored], x[scored]] += scores[scored]
        weight[y[scored], x[scored]] += 1
        unreadable[y[lost], x[lost]] = True
    values = np.divide(total, weight, out=np.full(shape, np.nan), where=weight > 0).astype(np.float32)
    after = np.where(weight > 0, Status.SCORED, np.where(unreadable, Status.UNREADABLE, status))
    return values, after.astype(np.uint8)


def _cells_of(
    grid: Grid, columns: NDArray[np.integer], rows: NDArray[np.integer]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """For each cell offset in a patch, in a fixed order: that cell's row and column for every patch."""
    y = rows.astype(np.intp) * grid.stride_cells
    x = columns.astype(np.intp) * grid.stride_cells
    for dy in range(grid.patch_cells):
        for dx in range(grid.patch_cells):
            yield y + dy, x + dx
