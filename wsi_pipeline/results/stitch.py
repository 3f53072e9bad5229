"""Scores of patches into the cells of the map: where patches overlap, weighted values and weights are added
and divided once.

Every patch weighs the same over its whole area. Sums are in float64 and in a fixed order, so that neither
the size of the blocks nor the order in which they come changes a bit of the map.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.tiling.grid import Block, Grid


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
