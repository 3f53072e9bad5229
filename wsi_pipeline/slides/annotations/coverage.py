"""How much of each cell outlines cover: exact, in a time that grows with vertices plus cells, not with their product.

An outline's edges are cut at the lines of the cells. Each piece then lies in one cell, and adds its signed height to
the cells right of it and the trapezium beside it to its own, as font rasterisers do; the sum is the covered area.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Plane

Floats = NDArray[np.float64]

# Bounds of memory: cells of the lattice summed at once, and pieces of edges made at once (each some 100 bytes).
BAND_CELLS = 2_000_000
PIECES_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Cells:
    """`columns` by `rows` rectangles, the first at the origin of `plane`; they may overlap, or leave gaps.

    `side` and `stride`: a cell's side, and the distance from one to the next, both in pixels of the plane.
    """

    plane: Plane
    columns: int
    rows: int
    side: float = 1.0
    stride: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """[rows, columns]."""
        return self.rows, self.columns


def covered_share(outlines: shapely.Geometry, cells: Cells) -> Floats:
    """float64 [row, column], 0 to 1: the share of each cell that the outlines cover, exact to 1e-6.

    `outlines` are valid polygons in level-0 pixels, or nothing; they may not overlap each other.
    """
    share = np.zeros(cells.shape)
    edges = _edges(outlines)
    if not len(edges):
        return share
    plane = cells.plane
    # In units of a cell's side, so that sums lose no digits to far away coordinates.
    edges = (edges - (plane.origin_x0, plane.origin_y0)) / (
        cells.side * plane.downsample_x,
        cells.side * plane.downsample_y,
    )
    stride = cells.stride / cells.side
    xs, across = _lines(cells.columns, stride)
    band_rows = max(1, BAND_CELLS // len(xs))
    for first in range(0, cells.rows, band_rows):
        count = min(band_rows, cells.rows - first)
        ys, down = _lines(count, stride)
        moved = edges - (0, first * stride)
        low, high = moved[:, :, 1].min(axis=1), moved[:, :, 1].max(axis=1)
        area = _areas(moved[(high > ys[0]) & (low < ys[-1]) & (high > low)], xs, ys)
        share[first : first + count] = _sums(_sums(area, down).T, across).T
    return np.clip(share, 0, 1)


def polygons_of(geometry: shapely.Geometry) -> NDArray[Any]:
    """The polygons in a geometry: areas laid over each other may leave lines and points where they touch."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return np.asarray(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])


def united(areas: Sequence[shapely.Geometry]) -> shapely.Geometry:
    """All of these valid areas in one. Of those that lie apart nothing is computed: 200,000 take half a second, not 54.

    Shapely can do so from 2.1 on, with GEOS 3.12.
    """
    if len(areas) == 1:
        return areas[0]
    if shapely.geos_version >= (3, 12, 0) and hasattr(shapely, "disjoint_subset_union_all"):
        return shapely.disjoint_subset_union_all(areas)
    return shapely.union_all(areas)


def _edges(outlines: shapely.Geometry) -> Floats:
    """[n, 2 ends, (x, y)]: the edges of all rings, what is inside always on the same side of them."""
    polygons = polygons_of(outlines)
    rings, of_polygon = shapely.get_rings(polygons, return_index=True)
    if not len(rings):
        return np.empty((0, 2, 2))
    is_hole = np.r_[False, of_polygon[1:] == of_polygon[:-1]]
    turned = shapely.is_ccw(rings) != is_hole
    rings[turned] = shapely.reverse(rings[turned])
    points, of_ring = shapely.get_coordinates(rings, return_index=True)
    same = of_ring[1:] == of_ring[:-1]
    return np.stack([points[:-1][same], points[1:][same]], axis=1)


def _lines(count: int, stride: float) -> tuple[Floats, NDArray[np.int64]]:
    """Where cells [i * stride, i * stride + 1] start or end, sorted; and [count, 2] which of these are each one's."""
    starts = np.arange(count) * stride
    # Lines that differ by rounding alone are one.
    lines, place = np.unique(np.round(np.concatenate([starts, starts + 1]), 9), return_inverse=True)
    return lines, place.reshape(2, count).T


