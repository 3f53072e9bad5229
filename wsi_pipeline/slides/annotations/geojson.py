"""Outlines drawn by people (GeoJSON as QuPath exports it, or XML): of what, and where on the slide.

QuPath names a class in several ways: {"name": "Tumor"}, {"name": "Tumor: IDC"} and {"names": ["Tumor", "IDC"]} for a
class derived from another one, a plain text in some exports of other programs. Of a derived class, the last part that
the options know decides: "Tumor: DCIS" is DCIS, "IDC: Grade 3" is IDC.
"""

import enum
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Size
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.text import counted
from wsi_pipeline.slides.annotations.coverage import polygons_of, united
from wsi_pipeline.slides.annotations.files import is_xml
from wsi_pipeline.slides.annotations.json_objects import json_objects
from wsi_pipeline.slides.annotations.xml_outlines import xml_features

# What objects without a class are called here, in messages and in the options.
UNCLASSIFIED = "unclassified"
# Of one ring: more take minutes where they cross each other.
MAX_CORNERS = 500_000
# No slide has so many pixels a side; what lies beyond overflows where outlines are cut.
MAX_COORDINATE = 10**9
# Objects of QuPath, and of ImageScope, that are no outlines of tissue.
NO_OUTLINES = {
    "cell": "cells",
    "detection": "detections",
    "tmacore": "TMA cores",
    "hole": "negative regions in no larger one",
}
FORM = "GeoJSON as QuPath exports it"
XML_FORM = "XML as ASAP or ImageScope writes it"
LINES_AND_POINTS = {
    "LineString": "lines",
    "MultiLineString": "lines",
    "Point": "points",
    "MultiPoint": "points",
}

# Of what is counted by names of ours, one; classes have names of their own.
ONE_OF = {
    "cells": "cell",
    "detections": "detection",
    "TMA cores": "TMA core",
    "negative regions in no larger one": "negative region in no larger one",
    "lines": "line",
    "points": "point",
}

# What counts where outlines overlap, in words.
OVERLAP_WORDS = {
    "smaller": "the smaller one counts, of two alike none",
    "idc": "IDC counts",
    "not_idc": "what is not IDC counts",
}


class Kind(enum.Enum):
    """What an outline says of what lies in it."""

    IDC = "IDC"
    NOT_IDC = "not IDC"
    IGNORED = "ignored"
    REGION = "region of interest"


