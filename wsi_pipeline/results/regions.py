"""From the heatmap to what a pathologist works with: regions of IDC as polygons, and fields to grade in.

A region is a set of heatmap cells at or above the threshold that hang together by their edges; cells that
touch at a corner only belong to two regions, which may share that point. Its outline follows the cell edges
exactly, so that area, outline and map say the same thing. Cells that were not scored are in no region.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import shapely
from skimage.measure import label

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.types import FloatMap, Mask


@options
class DelineateOptions:
    """What counts as a region, and where fields for grading are laid."""

    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least probability of a cell in a region. None: the model card's for the map shown, where it was measured."""

    min_area_mm2: Annotated[float, Field(ge=0)] = 0.1
    """Smaller regions are left out. 0.1 mm2 is less than half a high-power field: too little to grade."""

    fill_holes_mm2: Annotated[float, Field(ge=0)] = 0.0
    """Enclosed holes below this area are added to their region. 0: regions are the map, nothing added.
    A hole with a cell that was not scored always stays."""

    field_count: Annotated[int, Field(ge=0)] = 10
    """At most this many fields. Mitoses are counted in 10 high-power fields (Elston and Ellis 1991)."""

    field_diameter_mm: Annotated[float, Field(gt=0)] = 0.55
    """Diameter of the high-power field. 0.55 mm (0.24 mm2) is the usual 40x objective with a 22 mm eyepiece
    field; the mitosis score depends on it (Cree et al. 2021, doi:10.1038/s41379-021-00825-7)."""

    min_field_tumour: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a field that must lie in regions. Half: fields at the growing edge qualify, strays do not."""


@dataclass(frozen=True)
class IdcRegion:
    """One connected area of IDC; `polygon` (holes allowed) is in level-0 pixels, 'IDC 1' is the largest."""

    name: str
    polygon: shapely.Polygon
    area_mm2: float
    mean_probability: float
    max_probability: float


def delineate(
    heatmap: FloatMap, plane: Plane, mpp0: tuple[float, float], threshold: float, options: DelineateOptions
) -> list[IdcRegion]:
    """Regions of cells with a probability of at least `threshold`, the largest first.

    heatmap: [y, x], probability 0 to 1, NaN where not scored; `plane` is its grid.
    mpp0: micrometres per level-0 pixel along x and y.
    threshold: the one to use; the caller has settled options.threshold against the model card's.

    With min_area_mm2 and fill_holes_mm2 at 0, `rasterise` gives `heatmap >= threshold` back exactly.
    """
    cell_mm2 = plane.downsample_x * mpp0[0] * plane.downsample_y * mpp0[1] / 1e6
    mask = heatmap >= threshold
    _fill_holes(mask, np.isnan(heatmap), options.fill_holes_mm2 / cell_mm2)
    labels, count = label(mask, return_num=True, connectivity=1)
    cells = np.bincount(labels.ravel(), minlength=count + 1)
    # A millionth of slack: a region of exactly the least area stays, whatever the rounding of cell_mm2.
    kept = cells * cell_mm2 >= options.min_area_mm2 * (1 - 1e-6)
    kept[0] = False
    mask = kept[labels]
    if not mask.any():
        return []

    # Of float64: a float32 sum over a large region would lose digits.
    sums = np.bincount(labels[mask], weights=heatmap[mask].astype(np.float64), minlength=count + 1)
    peaks = np.zeros(count + 1, np.float32)
    np.maximum.at(peaks, labels[mask], heatmap[mask])
    faces, corners = _trace(mask)
    origin0 = np.array([plane.origin_x0, plane.origin_y0])
    downsample = np.array([plane.downsample_x, plane.downsample_y])
    polygons = shapely.transform(faces, lambda xy: origin0 + xy * downsample)
    ids = labels[corners[:, 0], corners[:, 1]]
    order = np.lexsort((corners[:, 1], corners[:, 0], -cells[ids]))
    return [
        IdcRegion(
            name=f"IDC {rank}",
            polygon=polygons[i],
            area_mm2=float(cells[ids[i]] * cell_mm2),
            mean_probability=float(sums[ids[i]] / cells[ids[i]]),
            max_probability=float(peaks[ids[i]]),
        )
        for rank, i in enumerate(order, start=1)
    ]


def rasterise(regions: Sequence[IdcRegion], plane: Plane, shape: tuple[int, int]) -> Mask:
    """Which cells of `plane`, an array of `shape` (rows, columns), have their centre inside a region.

    Any plane will do, not only the one the regions come from. Regions do not overlap.
    """
    height, width = shape
    rings = shapely.get_rings([region.polygon for region in regions])
    xy0, ring = shapely.get_coordinates(rings, return_index=True)
    x = (xy0[:, 0] - plane.origin_x0) / plane.downsample_x
    y = (xy0[:, 1] - plane.origin_y0) / plane.downsample_y
    edges = np.flatnonzero(ring[:-1] == ring[1:])
    rows, columns = _row_crossings(x, y, edges, height)
    # A cell is inside when an odd number of edges crosses its row's centre line before its centre.
    crossings = np.zeros((height, width + 1), np.bool_)
    np.logical_xor.at(crossings, (rows, np.clip(columns, 0, width)), True)
    return np.logical_xor.accumulate(crossings, axis=1)[:, :width]


def _fill_holes(mask: Mask, not_scored: Mask, max_cells: float) -> None:
    """Set, in place, the cells of enclosed holes of fewer than `max_cells`, all of them scored."""
    if max_cells <= 0:
        return
    labels, count = label(~mask, return_num=True, connectivity=1)
    is_hole = np.bincount(labels.ravel(), minlength=count + 1) < max_cells
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    is_hole[edge] = False
    is_hole[labels[not_scored]] = False
    is_hole[0] = False
    mask |= is_hole[labels]


def _trace(mask: Mask) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.intp]]:
    """The polygons of the mask's areas in cell units, and the first cell (row, column) of each."""
    across = _runs(mask)
    down = _runs(mask.T)[:, :, ::-1]
    # The runs meet at corners only, so each face of their drawing is one area of the mask or of the rest.
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(np.concatenate([across, down]))))
    xy, face = shapely.get_coordinates(faces, return_index=True)
    order = np.lexsort((xy[:, 0], xy[:, 1], face))
    firsts = order[np.unique(face[order], return_index=True)[1]]
    corners = xy[firsts][:, ::-1].astype(np.intp)
    inside = mask[corners[:, 0], corners[:, 1]]
    return faces[inside], corners[inside]


