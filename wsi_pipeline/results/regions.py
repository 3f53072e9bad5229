"""From the heatmap to what a pathologist works with: regions of IDC as polygons.

A region is a set of heatmap cells at or above the threshold that hang together by their edges. Its outline runs between
the cells' centres, where the map itself crosses the threshold (outlines.py), cut to the tissue and to the slide. Its
area is that of the tissue inside. Cells that were not scored are in no region.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import shapely
from numpy.typing import NDArray
from skimage.measure import label

from wsi_pipeline.base.geometry import Box, Plane, Size
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.types import FloatMap, Mask
from wsi_pipeline.results.extent import largest_dimension_mm, nearest_mm
from wsi_pipeline.results.outlines import Polygons, mask_outlines, rasterise_polygons, trace

# A region of n cells has an outline around fewer than this many times n.
MOST_GROWTH = 3
# Gaps in the tissue below this area do not cut an outline; they do not count as tissue either.
TISSUE_GAP_MM2 = 0.01
# Scraps that cutting to the tissue leaves below this area are left out of an outline.
SCRAP_MM2 = 0.002

# The coarsest rounding of outlines.
STEPS_A_CELL = 50


@options
class DelineateOptions:
    """What counts as a region."""

    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least probability of a cell in a region. None: the model card's for the map shown, where it was measured."""

    threshold_low: Annotated[float, Field(gt=0, le=1)] | None = None
    """Where set, cells from this probability on belong to a region too, if they hang together with one of at least
    `threshold` (hysteresis). None: `threshold` alone."""

    min_area_mm2: Annotated[float, Field(ge=0)] = 0.1
    """Smaller regions are left out. 0.1 mm2 is less than half a high-power field: too little to grade."""

    fill_holes_mm2: Annotated[float, Field(ge=0)] = 0.001
    """Enclosed holes below this area are added to their region. 0.001 mm2 is 32 um a side: no fat cell, and no cell of
    a map with coarser ones; in finer maps it is the noise of single cells. 0: regions are the map, nothing added. A
    hole with a cell that was not scored always stays."""

    outline_um: Annotated[float, Field(ge=0)] = 10.0
    """Outlines have as few points as keep them within so many um; no cell's centre changes sides."""


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where there is tissue that counts."""

    mask: Mask
    """[row, column] of `plane`."""

    plane: Plane
    background: Mask | None = None
    """[row, column] of the map: cells without tissue to speak of. None: not known."""

    def area_mm2(self, mpp0: tuple[float, float]) -> float:
        """All of it."""
        return float(self.mask.sum()) * pixel_mm2(self.plane, mpp0)

    def within(self, polygon: Polygons) -> tuple[Mask, Plane]:
        """The part that the polygon's bounds reach into, and its plane."""
        left, top, right, bottom = polygon.bounds
        corners = (*self.plane.point_from_level0(left, top), *self.plane.point_from_level0(right, bottom))
        rows, columns = self.mask.shape
        first = np.clip(np.floor(corners[:2]).astype(int) - 2, 0, (columns, rows))
        last = np.clip(np.ceil(corners[2:]).astype(int) + 2, 0, (columns, rows))
        x0, y0 = self.plane.point_to_level0(float(first[0]), float(first[1]))
        part = self.mask[first[1] : last[1], first[0] : last[0]]
        return part, replace(self.plane, origin_x0=x0, origin_y0=y0)


@dataclass(frozen=True)
class IdcRegion:
    """One connected area of IDC; 'IDC 1' is the largest."""

    name: str
    polygon: Polygons
    """In level-0 pixels; holes, and several parts where tissue lies apart."""

    area_mm2: float
    """Of the tissue inside."""

    mean_probability: float
    max_probability: float
    largest_mm: float = 0.0
    """Its largest dimension."""

    nearest_mm: float | None = None
    """The shortest way to another region; None: there is none."""