@options
class AnnotationOptions:
    """How outlines become labels. Classes are named as QuPath shows them; case and blanks around do not matter."""

    idc_classes: tuple[str, ...] = ("IDC", "Invasive ductal carcinoma", "Tumor", "Tumour")
    """What lies in an outline of these classes is IDC. `unclassified` stands for outlines without a class."""

    not_idc_classes: tuple[str, ...] = (
        *("Not IDC", "Normal", "Benign", "DCIS", "Stroma", "Immune cells", "Other"),
    )
    """What lies in these is not IDC. Where it overlaps with IDC, the smaller outline counts: it was drawn inside."""

    ignored_classes: tuple[str, ...] = ("Ignore*", "Ignore")
    """What lies in these has no label, whatever else is drawn there."""

    region_classes: tuple[str, ...] = ("Region*",)
    """Regions of interest: where a slide has any, what lies outside of them has no label."""

    annotated_throughout: bool = False
    """Whether tissue outside of all outlines is not IDC: true only where somebody looked at all of it (of the regions
    of interest, where there are any). False: it has no label."""

    origin: Literal["qupath", "corner"] = "qupath"
    """Where coordinates count from. QuPath cuts a slide to the bounds that its file declares (MRXS, some SCN) and
    counts from there; other programs count from the corner of the whole slide, and XML is always read so. On most
    slides the two are one."""

    overlap: Literal["smaller", "idc", "not_idc", "refuse"] = "smaller"
    """Which counts where outlines of IDC and of what is not overlap. smaller: the smaller one, drawn inside (of two
    alike none); idc and not_idc: always that; refuse: the slide fails."""

    mask_classes: dict[int, str] = Field(default_factory=lambda: {0: "Not IDC", 1: "IDC", 255: "Ignore"})
    """The class of each value of a mask picture. Each value that occurs must be named."""

    mask_mpp: Annotated[float, Field(gt=0)] | None = None
    """um per pixel of mask pictures. None: as a TIFF says in pixels per centimetre, else a mask is as wide and high as
    the slide."""

    min_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A patch has a label where outlines of it cover this share of the patch; half is the coarse outlines' own
    precision."""

    def __post_init__(self) -> None:
        seen = Counter(name for kind in self.classes.values() for name in {_key(name) for name in kind})
        if twice := [name for name, count in seen.items() if count > 1]:
            raise ValueError(f"the class '{twice[0]}' stands in two lists; expected each class in one")

    @property
    def classes(self) -> dict[Kind, tuple[str, ...]]:
        """The names of the classes of each kind."""
        return {
            Kind.IDC: self.idc_classes,
            Kind.NOT_IDC: self.not_idc_classes,
            Kind.IGNORED: self.ignored_classes,
            Kind.REGION: self.region_classes,
        }

    def kind_of(self, parts: Sequence[str]) -> Kind | None:
        """What a class of these parts, the base class first, stands for; None where no list names it."""
        kinds = {_key(name): kind for kind, names in self.classes.items() for name in names}
        for name in (": ".join(parts), *reversed(parts)):
            if kind := kinds.get(_key(name)):
                return kind
        return None


@dataclass(frozen=True, eq=False)
class Outlines:
    """What a file of outlines says of a slide; areas in level-0 pixels that do not overlap each other."""

    path: Path
    idc: shapely.Geometry
    not_idc: shapely.Geometry
    # Where nothing has a label, and where only what `idc` and `not_idc` say has one: outlines of unknown classes.
    ignored: shapely.Geometry
    unknown: shapely.Geometry
    # None: the whole slide.
    region: shapely.Geometry | None
    # How many objects of each class, and of each sort that is no outline, the file holds.
    found: Mapping[str, int]
    # What of them was passed over, or needed a decision.
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return listed(self.found) or "no objects"


def read_outlines(
    path: Path, options: AnnotationOptions, size0: Size, origin0: tuple[float, float] = (0.0, 0.0)
) -> Outlines:
    """The outlines in the file, on a slide of `size0`, where the file counts from the level-0 point `origin0`.

    `qupath_origin0` finds that point. Raises DataError where the file is of no known form, holds broken outlines, or
    holds objects of which none is an outline on the slide of a class that the options name.
    """
    kinds: dict[Kind, list[shapely.Geometry]] = {kind: [] for kind in Kind}
    unknown: list[shapely.Geometry] = []
    found, passed_over = Counter[str](), Counter[str]()
    slide = shapely.box(0, 0, size0.width, size0.height)
    kind_of = cache(options.kind_of)
    for parts, polygons, dropped in _objects(path):
        name, kind = ": ".join(parts) or UNCLASSIFIED, kind_of(tuple(parts) or (UNCLASSIFIED,))
        found[dropped or name] += 1
        moved = shapely.transform(united(polygons), lambda xy: xy + np.asarray(origin0))
        if dropped:
            passed_over[dropped] += 1
        elif kind is None:
            passed_over[name if name == UNCLASSIFIED else f"of class '{name}'"] += 1
            unknown.append(moved)
        elif not shapely.intersects(moved, slide):
            passed_over["off the slide"] += 1
        else:
            kinds[kind].append(moved)
    if found and not any(kinds.values()):
        off = f" ({passed_over['off the slide']:,} off the slide)" if passed_over["off the slide"] else ""
        raise DataError(
            f"{path}: found {listed(found)}{off}, of which none labels anything; "
            f"expected polygons on the slide, {size0.width} x {size0.height} px, of the classes {_expected(options)}; "
            "name your classes in the config under annotations: idc_classes, not_idc_classes, ignored_classes"
        )
    return _outlines(path, kinds, united(unknown), found, passed_over, options.overlap)


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


def listed(counts: Mapping[str, int]) -> str:
    """Counts in words, the largest first.

    >>> listed({"lines": 1, "Tumor": 3})
    '3 Tumor, 1 line'
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(counted(count, ONE_OF.get(name, name), name) for name, count in ordered)


def _key(name: str) -> str:
    return ": ".join(" ".join(part.split()).casefold() for part in name.split(":"))


def _expected(options: AnnotationOptions) -> str:
    return f"{', '.join(options.idc_classes)} (IDC) or {', '.join(options.not_idc_classes)} (not IDC)"


