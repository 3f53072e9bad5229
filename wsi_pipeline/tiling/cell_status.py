"""What each cell of the map is: background, planned, scored, rejected or unreadable."""

import enum

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.tiling.grid import Plan


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