def _sums(values: Floats, ends: NDArray[np.int64]) -> Floats:
    """Sums over rows ends[i, 0] to ends[i, 1] of `values`, for each i."""
    if (ends[:, 1] - ends[:, 0] == 1).all():
        return values[ends[:, 0]]
    total = np.pad(np.cumsum(values, axis=0), ((1, 0), (0, 0)))
    return np.asarray(total[ends[:, 1]] - total[ends[:, 0]])


def _areas(edges: Floats, xs: Floats, ys: Floats) -> Floats:
    """[len(ys) - 1, len(xs) - 1]: the area inside the edges in each rectangle between the lines."""
    shape = (len(ys) - 1, len(xs) - 1)
    own, right = np.zeros(shape[0] * shape[1]), np.zeros(shape[0] * (shape[1] + 1))
    for some in _few(edges, xs, ys):
        x, y, height = _pieces(some, xs, ys)
        row = np.searchsorted(ys, y, side="right") - 1
        kept = (row >= 0) & (row < shape[0]) & (x < xs[-1])
        x, row, height = x[kept], row[kept], height[kept]
        column = np.searchsorted(xs, x, side="right") - 1  # -1: left of all cells
        right += np.bincount(row * (shape[1] + 1) + column + 1, height, len(right))
        inside = column >= 0
        row, column, x, height = row[inside], column[inside], x[inside], height[inside]
        own += np.bincount(row * shape[1] + column, height * (xs[column + 1] - x), len(own))
    beside = np.cumsum(right.reshape(shape[0], shape[1] + 1), axis=1)[:, :-1]
    return np.asarray(own.reshape(shape) + beside * np.diff(xs))


def _few(edges: Floats, xs: Floats, ys: Floats) -> Iterator[Floats]:
    """The edges, so many at once that they make no more pieces than fit into memory."""
    crossed = [
        np.abs(np.diff(np.searchsorted(lines, edges[:, :, axis]), axis=1)[:, 0])
        for axis, lines in enumerate((xs, ys))
    ]
    pieces = np.cumsum(crossed[0] + crossed[1] + 1)
    if len(pieces):
        for start, end in _spans(pieces // PIECES_AT_ONCE):
            yield edges[start:end]


def _spans(values: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal values."""
    changes = np.flatnonzero(np.diff(values)) + 1
    yield from zip([0, *changes.tolist()], [*changes.tolist(), len(values)], strict=True)


def _pieces(edges: Floats, xs: Floats, ys: Floats) -> tuple[Floats, Floats, Floats]:
    """The edges cut at all lines: x and y of the middle of each piece, and its signed height."""
    start, length = edges[:, 0], edges[:, 1] - edges[:, 0]
    of_edge = [np.arange(len(edges)), np.arange(len(edges))]
    at = [np.zeros(len(edges)), np.ones(len(edges))]
    for axis, lines in enumerate((xs, ys)):
        ends = np.sort(edges[:, :, axis], axis=1)
        first = np.searchsorted(lines, ends[:, 0], side="right")
        count = np.maximum(0, np.searchsorted(lines, ends[:, 1], side="left") - first)
        edge = np.repeat(np.arange(len(edges)), count)
        nth = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
        of_edge.append(edge)
        at.append((lines[first[edge] + nth] - start[edge, axis]) / length[edge, axis])
    order = np.lexsort((np.concatenate(at), np.concatenate(of_edge)))
    edge, t = np.concatenate(of_edge)[order], np.clip(np.concatenate(at)[order], 0, 1)
    same = edge[1:] == edge[:-1]
    edge, middle, step = edge[:-1][same], (t[1:] + t[:-1])[same] / 2, np.diff(t)[same]
    x, y = (start[edge] + length[edge] * middle[:, None]).T
    return x, y, length[edge, 1] * step
