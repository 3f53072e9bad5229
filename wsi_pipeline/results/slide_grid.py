"""Pixel grids that cover exactly a slide, and the map's cells under their pixels."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.base.types import FloatMap, Mask
from wsi_pipeline.results.multiscales import DISPLAY_UM, MOST_DISPLAY_PIXELS


def covering_grid(size0: Size, mpp0: tuple[float, float], um: float = DISPLAY_UM) -> tuple[Plane, Size]:
    """A grid of about `um` a pixel that covers exactly the slide, from corner to corner, and its size in pixels.

    No larger than MOST_DISPLAY_PIXELS.

    >>> covering_grid(Size(1000, 500), (0.5, 0.5), 8.0)[1]
    Size(width=63, height=32)
    """
    width_um, height_um = size0.width * mpp0[0], size0.height * mpp0[1]
    um = max(um, math.sqrt(width_um * height_um / MOST_DISPLAY_PIXELS), *mpp0)
    return grid_of(size0, Size(max(1, math.ceil(width_um / um)), max(1, math.ceil(height_um / um))))


def grid_of(size0: Size, size: Size) -> tuple[Plane, Size]:
    """The grid of so many pixels that covers exactly the slide."""
    return Plane(size0.width / size.width, size0.height / size.height), size


def cells_at_centres(heatmap: FloatMap, plane: Plane, target: Plane, size: Size) -> FloatMap:
    """For each pixel of another grid the cell that holds its centre, float32 [row, column]; NaN where there is none.

    plane: of the map's cells; target, size: of the other grid.
    """
    values: FloatMap
    values, outside = _at_centres(heatmap, plane, target, size)
    values[outside] = np.nan
    return values


def status_at_centres(
    status: NDArray[np.uint8], plane: Plane, target: Plane, size: Size
) -> NDArray[np.uint8]:
    """The same of cells' status; 0, background, where there is no cell."""
    values: NDArray[np.uint8]
    values, outside = _at_centres(status, plane, target, size)
    values[outside] = 0
    return values


def _at_centres(cells: NDArray[Any], plane: Plane, target: Plane, size: Size) -> tuple[NDArray[Any], Mask]:
    """The cell of each pixel, a copy, and where there is none."""
    x0 = target.origin_x0 + (np.arange(size.width) + 0.5) * target.downsample_x
    y0 = target.origin_y0 + (np.arange(size.height) + 0.5) * target.downsample_y
    columns = np.floor((x0 - plane.origin_x0) / plane.downsample_x).astype(np.int64)
    rows = np.floor((y0 - plane.origin_y0) / plane.downsample_y).astype(np.int64)
    outside_x = (columns < 0) | (columns >= cells.shape[1])
    outside_y = (rows < 0) | (rows >= cells.shape[0])
    values = cells[np.ix_(np.where(outside_y, 0, rows), np.where(outside_x, 0, columns))]
    return values, outside_y[:, None] | outside_x[None, :]
