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
    scaled = [in_mm(polygon, mpp0) for polygon in polygons]
    tree = shapely.STRtree(scaled)
    rows, found = tree.query_nearest(scaled, exclusive=True, return_distance=True, all_matches=False)
    nearest: list[float | None] = [None] * len(polygons)
    for row, distance in zip(rows[0].tolist(), found.tolist(), strict=True):
        nearest[row] = float(distance)
    return nearest


def in_mm(polygon: Polygons, mpp0: tuple[float, float]) -> Polygons:
    """The polygon of level-0 pixels in mm."""
    scale = np.asarray(mpp0) / 1000
    scaled: Polygons = shapely.transform(polygon, lambda xy0: xy0 * scale)
    return scaled
