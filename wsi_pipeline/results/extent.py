"""How far invasive tissue reaches: largest dimensions, and how far foci are apart."""

from collections.abc import Sequence

import numpy as np
import shapely

from wsi_pipeline.results.outlines import Polygons


def largest_dimension_mm(polygons: Sequence[Polygons], mpp0: tuple[float, float]) -> float:
    """The longest straight line between two points of the outlines, in mm (the largest Feret diameter).

    polygons: in level-0 pixels. mpp0: um per level-0 pixel along x and y. 0 of none.
    """
    if not polygons:
        return 0.0
    # The hull of the hulls, which have few points, is that of all.
    each = shapely.convex_hull(np.array(polygons, dtype=object))
    hull = in_mm(shapely.convex_hull(shapely.geometrycollections(each)), mpp0)
    points = shapely.get_coordinates(hull)
    apart = points[:, None, :] - points[None, :, :]
    return float(np.sqrt((apart**2).sum(axis=2)).max())


def nearest_mm(polygons: Sequence[Polygons], mpp0: tuple[float, float]) -> list[float | None]:
    """The shortest way from each outline to another one, in mm; None where there is no other."""
    if len(polygons) < 2:
        return [None] * len(polygons)
    # Of outlines with an index of their lines; of areas it takes a thousand times as long.
    outlines = shapely.boundary(np.array([in_mm(polygon, mpp0) for polygon in polygons], dtype=object))
    shapely.prepare(outlines)
    bounds = shapely.bounds(outlines)
    known: dict[tuple[int, int], float] = {}

    def apart(one: int, other: int) -> float:
        pair = min(one, other), max(one, other)
        if pair not in known:
            known[pair] = float(shapely.length(shapely.shortest_line(outlines[pair[0]], outlines[pair[1]])))
        return known[pair]

    nearest: list[float | None] = []
    for one, box in enumerate(bounds):
        gap = np.maximum(np.maximum(bounds[:, :2] - box[2:], box[:2] - bounds[:, 2:]), 0)
        least = np.hypot(gap[:, 0], gap[:, 1])  # of the boxes around them
        least[one] = np.inf
        first = apart(one, int(least.argmin()))
        near = np.flatnonzero(least < first)
        nearest.append(min([first, *(apart(one, int(other)) for other in near)]))
    return nearest


def in_mm(polygon: Polygons, mpp0: tuple[float, float]) -> Polygons:
    """The polygon of level-0 pixels in mm."""
    scale = np.asarray(mpp0) / 1000
    scaled: Polygons = shapely.transform(polygon, lambda xy0: xy0 * scale)
    return scaled
