"""Outlines as ASAP and ImageScope write them: the areas and classes that those programs show, or a refusal."""

import time
from pathlib import Path

import numpy as np
import pytest
import shapely

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.slides.annotations.cell_labels import outlines_on_slide
from wsi_pipeline.slides.annotations.files import outlines_of
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, Outlines, read_outlines
from wsi_pipeline.tiling.grid import Grid, Plan
from wsi_pipeline.tiling.patch_labels import label_patches

SIZE0 = Size(1000, 800)
OUTER, HOLE, ISLAND = (
    shapely.box(100, 100, 500, 500),
    shapely.box(200, 200, 400, 400),
    shapely.box(250, 250, 300, 300),
)


def asap(*drawn: tuple[shapely.Polygon, str], kind: str = "Polygon", groups: str = "") -> str:
    annotations = []
    for polygon, group in drawn:
        points = list(enumerate(polygon.exterior.coords[:-1]))
        corners = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in reversed(points))
        annotations.append(
            f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}">'
            f"<Coordinates>{corners}</Coordinates></Annotation>"
        )
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(annotations)}</Annotations>'
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )


def imagescope(
    layer: str, *drawn: tuple[shapely.Polygon, str], negative: tuple[int, ...] = (), kind: int = 0
) -> str:
    regions = []
    for number, (polygon, text) in enumerate(drawn):
        corners = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in polygon.exterior.coords[:-1])
        regions.append(
            f'<Region Id="{number}" Type="{kind}" Text="{text}" NegativeROA="{int(number in negative)}">'
            f"<Vertices>{corners}</Vertices></Region>"
        )
    return (
        f'<Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="{layer}"><Regions>{"".join(regions)}</Regions>'
        "</Annotation></Annotations>"
    )


def read(tmp_path: Path, content: str, options: AnnotationOptions | None = None) -> Outlines:
    file = tmp_path / "a.xml"
    file.write_text(content)
    return read_outlines(file, options or AnnotationOptions(), SIZE0)


def test_asap_groups_are_classes_and_the_smaller_outline_lies_on_top(tmp_path: Path) -> None:
    found = read(tmp_path, asap((OUTER, "Tumor"), (HOLE, "Stroma"), (ISLAND, "tumor"), (OUTER, "None")))
    assert found.idc.equals(OUTER - HOLE | ISLAND)
    assert found.not_idc.equals(HOLE - ISLAND)
    assert dict(found.found) == {"Tumor": 1, "Stroma": 1, "tumor": 1, "unclassified": 1}


def test_an_asap_group_within_a_group_is_a_derived_class(tmp_path: Path) -> None:
    inner, outer = '<Group Name="G3" PartOfGroup="Tumor" />', '<Group Name="Tumor" PartOfGroup="None" />'
    found = read(tmp_path, asap((OUTER, "G3"), groups=inner + outer))
    assert found.idc.equals(OUTER)
    assert dict(found.found) == {"Tumor: G3": 1}
    circle = '<Group Name="A" PartOfGroup="B" /><Group Name="B" PartOfGroup="A" />'
    with pytest.raises(DataError, match="found 1 B: A, of which none labels anything"):
        read(tmp_path, asap((OUTER, "A"), groups=circle))


def test_an_imagescope_negative_region_is_a_hole_in_larger_ones_alone(tmp_path: Path) -> None:
    drawn = (OUTER, ""), (HOLE, ""), (ISLAND, "")
    assert read(tmp_path, imagescope("IDC", *drawn, negative=(1,))).idc.equals(OUTER - HOLE | ISLAND)
    apart = (OUTER, ""), (shapely.box(600, 600, 700, 700), "")
    found = read(tmp_path, imagescope("IDC", *apart, negative=(1,)))
    assert found.idc.equals(OUTER)
    assert found.warnings == ("a.xml: 1 negative region in no larger one passed over: they label nothing",)


def test_of_an_imagescope_region_layer_and_text_name_the_class(tmp_path: Path) -> None:
    found = read(tmp_path, imagescope("Layer 1", (OUTER, "Tumor"), (shapely.box(600, 0, 700, 50), "Stroma")))
    assert (found.idc.area, found.not_idc.area) == (160_000, 5_000)


@pytest.mark.parametrize("kind", ["Dot", "PointSet", "Measurement"])
def test_marks_of_asap_are_passed_over_with_a_line(tmp_path: Path, kind: str) -> None:
    both = asap((HOLE, "Tumor"), (OUTER, "Tumor"))
    head, _, tail = both.rpartition('Type="Polygon"')
    found = read(tmp_path, f'{head}Type="{kind}"{tail}')
    assert found.idc.equals(HOLE)
    assert "passed over: they label nothing" in found.warnings[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (asap((OUTER, "Tumor"), kind="Spline"), "object 1 is a spline; draw it as a polygon"),
        (imagescope("IDC", (OUTER, ""), kind=2), "object 1 is an ellipse; draw it as a polygon"),
        (imagescope("IDC", (OUTER, ""), kind=9), "object 1 is a shape of type '9'"),
        (asap((OUTER, "Tumor")).replace('X="100.0"', 'X="100,0"'), "object 1 is broken"),
        (asap((OUTER, "Tumor"))[:-9], "expected XML as ASAP or ImageScope writes it"),
        ("<DataObject/>", "found <DataObject>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><Annotations>&b;</Annotations>', "DTDForbidden"),
        ("", "no element found"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_was_found(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, content)


def test_xml_is_found_by_the_slides_name_and_beside_geojson_refused(tmp_path: Path) -> None:
    (tmp_path / "s.xml").write_text(asap((OUTER, "Tumor")))
    assert outlines_of(tmp_path, Path("s.svs"), "s") == tmp_path / "s.xml"
    (tmp_path / "s.geojson").write_text("[]")
    with pytest.raises(DataError, match="found two files of outlines"):
        outlines_of(tmp_path, Path("s.svs"), "s")


def test_xml_counts_from_the_corner_of_the_slide_where_qupath_would_not(tmp_path: Path) -> None:
    bounds = {f"openslide.bounds-{key}": "50" for key in ("x", "y", "width", "height")}

    class Cut:
        size0 = SIZE0
        properties = bounds

    file = tmp_path / "a.xml"
    file.write_text(asap((OUTER, "Tumor")))
    assert outlines_on_slide(file, Cut(), AnnotationOptions()).idc.equals(OUTER)  # type: ignore[arg-type]


def test_outlines_of_100_000_vertices_label_600_000_patches_in_seconds(tmp_path: Path) -> None:
    turn = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radius = 15_000 + 3_000 * np.sin(40 * turn)
    star = shapely.Polygon(np.c_[20_000 + radius * np.cos(turn), 20_000 + radius * np.sin(turn)])
    file = tmp_path / "a.xml"
    file.write_text(asap((star, "Tumor"), (shapely.box(0, 0, 900, 900), "Stroma")))
    kept = np.ones((775, 775), np.bool_)
    plan = Plan(Grid(Plane(1, 1), 50, 50, 775, 775), kept.astype(np.float32), kept, ~kept, 8)
    start = time.process_time()
    labels = label_patches(
        plan, read_outlines(file, AnnotationOptions(), Size(40_000, 40_000)), AnnotationOptions()
    )
    assert time.process_time() - start < 20
    assert abs((labels == 1).sum() * 2500 / star.area - 1) < 0.001
