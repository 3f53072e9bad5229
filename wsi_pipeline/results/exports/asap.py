"""regions.asap.xml: regions and fields as ASAP's annotations, in level-0 pixels.

ASAP's polygons have no holes: a region's holes are polygons of a group of their own, which lies above the regions
when a mask is made.
"""

from collections.abc import Iterator
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely

from wsi_pipeline.base.files import OutPath, write_bytes
from wsi_pipeline.base.text import printable
from wsi_pipeline.results.exports.exported_map import ExportedMap
from wsi_pipeline.results.geojson import field_outline, whole_numbers

# Each group with its colour, in the order in which a mask lays them over each other.
IDC, HOLE, FIELD = "IDC", "Hole in IDC", "Grading field"
COLOURS = {IDC: "#c80000", HOLE: "#ffffff", FIELD: "#0072b2"}


def write_asap(path: OutPath, exported: ExportedMap) -> None:
    """Write the annotations. Raises OutputError."""
    # As text: a million points as elements take ten times as long, and a gigabyte.
    lines = ["<?xml version='1.0' encoding='utf-8'?>", "<ASAP_Annotations>", "  <Annotations>"]
    for name, group, ring in _rings(exported):
        kind = f'Type="Polygon" PartOfGroup={quoteattr(group)} Color={quoteattr(COLOURS[group])}'
        lines += [f"    <Annotation Name={quoteattr(printable(name))} {kind}>", "      <Coordinates>"]
        # ASAP closes polygons by itself.
        points = whole_numbers(np.round(shapely.get_coordinates(ring)[:-1], 2))
        lines += [
            f'        <Coordinate Order="{order}" X="{x0}" Y="{y0}" />'
            for order, (x0, y0) in enumerate(points)
        ]
        lines += ["      </Coordinates>", "    </Annotation>"]
    lines += ["  </Annotations>", "  <AnnotationGroups>"]
    for name, colour in COLOURS.items():
        lines.append(f'    <Group Name={quoteattr(name)} PartOfGroup="None" Color={quoteattr(colour)}>')
        lines += ["      <Attributes />", "    </Group>"]
    lines += ["  </AnnotationGroups>", "</ASAP_Annotations>"]
    write_bytes(path, "\n".join(lines).encode())


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