def delineate(
    heatmap: FloatMap,
    plane: Plane,
    mpp0: tuple[float, float],
    threshold: float,
    options: DelineateOptions,
    tissue: TissueMask | None = None,
    size0: Size | None = None,
) -> list[IdcRegion]:
    """Regions of cells with a probability of at least `threshold`, the largest first.

    heatmap: [y, x], probability 0 to 1, NaN where not scored; `plane` is its grid.
    mpp0: micrometres per level-0 pixel along x and y.
    threshold: the one to use; the caller has settled options.threshold against the model card's.
    tissue, size0: what outlines are cut to, and what of them counts as area; None: they are not cut.

    With min_area_mm2 and fill_holes_mm2 at 0 and no threshold_low, `rasterise` gives `heatmap >= threshold` back, of
    cells whose centre lies on tissue.
    """
    cell_mm2 = pixel_mm2(plane, mpp0)
    mask = region_cells(heatmap, cell_mm2, threshold, options)
    labels, count = label(mask, return_num=True, connectivity=1)
    cells = np.bincount(labels.ravel(), minlength=count + 1)
    # A millionth of slack: a region of exactly the least area stays, whatever the rounding of cell_mm2.
    least_mm2 = options.min_area_mm2 * (1 - 1e-6)
    large = cells * cell_mm2 * MOST_GROWTH >= least_mm2
    large[0] = False
    if not large.any():
        return []
    labels = np.where(large[labels], labels, 0)
    cell_um, decimals = _cell_um(plane, mpp0), coordinate_decimals(plane)
    outlines = trace(
        heatmap,
        labels,
        threshold,
        tissue.background if tissue else None,
        options.outline_um / cell_um,
        # A point that is rounded moves by less: half a step along x, and half along y.
        0.75 * 10.0**-decimals / min(plane.downsample_x, plane.downsample_y),
    )
    boxes = _boxes(labels)

    def cut_out(area: int) -> tuple[Polygons, float]:
        level0 = _to_level0(outlines[area], plane)
        return _cut(level0, mpp0, tissue, size0, options.outline_um, decimals)

    with ThreadPoolExecutor(2, thread_name_prefix="regions") as pool:
        cuts = list(pool.map(cut_out, (area for area, _ in boxes)))
    found = []
    for (area, box), (cut, area_mm2) in zip(boxes, cuts, strict=True):
        if cut.is_empty or area_mm2 < least_mm2:
            continue
        part = heatmap[box.y : box.bottom, box.x : box.right]
        inside = labels[box.y : box.bottom, box.x : box.right] == area
        # Of float64: a float32 sum over a large region would lose digits.
        mean = float(part[inside].mean(dtype=np.float64))
        found.append(((-area_mm2, box.y, box.x), cut, area_mm2, mean, float(part[inside].max())))
    found.sort(key=lambda row: row[0])
    nearest = nearest_mm([row[1] for row in found], mpp0)
    return [
        IdcRegion(
            name=f"IDC {rank}",
            polygon=cut,
            area_mm2=area_mm2,
            mean_probability=mean,
            max_probability=peak,
            largest_mm=largest_dimension_mm([cut], mpp0),
            nearest_mm=nearest[rank - 1],
        )
        for rank, (_, cut, area_mm2, mean, peak) in enumerate(found, start=1)
    ]


def region_cells(heatmap: FloatMap, cell_mm2: float, threshold: float, options: DelineateOptions) -> Mask:
    """The cells of all regions, bool [row, column], whatever their area: by threshold, hysteresis and filled holes."""
    mask = heatmap >= threshold
    low = options.threshold_low
    if low is not None and low < threshold:
        wide, count = label(heatmap >= low, return_num=True, connectivity=1)
        holds = np.zeros(count + 1, np.bool_)
        holds[wide[mask]] = True
        mask = holds[wide]
    _fill_holes(mask, np.isnan(heatmap), options.fill_holes_mm2 / cell_mm2)
    return np.asarray(mask)