def _objects(path: Path) -> Iterator[tuple[list[str], list[shapely.Geometry], str]]:
    """What `_drawn` gives of every object of the file. Raises DataError, naming the first that is broken."""
    for number, feature in enumerate(_features(path), 1):
        try:
            yield _drawn(feature)
        except (ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
            raise DataError(
                f"{path}: object {number} is broken ({error!r}); expected {_form(path)}; export it again"
            ) from error


def _features(path: Path) -> Iterator[Any]:
    """Every object of the file, as its JSON says it, or as JSON would say it."""
    try:
        if is_xml(path):
            yield from xml_features(path)
        else:
            yield from json_objects(path)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        how = "" if is_xml(path) else " (File, Export objects as GeoJSON)"
        raise DataError(f"{path}: expected {_form(path)}{how}: {reason}") from error


def _form(path: Path) -> str:
    """What a file of this name should be."""
    return XML_FORM if is_xml(path) else FORM


def _drawn(feature: Any) -> tuple[list[str], list[shapely.Geometry], str]:
    """The parts of a feature's class, its polygons, and what it is where it is no outline."""
    properties, geometry = feature.get("properties") or {}, feature.get("geometry")
    parts = _class_parts(properties.get("classification"))
    if no_outline := NO_OUTLINES.get(str(properties.get("objectType", "")).replace("_", "").lower()):
        return parts, [], no_outline
    if geometry is None:
        return parts, [], "objects without a place"
    sort = LINES_AND_POINTS.get(geometry["type"])
    polygons = [] if sort else _polygons(geometry)
    return parts, polygons, sort or ("" if polygons else "objects without an area")


def _class_parts(classification: Any) -> list[str]:
    if isinstance(classification, dict):
        names = classification.get("names") or classification.get("name")
    else:
        names = classification
    if names is None:
        return []
    texts = names.split(":") if isinstance(names, str) else names
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"its class is {classification}")
    return [stripped for text in texts if (stripped := " ".join(text.split()))]


def _polygons(geometry: Mapping[str, Any]) -> list[shapely.Geometry]:
    """The valid polygons of a geometry; lines and points in a collection are left out."""
    if geometry["type"] == "GeometryCollection":
        return [polygon for part in geometry["geometries"] for polygon in _polygons(part)]
    if geometry["type"] in LINES_AND_POINTS:
        return []
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"its geometry is of type {geometry['type']}")
    several = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    polygons = []
    for rings in several:
        points = [_points(ring) for ring in rings if len(ring)]
        if not all((np.abs(ring) <= MAX_COORDINATE).all() for ring in points):  # nor is one that is no number
            raise ValueError(f"a coordinate is no number, or beyond {MAX_COORDINATE:,} px")
        if (most := max(map(len, points), default=0)) > MAX_CORNERS:
            raise ValueError(
                f"found a ring of {most:,} corners, expected {MAX_CORNERS:,} at most: simplify it"
            )
        corners = [ring for ring in points if _has_three_corners(ring)]
        if not corners or corners[0] is not points[0]:
            continue  # a line or a point, given as a polygon
        polygons.append(_area(shapely.make_valid(shapely.Polygon(corners[0], corners[1:]))))
    return [polygon for polygon in polygons if polygon.area > 0]


def _points(ring: Any) -> NDArray[np.float64]:
    """The ring's points [n, 2], without their height; raises ValueError where they are none."""
    points = np.asarray(ring, np.float64)
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(f"found a ring of the shape {list(points.shape)}, expected points of two numbers")
    return points[:, :2]


def _has_three_corners(ring: NDArray[np.float64]) -> bool:
    """Whether three of the ring's points [n, 2] differ."""
    others = ring[(ring != ring[0]).any(axis=1)]
    return len(others) > 0 and bool((others != others[0]).any())


def _outlines(
    path: Path,
    kinds: Mapping[Kind, list[shapely.Geometry]],
    unknown: shapely.Geometry,
    found: Counter[str],
    passed_over: Counter[str],
    overlap: str,
) -> Outlines:
    """The areas of each kind, laid apart; raises DataError where they overlap and may not."""
    if overlap in ("idc", "not_idc"):
        idc, not_idc, overlaps = _ranked(kinds[Kind.IDC], kinds[Kind.NOT_IDC], overlap == "idc")
    else:
        idc, not_idc, overlaps = _smaller_on_top(kinds[Kind.IDC], kinds[Kind.NOT_IDC])
    if overlaps and overlap == "refuse":
        raise DataError(
            f"{path}: found outlines of IDC and of what is not that overlap ({counted(overlaps, 'outline')}); expected "
            "them apart: cut them where they were drawn, or say which counts: annotations: {overlap: smaller}, idc or "
            "not_idc in the config"
        )
    ignored = united(kinds[Kind.IGNORED])
    region = united(kinds[Kind.REGION]) if kinds[Kind.REGION] else None
    if region is not None:
        region = _area(shapely.difference(region, ignored))
        inside = [_area(shapely.intersection(area, region)) for area in (idc, not_idc)]
    else:
        inside = [_area(shapely.difference(area, ignored)) for area in (idc, not_idc)]
    warnings = []
    if passed_over:
        warnings.append(f"{path.name}: {listed(passed_over)} passed over: they label nothing")
    if overlaps:
        warnings.append(
            f"{path.name}: outlines of IDC and of what is not overlap ({counted(overlaps, 'outline')}): "
            f"{OVERLAP_WORDS[overlap]}"
        )
    if region is not None and sum(area.area for area in inside) < 0.999 * (idc.area + not_idc.area):
        warnings.append(
            f"{path.name}: of what is outlined, what lies outside of the regions of interest has no label"
        )
    unknown = _area(shapely.difference(unknown, united([*inside, ignored])))
    return Outlines(path, inside[0], inside[1], ignored, unknown, region, found, tuple(warnings))


