"""What fields are chosen on: tissue, regions and map on one plane of cells of about 50 um.

It covers the regions and what lies around them, cell by cell of the tissue's own plane taken together, so that a
whole mount with one small tumour costs no more than the tumour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy import ndimage

from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.base.types import FloatMap, Mask
from wsi_pipeline.results.regions import IdcRegion, rasterise

# Side of a cell: a tenth of a field, so that fields can be laid to a twentieth of their width.
CELL_UM = 50.0
# So many at most: beyond 7 x 7 cm cells are larger, and fields are laid less finely.
MOST_CELLS = 2_000_000
# How far around the regions the ground reaches: a hot spot of 2 mm2, and tissue that makes a front of their rim.
AROUND_UM = 2_500.0


@dataclass(frozen=True, eq=False)
class FieldGround:
    """Cells of `CELL_UM` or so around the regions; arrays are [row, column] of `plane`."""

    plane: Plane
    mpp0: tuple[float, float]
    """um per level-0 pixel, along x and y."""

    bounds: Box
    """The scanned area, level-0 pixels."""

    usable: npt.NDArray[np.float32]
    """Share of each cell that is tissue, and not rejected."""

    probability: FloatMap
    """Of IDC; NaN where not scored."""

    in_region: Mask
    """Whether its centre lies in a region."""

    tissue: Mask
    """Tissue that is not rejected, on `tissue_plane`: the cells' finer ground."""

    tissue_plane: Plane

    @property
    def cell_um(self) -> tuple[float, float]:
        """Width and height of a cell."""
        return self.plane.downsample_x * self.mpp0[0], self.plane.downsample_y * self.mpp0[1]

    @property
    def cell_mm2(self) -> float:
        """Area of a cell."""
        return self.cell_um[0] * self.cell_um[1] / 1e6

    @property
    def tumour(self) -> Mask:
        """The cells whose nuclei count: scored, in a region, and with tissue."""
        return np.asarray(self.in_region & (self.usable > 0) & np.isfinite(self.probability), np.bool_)

    def usable_mm2(self, x0: float, y0: float, radius_um: float) -> float:
        """Tissue, in mm2, inside a circle around a level-0 point."""
        return self._mm2_in_circle(self.tissue, self.tissue_plane, x0, y0, radius_um)

    def idc_mm2(self, x0: float, y0: float, radius_um: float) -> float:
        """Of that, what lies in regions, by the cells."""
        return self._mm2_in_circle(np.where(self.in_region, self.usable, 0), self.plane, x0, y0, radius_um)

    def _mm2_in_circle(
        self, share: npt.NDArray[Any], plane: Plane, x0: float, y0: float, radius_um: float
    ) -> float:
        """The mean share of the pixels inside a circle, 0 beyond the array, times the circle's area."""
        um = (plane.downsample_x * self.mpp0[0], plane.downsample_y * self.mpp0[1])
        x, y = plane.point_from_level0(x0, y0)
        rows, columns = (
            np.arange(math.floor(at - radius_um / side), math.ceil(at + radius_um / side))
            for at, side in ((y, um[1]), (x, um[0]))
        )
        down, right = (rows + 0.5 - y) * um[1], (columns + 0.5 - x) * um[0]
        distance = down[:, None] ** 2 + right[None, :] ** 2
        inside = distance <= max(radius_um**2, float(distance.min()))  # one pixel at least
        height, width = share.shape
        in_y, in_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        found = share[np.ix_(rows[in_y], columns[in_x])][inside[np.ix_(in_y, in_x)]]
        return float(found.sum(dtype=np.float64) / inside.sum()) * math.pi * (radius_um / 1000) ** 2


def field_ground(
    tissue: Mask,
    tissue_plane: Plane,
    bounds: Box,
    mpp0: tuple[float, float],
    heatmap: FloatMap,
    map_plane: Plane,
    regions: Sequence[IdcRegion],
) -> FieldGround:
    """The ground of a slide with regions, of which there must be one.

    tissue: what may be graded, [row, column] on `tissue_plane`. bounds: the scanned area, level-0 pixels.
    heatmap: [row, column] on `map_plane`, NaN where not scored.
    """
    um = (tissue_plane.downsample_x * mpp0[0], tissue_plane.downsample_y * mpp0[1])
    left, top, right, bottom = shapely.total_bounds([region.polygon for region in regions])
    whole_um2 = (right - left) * mpp0[0] * (bottom - top) * mpp0[1]
    cell_um = max(CELL_UM, math.sqrt(whole_um2 / MOST_CELLS))
    together = [max(1, round(cell_um / side)) for side in um]  # (x, y) pixels of the tissue's plane a cell
    cells = tissue_plane.coarser(*together)
    around = (AROUND_UM / mpp0[0], AROUND_UM / mpp0[1])
    first = cells.point_from_level0(left - around[0], top - around[1])
    last = cells.point_from_level0(right + around[0], bottom + around[1])
    column, row = (max(0, math.floor(value)) for value in first)
    columns = max(1, min(math.ceil(last[0]), -(-tissue.shape[1] // together[0])) - column)
    rows = max(1, min(math.ceil(last[1]), -(-tissue.shape[0] // together[1])) - row)
    origin = cells.point_to_level0(column, row)
    plane = Plane(cells.downsample_x, cells.downsample_y, *origin)

    part = tissue[row * together[1] : (row + rows) * together[1], column * together[0] :]
    part = part[:, : columns * together[0]]
    padded = np.zeros((rows * together[1], columns * together[0]), np.bool_)
    padded[: part.shape[0], : part.shape[1]] = part
    blocks = padded.reshape(rows, together[1], columns, together[0])
    return FieldGround(
        plane=plane,
        mpp0=mpp0,
        bounds=bounds,
        usable=blocks.mean(axis=(1, 3), dtype=np.float32),
        probability=at_centres(heatmap, map_plane, plane, (rows, columns)),
        in_region=rasterise(regions, plane, (rows, columns)),
        tissue=padded,
        tissue_plane=Plane(tissue_plane.downsample_x, tissue_plane.downsample_y, *origin),
    )


def near_front(ground: FieldGround, within_um: float) -> Mask:
    """The cells of regions that lie so near to tissue outside of every region; glass makes no front."""
    outside = ~ground.in_region & (ground.usable >= 0.5)
    if not outside.any():
        return np.zeros_like(outside)
    width, height = ground.cell_um
    distance = ndimage.distance_transform_edt(~outside, sampling=(height, width))
    return np.asarray(ground.in_region & (distance <= within_um), np.bool_)


def at_centres(heatmap: FloatMap, map_plane: Plane, plane: Plane, shape: tuple[int, int]) -> FloatMap:
    """The value of a map, [row, column] on `map_plane`, at each cell's centre; NaN beyond the map."""
    x0 = plane.origin_x0 + (np.arange(shape[1]) + 0.5) * plane.downsample_x
    y0 = plane.origin_y0 + (np.arange(shape[0]) + 0.5) * plane.downsample_y
    columns = np.floor((x0 - map_plane.origin_x0) / map_plane.downsample_x).astype(np.intp)
    rows = np.floor((y0 - map_plane.origin_y0) / map_plane.downsample_y).astype(np.intp)
    in_x = (columns >= 0) & (columns < heatmap.shape[1])
    in_y = (rows >= 0) & (rows < heatmap.shape[0])
    values = np.full(shape, np.nan, np.float32)
    values[np.ix_(in_y, in_x)] = heatmap[np.ix_(rows[in_y], columns[in_x])]
    return values