def rasterise(regions: Sequence[IdcRegion], plane: Plane, shape: tuple[int, int]) -> Mask:
    """Which cells of `plane`, an array of `shape` (rows, columns), have their centre inside a region.

    Any plane will do, not only the one the regions come from. Regions do not overlap.
    """
    return rasterise_polygons([region.polygon for region in regions], plane, shape)


def pixel_mm2(plane: Plane, mpp0: tuple[float, float]) -> float:
    """The area of a pixel, or cell, of the plane."""
    return plane.downsample_x * mpp0[0] * plane.downsample_y * mpp0[1] / 1e6


def _cut(
    outline: shapely.Polygon,
    mpp0: tuple[float, float],
    tissue: TissueMask | None,
    size0: Size | None,
    tolerance_um: float,
    decimals: int,
) -> tuple[Polygons, float]:
    """The outline, of level-0 pixels, on the tissue and the slide, and the area in mm2 of the tissue inside.

    Its points are rounded to so many decimals.
    """
    cut: Polygons = outline
    if size0 is not None:
        cut = _areas_of(cut.intersection(shapely.box(0, 0, size0.width, size0.height)), 0.0)
    if tissue is None or cut.is_empty:
        cut = _rounded(cut, decimals)
        return cut, cut.area * mpp0[0] * mpp0[1] / 1e6
    part, plane = tissue.within(cut)
    pixel = pixel_mm2(plane, mpp0)
    tolerance = tolerance_um / _cell_um(plane, mpp0) / 2
    drawn = _to_level0(mask_outlines(part, TISSUE_GAP_MM2 / pixel, tolerance), plane)
    cut = _areas_of(cut.intersection(drawn), SCRAP_MM2 * 1e6 / (mpp0[0] * mpp0[1]))
    cut = _rounded(cut, decimals)
    if cut.is_empty:
        return cut, 0.0
    inside = rasterise_polygons(cut, plane, (part.shape[0], part.shape[1]))
    return cut, float((inside & part).sum()) * pixel


def coordinate_decimals(plane: Plane) -> int:
    """To so many decimals of level-0 pixels outlines of a map's cells are rounded: to a fiftieth of a cell or less.

    >>> coordinate_decimals(Plane(800, 800)), coordinate_decimals(Plane(40, 40))
    (0, 1)
    """
    return max(0, math.ceil(math.log10(STEPS_A_CELL / min(plane.downsample_x, plane.downsample_y))))


def _rounded(polygon: Polygons, decimals: int) -> Polygons:
    """The polygon with its points rounded; where the cut's own points lie too close for that, they are joined."""
    moved: Polygons = shapely.transform(polygon, lambda xy0: np.round(xy0, decimals))
    if moved.is_valid:
        return moved
    return _areas_of(shapely.set_precision(polygon, 10.0**-decimals), 0.0)


def _areas_of(geometry: shapely.Geometry, least: float) -> Polygons:
    """The polygons among what an intersection leaves, those of at least that area; the largest where none is."""
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and part.area > 0]
    kept = [part for part in parts if part.area >= least] or sorted(parts, key=lambda part: -part.area)[:1]
    if not kept:
        return shapely.Polygon()
    return kept[0] if len(kept) == 1 else shapely.MultiPolygon(kept)


def _boxes(labels: NDArray[np.integer]) -> list[tuple[int, Box]]:
    """Each label that is there, with the box of its cells."""
    from scipy.ndimage import find_objects

    found = []
    for area, slices in enumerate(find_objects(labels), start=1):
        if slices is not None:
            rows, columns = slices
            box = Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            found.append((area, box))
    return found


def _to_level0(polygon: Polygons, plane: Plane) -> Polygons:
    origin0 = np.array([plane.origin_x0, plane.origin_y0])
    downsample = np.array([plane.downsample_x, plane.downsample_y])
    moved: Polygons = shapely.transform(polygon, lambda xy: origin0 + xy * downsample)
    return moved


def _cell_um(plane: Plane, mpp0: tuple[float, float]) -> float:
    """The longer side of a cell."""
    return max(plane.downsample_x * mpp0[0], plane.downsample_y * mpp0[1])


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