def _runs(mask: Mask) -> npt.NDArray[np.float64]:
    """Longest straight pieces of the mask's horizontal boundaries, [n, 2, 2]: start and end as (x, y).

    A piece ends where the mask changes sides, so that pieces crossing at a corner all end there.
    """
    side = np.diff(mask.astype(np.int8), axis=0, prepend=0, append=0)  # +1: the mask lies below, -1: above
    padded = np.pad(side, ((0, 0), (1, 1)))
    changes = padded[:, 1:] != padded[:, :-1]
    rows, starts = np.nonzero(changes[:, :-1] & (side != 0))
    _, ends = np.nonzero(changes[:, 1:] & (side != 0))
    pieces = np.stack([starts, rows, ends + 1, rows], axis=1)
    return pieces.reshape(-1, 2, 2).astype(np.float64)


def _row_crossings(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], edges: npt.NDArray[np.intp], height: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where edges (from point i to i + 1, each i given) cross rows' centre lines.

    Row, and first column with its centre past the crossing; a crossing at a row's or column's very centre
    counts as before it.
    """
    start, end = y[edges], y[edges + 1]
    first = np.clip(np.ceil(np.minimum(start, end) - 0.5), 0, height).astype(np.intp)
    last = np.clip(np.ceil(np.maximum(start, end) - 0.5), 0, height).astype(np.intp)
    count = last - first
    edge = np.repeat(edges, count)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    share = (rows + 0.5 - y[edge]) / (y[edge + 1] - y[edge])
    crossing_x = x[edge] + share * (x[edge + 1] - x[edge])
    return rows, np.ceil(crossing_x - 0.5).astype(np.intp)
