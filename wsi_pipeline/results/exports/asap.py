"""regions.asap.xml: regions and fields as ASAP's annotations, in level-0 pixels.

ASAP's polygons have no holes: a region's holes are polygons of a group of their own, which lies above the regions
when a mask is made.
"""

from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
import shapely

from wsi_pipeline.base.files import OutPath, write_bytes
from wsi_pipeline.base.text import printable
from wsi_pipeline.results.exports.exported_map import ExportedMap
from wsi_pipeline.results.geojson import field_outline

# Each group with its colour, in the order in which a mask lays them over each other.
IDC, HOLE, FIELD = "IDC", "Hole in IDC", "Grading field"
COLOURS = {IDC: "#c80000", HOLE: "#ffffff", FIELD: "#0072b2"}


def write_asap(path: OutPath, exported: ExportedMap) -> None:
    """Write the annotations. Raises OutputError."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for name, group, ring in _rings(exported):
        kind = {"Name": printable(name), "Type": "Polygon", "PartOfGroup": group, "Color": COLOURS[group]}
        coordinates = ElementTree.SubElement(
            ElementTree.SubElement(annotations, "Annotation", kind), "Coordinates"
        )
        for order, (x0, y0) in enumerate(np.asarray(ring.coords)[:-1]):  # ASAP closes polygons by itself
            place = {"Order": str(order), "X": f"{x0:.2f}", "Y": f"{y0:.2f}"}
            ElementTree.SubElement(coordinates, "Coordinate", place)
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    for name, colour in COLOURS.items():
        element = ElementTree.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=colour)
        ElementTree.SubElement(element, "Attributes")
    ElementTree.indent(root)
    write_bytes(path, ElementTree.tostring(root, "utf-8", xml_declaration=True))


def _rings(exported: ExportedMap) -> Iterator[tuple[str, str, shapely.LinearRing]]:
    """Each polygon to write: its name, group and ring."""
    for region in exported.finished.regions:
        parts = shapely.get_parts(region.polygon)
        for number, part in enumerate(parts, start=1):
            yield region.name if len(parts) == 1 else f"{region.name}, part {number}", IDC, part.exterior
        holes = [hole for part in parts for hole in part.interiors]
        for number, hole in enumerate(holes, start=1):
            yield f"{region.name}, hole {number}", HOLE, hole
    for field in exported.finished.fields:
        yield field.name, FIELD, field_outline(field).exterior
