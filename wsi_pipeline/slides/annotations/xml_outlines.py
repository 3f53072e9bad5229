"""Outlines as ASAP and Aperio ImageScope write them (XML), given as features of GeoJSON, which then are read alike.

Both count pixels of the full resolution from the corner of the whole slide. Entities and document types, by which XML
can swell or name other files, are refused.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import shapely
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from wsi_pipeline.slides.annotations.coverage import united

# What each type of annotation is in GeoJSON. Of the others (curves) what they enclose is not known from their points.
ASAP_TYPES = {
    "Polygon": "Polygon",
    "Rectangle": "Polygon",
    "Dot": "MultiPoint",
    "PointSet": "MultiPoint",
    "Measurement": "LineString",
}
IMAGESCOPE_TYPES = {"0": "Polygon", "1": "Polygon", "3": "LineString", "4": "LineString"}
CURVES = {"Spline": "a spline", "2": "an ellipse"}

# Some million points; held as elements of XML they need five times as much.
MAX_BYTES = 2**26

Points = list[tuple[float, float]]


def xml_features(path: Path) -> Iterator[dict[str, Any]]:
    """Each annotation of an ASAP or ImageScope file, as a feature of GeoJSON in level-0 pixels of the whole slide.

    Raises OSError, or ValueError where it is another or too large a file, or holds a shape that cannot be told from
    its points.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    try:
        root = fromstring(data, forbid_dtd=True)
    except (ParseError, DefusedXmlException) as error:
        raise ValueError(str(error) or repr(error)) from error
    if root.tag == "ASAP_Annotations":
        return _of_asap(root)
    if root.tag == "Annotations":
        return _of_imagescope(root)
    raise ValueError(f"found <{root.tag}>, not <ASAP_Annotations> or <Annotations>")


def _of_asap(root: Element) -> Iterator[dict[str, Any]]:
    """The class is the group, with the groups that it lies in; "None" is ASAP's word for none."""
    parents = {group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iter("Group")}
    for number, annotation in enumerate(root.iter("Annotation"), 1):
        names: list[str] = []
        group = annotation.get("PartOfGroup", "None")
        while group not in ("None", "") and group not in names:
            names.insert(0, group)
            group = parents.get(group, "None")
        kind = _kind(ASAP_TYPES, annotation.get("Type", ""), number)
        corners = sorted(annotation.iter("Coordinate"), key=lambda each: float(each.get("Order", 0)))
        yield _feature(_geometry(kind, _points(corners, number)), names)


def _of_imagescope(root: Element) -> Iterator[dict[str, Any]]:
    """The class is the name of the layer, then the text of the region; a negative region is a hole in larger ones."""
    number = 0
    for layer in root.iter("Annotation"):
        drawn: list[tuple[str, str, Points]] = []
        holes: list[shapely.Geometry] = []
        for region in layer.iter("Region"):
            number += 1
            kind = _kind(IMAGESCOPE_TYPES, region.get("Type", "0"), number)
            points = _points(region.iter("Vertex"), number)
            if region.get("NegativeROA", "0") == "0":
                drawn.append((region.get("Text", ""), kind, points))
            elif kind == "Polygon" and len(points) >= 3:
                holes.append(shapely.make_valid(shapely.Polygon(points)))
        tree, used = shapely.STRtree(holes), set[int]()
        for text, kind, points in drawn:
            geometry = _geometry(kind, points)
            if kind == "Polygon" and len(points) >= 3 and holes:
                outline = shapely.make_valid(shapely.Polygon(points))
                inside = [
                    i for i in tree.query(outline, predicate="intersects") if holes[i].area < outline.area
                ]
                used.update(inside)
                cut = shapely.difference(outline, united([holes[i] for i in inside]))
                geometry = shapely.geometry.mapping(cut) if inside else geometry
            yield _feature(geometry, [layer.get("Name", ""), text])
        for _ in range(len(holes) - len(used)):
            yield _feature(None, [layer.get("Name", "")], "hole")


def _kind(types: dict[str, str], name: str, number: int) -> str:
    if name not in types:
        found = CURVES.get(name, f"a shape of type '{name}'")
        raise ValueError(f"object {number} is {found}; draw it as a polygon")
    return types[name]


def _points(elements: Any, number: int) -> Points:
    try:
        return [(float(each.attrib["X"]), float(each.attrib["Y"])) for each in elements]
    except (KeyError, ValueError) as error:
        raise ValueError(f"object {number} is broken ({error!r}); export it again") from error


def _geometry(kind: str, points: Points) -> dict[str, Any]:
    return {"type": kind, "coordinates": [points] if kind == "Polygon" else points}


def _feature(geometry: Any, names: Sequence[str], object_type: str = "annotation") -> dict[str, Any]:
    known = [name for name in names if name.strip()]
    properties = {"classification": {"names": known}, "objectType": object_type}
    return {"type": "Feature", "geometry": geometry, "properties": properties}