def _area(geometry: shapely.Geometry) -> shapely.Geometry:
    """What of a valid geometry has an area."""
    if shapely.get_type_id(geometry) in (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON):
        return geometry
    return united(list(polygons_of(geometry)))


def _smaller_on_top(
    idc: Sequence[shapely.Geometry], not_idc: Sequence[shapely.Geometry]
) -> tuple[shapely.Geometry, shapely.Geometry, int]:
    """The areas of both without what smaller outlines of the other kind take from them, and how many lose some."""
    lists = (list(idc), list(not_idc))
    apart, cut = [], 0
    for own, others in (lists, lists[::-1]):
        tree = shapely.STRtree(others)
        left = []
        for outline in own:
            on_top = [
                others[i]
                for i in tree.query(outline, predicate="intersects")
                if others[i].area < outline.area
            ]
            rest = shapely.difference(outline, united(on_top)) if on_top else outline
            cut += bool(rest.area < outline.area * (1 - 1e-9))
            left.append(rest)
        apart.append(united(left))
    # Of outlines of one size neither is on top: what both claim is nobody's.
    both = _area(shapely.intersection(*apart))
    if both.area > 0:
        cut, apart = cut + 1, [shapely.difference(area, both) for area in apart]
    return apart[0], apart[1], cut


def _ranked(
    idc: Sequence[shapely.Geometry], not_idc: Sequence[shapely.Geometry], idc_first: bool
) -> tuple[shapely.Geometry, shapely.Geometry, int]:
    """The areas of both without what the one that ranks first takes from the other, and how many of these lose some."""
    areas = [united(idc), united(not_idc)]
    first, second = (0, 1) if idc_first else (1, 0)
    on_top = areas[first]
    cut = sum(
        bool(_area(shapely.intersection(outline, on_top)).area > 1e-9 * outline.area)
        for outline in (not_idc if idc_first else idc)
    )
    areas[second] = shapely.difference(areas[second], on_top)
    return areas[0], areas[1], cut


@dataclass(frozen=True, eq=False)
class Inside:
    """Where on a slide a map is wanted: an area in level-0 pixels, from people's outlines."""

    path: Path
    area: shapely.Geometry
    outlines: int
    """How many make it."""

    warnings: tuple[str, ...] = ()
    """What of the file was passed over."""


def read_inside(
    path: Path, options: AnnotationOptions, size0: Size, origin0: tuple[float, float] = (0.0, 0.0)
) -> Inside:
    """The area within the file's regions of interest, or where it has none within all outlines of any class.

    What lies in ignored classes is left out. Raises DataError where the file is of no known form, holds broken
    outlines, or no area on the slide.
    """
    regions: list[shapely.Geometry] = []
    others: list[shapely.Geometry] = []
    ignored: list[shapely.Geometry] = []
    found, passed_over = Counter[str](), Counter[str]()
    kind_of = cache(options.kind_of)
    for parts, polygons, dropped in _objects(path):
        found[dropped or ": ".join(parts) or UNCLASSIFIED] += 1
        if dropped:
            passed_over[dropped] += 1
            continue
        kind = kind_of(tuple(parts) or (UNCLASSIFIED,))
        moved = shapely.transform(united(polygons), lambda xy: xy + np.asarray(origin0))
        {Kind.REGION: regions, Kind.IGNORED: ignored}.get(kind or Kind.IDC, others).append(moved)
    drawn = regions or others
    area = shapely.difference(united(drawn), united(ignored))
    area = _area(shapely.intersection(area, shapely.box(0, 0, size0.width, size0.height)))
    if not area.area:
        raise DataError(
            f"{path}: found {listed(found) or 'no objects'}, which leave no area on the slide; expected polygons on "
            f"it, {size0.width} x {size0.height} px, around what is to be mapped"
        )
    warnings = (
        (f"{path.name}: {listed(passed_over)} passed over: they outline nothing",) if passed_over else ()
    )
    return Inside(path, area, len(drawn), warnings)
