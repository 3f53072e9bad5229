"""Outlines of areas of a map: between the centres of cells, where the map itself crosses the threshold.

By marching squares (Lorensen and Cline 1987, in the plane): along a line between two cells' centres, one inside and one
outside, the outline lies where the probability, taken as linear between them, is the threshold. So it follows the map
without the stairs of its cells, and each centre stays on its own side.
"""

from typing import TypeAlias

import numpy as np
import scipy.ndimage
import shapely
from numpy.typing import NDArray
from skimage.measure import find_contours, label

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.types import FloatMap, Mask
from wsi_pipeline.results.simplification import with_fewer_points

Polygons: TypeAlias = shapely.Polygon | shapely.MultiPolygon
# A centre is at least so far from an outline, as a difference of probability.
LEAST_MARGIN = 1e-3


def trace(
    heatmap: FloatMap,
    labels: NDArray[np.integer],
    threshold: float,
    background: Mask | None = None,
    tolerance: float = 0.0,
    clearance: float = LEAST_MARGIN / 2,
) -> dict[int, shapely.Polygon]:
    """The outline of each area, by its label, in cells from the map's corner: a cell's centre lies at index + 0.5.

    heatmap: [row, column], NaN where not scored. labels: the same shape, 0 outside; areas hang together by edges. An
    area may hold cells below the threshold, and leave out cells above it: its outline then passes close to their
    centres. Beside what was not scored, it lies on the cells' edge; beside `background`, bool of the same shape, which
    holds no tissue to speak of, it reaches up to the next centre: to be cut to the tissue.
    tolerance: outlines have as few points as keep them within so many cells; no cell's centre changes sides.
    clearance: points may be moved by less than so many cells without an outline passing a centre, or meeting another.
    """
    height = _signed_height(heatmap, labels > 0, threshold, background)
    padded = np.pad(labels, 1)
    # Cells outside hang together by their corners, those inside by their edges only.
    contours = find_contours(height, 0.0, fully_connected="low")
    if not contours:
        return {}
    first = np.array([contour[0] for contour in contours])
    low, high = np.floor(first).astype(int).T, np.ceil(first).astype(int).T
    areas = np.maximum(padded[tuple(low)], padded[tuple(high)])
    ends = np.cumsum([len(contour) for contour in contours])
    rings = with_fewer_points(
        np.split(_clear(np.concatenate(contours), 2 * clearance), ends[:-1]), tolerance, clearance
    )
    found: dict[int, list[NDArray[np.float64]]] = {}
    for area, ring in zip(areas.tolist(), rings, strict=True):
        found.setdefault(area, []).append(ring)
    return {area: _polygon(of_area) for area, of_area in found.items()}


def _clear(points: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Points (row, column) on lines between centres, no nearer than `least` to either; as x, y from the corner."""
    whole = np.floor(points)
    share = points - whole
    return (whole + np.where(share > 0, np.clip(share, least, 1 - least), 0))[:, ::-1] - 0.5


def _signed_height(
    heatmap: FloatMap, mask: Mask, threshold: float, background: Mask | None
) -> NDArray[np.float64]:
    """Above 0 inside, below outside, padded by one cell of background, or, where there is none, not scored."""
    mask = np.pad(mask, 1)
    height = np.pad(heatmap.astype(np.float64), 1, constant_values=np.nan) - threshold
    not_scored = np.isnan(height)
    inside = np.maximum(np.nan_to_num(height, nan=LEAST_MARGIN), LEAST_MARGIN)
    outside = np.minimum(np.nan_to_num(height, nan=-LEAST_MARGIN), -LEAST_MARGIN)
    signed = np.where(mask, inside, outside)
    # Half-way to a cell that was not scored, whatever the probability beside it: on their common edge, or within.
    highest = scipy.ndimage.maximum_filter(np.where(mask, inside, LEAST_MARGIN), 3)
    if background is not None:
        highest[np.pad(background, 1, constant_values=True)] = LEAST_MARGIN
    return np.asarray(np.where(not_scored, -highest, signed))


def _polygon(rings: list[NDArray[np.float64]]) -> shapely.Polygon:
    """The polygon of an area's rings: the largest is its shell, the others are holes."""
    of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    closed = shapely.linearrings(np.concatenate(rings), indices=of)
    shell = int(np.argmax(shapely.area(shapely.polygons(closed))))
    polygon: shapely.Polygon = shapely.polygons(closed[shell], np.delete(closed, shell))
    return polygon


def mask_outlines(mask: Mask, least_hole_px: float, tolerance: float) -> Polygons:
    """The outline of a mask, in its pixels, with holes of fewer than `least_hole_px` pixels filled."""
    if least_hole_px > 0:
        holes = label(~np.pad(mask, 1, constant_values=False), connectivity=1)
        small = np.bincount(holes.ravel()) < least_hole_px
        small[holes[0, 0]] = False
        small[0] = False
        mask = mask | small[holes][1:-1, 1:-1]
    areas = label(mask, connectivity=1)
    polygons = trace(mask.astype(np.float32), areas, 0.5).values()
    drawn: Polygons = shapely.union_all([polygon.simplify(tolerance) for polygon in polygons])
    return drawn


def rasterise_polygons(polygons: object, plane: Plane, shape: tuple[int, int]) -> Mask:
    """Which pixels of `plane`, an array of `shape` (rows, columns), have their centre inside one of the polygons.

    polygons: of level-0 pixels, one or a list, with several parts or one, none over another.
    """
    height, width = shape
    rings = shapely.get_rings(shapely.get_parts(polygons))
    xy0, ring = shapely.get_coordinates(rings, return_index=True)
    x = (xy0[:, 0] - plane.origin_x0) / plane.downsample_x
    y = (xy0[:, 1] - plane.origin_y0) / plane.downsample_y
    edges = np.flatnonzero(ring[:-1] == ring[1:])
    rows, columns = _row_crossings(x, y, edges, height)
    # A pixel is inside when an odd number of edges crosses its row's centre line before its centre.
    crossings = np.zeros((height, width + 1), np.bool_)
    np.logical_xor.at(crossings, (rows, np.clip(columns, 0, width)), True)
    return np.logical_xor.accumulate(crossings, axis=1)[:, :width]


def _row_crossings(
    x: NDArray[np.float64], y: NDArray[np.float64], edges: NDArray[np.intp], height: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
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
