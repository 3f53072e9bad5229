"""From the heatmap to what a pathologist works with: regions of IDC as polygons, and fields to grade in.

A region is a set of heatmap cells at or above the threshold that hang together by their edges; cells that
touch at a corner only belong to two regions, which may share that point. Its outline follows the cell edges
exactly, so that area, outline and map say the same thing. Cells that were not scored are in no region.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import shapely
from shapely.geometry.polygon import orient

from wsi_pipeline.geometry import Plane, Size
from wsi_pipeline.options import Field, options

FloatMap: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

IDC_CLASS = {"name": "IDC", "color": [200, 0, 0]}
FIELD_CLASS = {"name": "Grading field", "color": [0, 114, 178]}


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


@dataclass(frozen=True)
class GradingField:
    """A circle on the slide to grade in: an ellipse in level-0 pixels where these are not square."""

    name: str
    x0: float
    y0: float
    radius_x0: float
    radius_y0: float
    mean_probability: float
    region_name: str


def delineate(
    heatmap: FloatMap, plane: Plane, mpp0: tuple[float, float], threshold: float, options: DelineateOptions
) -> list[IdcRegion]:
    """Regions of cells with a probability of at least `threshold`, the largest first.

    heatmap: [y, x], probability 0 to 1, NaN where not scored; `plane` is its grid.
    mpp0: micrometres per level-0 pixel along x and y.
    threshold: the one to use; who calls has settled options.threshold against the model card's.

    With min_area_mm2 and fill_holes_mm2 at 0, `rasterise` gives `heatmap >= threshold` back exactly.
    """
    cell_mm2 = plane.downsample_x * mpp0[0] * plane.downsample_y * mpp0[1] / 1e6
    mask = heatmap >= threshold
    _fill_holes(mask, np.isnan(heatmap), options.fill_holes_mm2 / cell_mm2)
    labels, count = scipy.ndimage.label(mask)
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


def choose_fields(
    heatmap: FloatMap,
    plane: Plane,
    mpp0: tuple[float, float],
    regions: Sequence[IdcRegion],
    options: DelineateOptions,
) -> list[GradingField]:
    """Where to look first when grading: circles that do not overlap, the highest mean probability first.

    A cell outside of every region counts as 0, so that fields full of tumour come before fields at its edge.
    Mitoses are not seen here: the fields show where the model is surest, the pathologist moves them.
    """
    mask = rasterise(regions, plane, (heatmap.shape[0], heatmap.shape[1]))
    if not mask.any():
        return []
    radius_x0 = options.field_diameter_mm * 1000 / 2 / mpp0[0]
    radius_y0 = options.field_diameter_mm * 1000 / 2 / mpp0[1]
    radius_x, radius_y = radius_x0 / plane.downsample_x, radius_y0 / plane.downsample_y
    disc = _disc(radius_x, radius_y)
    tumour = _mean_in_disc(mask.astype(np.float64), disc)
    score = _mean_in_disc(np.where(mask, heatmap, 0.0), disc)
    # Rounded: the transform's noise must not choose between equals.
    score = np.where(mask & (tumour >= options.min_field_tumour - 1e-6), np.round(score, 6), -1.0)

    rows, columns = np.arange(mask.shape[0])[:, None], np.arange(mask.shape[1])[None, :]
    fields: list[GradingField] = []
    while len(fields) < options.field_count:
        row, column = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[row, column] < 0:
            break
        x0, y0 = plane.point_to_level0(float(column) + 0.5, float(row) + 0.5)
        fields.append(
            GradingField(
                name=f"Field {len(fields) + 1}",
                x0=x0,
                y0=y0,
                radius_x0=radius_x0,
                radius_y0=radius_y0,
                mean_probability=_mean_at(heatmap, disc, int(row), int(column)),
                region_name=next(r.name for r in regions if r.polygon.contains(shapely.Point(x0, y0))),
            )
        )
        too_near = ((rows - row) / radius_y) ** 2 + ((columns - column) / radius_x) ** 2 < 4
        score[too_near] = -1.0
    return fields


def regions_to_geojson(
    regions: Sequence[IdcRegion], fields: Sequence[GradingField], origin0: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """A FeatureCollection of annotations as QuPath reads and writes it, in level-0 pixels from `origin0`.

    origin0: the level-0 point that the viewer shows at its (0, 0); `qupath_origin0` finds QuPath's.
    """

    def shifted(polygon: shapely.Polygon) -> shapely.Polygon:
        return orient(shapely.transform(polygon, lambda xy: xy - np.asarray(origin0)))

    features = [
        _feature(
            shapely.geometry.mapping(shifted(region.polygon)),
            region.name,
            IDC_CLASS,
            {
                "Area mm^2": region.area_mm2,
                "Mean probability of IDC": region.mean_probability,
                "Max probability of IDC": region.max_probability,
            },
        )
        for region in regions
    ]
    for field in fields:
        # GeoJSON knows no ellipse: QuPath writes a polygon with this mark, and reads its bounding box back.
        geometry = {**shapely.geometry.mapping(shifted(_ellipse(field))), "isEllipse": True}
        name = f"{field.name} ({field.region_name})"
        features.append(
            _feature(geometry, name, FIELD_CLASS, {"Mean probability of IDC": field.mean_probability})
        )
    return {"type": "FeatureCollection", "features": features}


def qupath_origin0(properties: Mapping[str, str], size0: Size) -> tuple[float, float]:
    """The level-0 point that QuPath shows at (0, 0), from OpenSlide's properties of the slide.

    QuPath cuts a slide to the bounds that its file declares (MRXS and some others do) when these are smaller
    both ways; its coordinates count from there, OpenSlide's and ours from the corner of the whole.
    """
    bounds = [properties.get(f"openslide.bounds-{key}") for key in ("x", "y", "width", "height")]
    if None in bounds:
        return 0.0, 0.0
    x0, y0, width0, height0 = (float(value) for value in bounds if value is not None)
    is_cut = width0 != size0.width and height0 != size0.height
    return (x0, y0) if is_cut else (0.0, 0.0)


def _fill_holes(mask: Mask, not_scored: Mask, max_cells: float) -> None:
    """Set, in place, the cells of enclosed holes of fewer than `max_cells`, all of them scored."""
    if max_cells <= 0:
        return
    labels, count = scipy.ndimage.label(~mask)
    is_hole = np.bincount(labels.ravel(), minlength=count + 1) < max_cells
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    is_hole[edge] = False
    is_hole[labels[not_scored]] = False
    is_hole[0] = False
    mask |= is_hole[labels]


def _trace(mask: Mask) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.intp]]:
    """The polygons of the mask's parts in cell units, and the first cell (row, column) of each."""
    across = _runs(mask)
    down = _runs(mask.T)[:, :, ::-1]
    # The runs meet at corners only, so each face of their drawing is one part of the mask or of the rest.
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


def _disc(radius_x: float, radius_y: float) -> npt.NDArray[np.float64]:
    """Share of each cell covered by a disc around the middle cell's centre, scaled to sum to 1."""
    half_x, half_y = math.ceil(radius_x), math.ceil(radius_y)
    samples_x, samples_y = math.ceil(32 / radius_x), math.ceil(32 / radius_y)
    x = (np.arange((2 * half_x + 1) * samples_x) + 0.5) / samples_x - half_x - 0.5
    y = (np.arange((2 * half_y + 1) * samples_y) + 0.5) / samples_y - half_y - 0.5
    inside = (x[None, :] / radius_x) ** 2 + (y[:, None] / radius_y) ** 2 <= 1
    by_cell = inside.reshape(2 * half_y + 1, samples_y, 2 * half_x + 1, samples_x)
    share = by_cell.sum(axis=(1, 3), dtype=np.float64)
    return np.asarray(share / share.sum())


def _mean_in_disc(values: npt.NDArray[Any], disc: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weighted mean around each cell; beyond the edge counts as 0."""
    # By Fourier transforms; scipy.signal has one for it, but takes as long to import as a slide's regions take.
    size = [n + m - 1 for n, m in zip(values.shape, disc.shape, strict=True)]
    mean = np.fft.irfft2(np.fft.rfft2(values, size) * np.fft.rfft2(disc, size), size)
    top, left = disc.shape[0] // 2, disc.shape[1] // 2
    return np.asarray(mean[top : top + values.shape[0], left : left + values.shape[1]])


def _mean_at(heatmap: FloatMap, disc: npt.NDArray[np.float64], row: int, column: int) -> float:
    """Mean probability of the scored cells in the disc around one cell."""
    half_y, half_x = disc.shape[0] // 2, disc.shape[1] // 2
    top, left = max(0, row - half_y), max(0, column - half_x)
    window = heatmap[top : row + half_y + 1, left : column + half_x + 1]
    start_y, start_x = top - (row - half_y), left - (column - half_x)
    weights = disc[start_y : start_y + window.shape[0], start_x : start_x + window.shape[1]]
    scored = np.isfinite(window)
    return float((window[scored] * weights[scored]).sum() / weights[scored].sum())


def _ellipse(field: GradingField) -> shapely.Polygon:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x0 = field.x0 + field.radius_x0 * np.cos(angles)
    y0 = field.y0 + field.radius_y0 * np.sin(angles)
    return shapely.Polygon(np.stack([x0, y0], axis=1))


def _feature(
    geometry: dict[str, Any], name: str, classification: dict[str, Any], measurements: dict[str, float]
) -> dict[str, Any]:
    properties = {
        "objectType": "annotation",
        "name": name,
        "classification": classification,
        "measurements": measurements,
    }
    return {"type": "Feature", "geometry": geometry, "properties": properties}
