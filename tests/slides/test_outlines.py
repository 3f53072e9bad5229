"""Outlines as programs write them: each form is read to the same area, or refused with what was found."""

import gzip
import json
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import example, given
from hypothesis import strategies as st

from wsi_pipeline.base.errors import ConfigError, DataError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.base.options import options_from_dict
from wsi_pipeline.slides.annotations import json_objects, xml_outlines
from wsi_pipeline.slides.annotations.coverage import Cells, covered_share
from wsi_pipeline.slides.annotations.files import outlines_of
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, Outlines, listed, read_outlines

SIZE0 = Size(1000, 800)
RING = [[100, 100], [300, 100], [300, 200], [100, 200], [100, 100]]
POLYGON = {"type": "Polygon", "coordinates": [RING]}
OTHER = {"type": "Polygon", "coordinates": [[[x + 500, y] for x, y in RING]]}
LINE = {"type": "LineString", "coordinates": RING}
POINT = {"type": "Point", "coordinates": [5, 5]}
IDC = {"name": "IDC", "color": [200, 0, 0]}


def feature(geometry: Any, classification: Any = IDC, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"classification": classification, **properties},
    }


def collection(*features: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def read(tmp_path: Path, content: Any, options: AnnotationOptions | None = None) -> Outlines:
    file = tmp_path / "a.geojson"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_outlines(file, options or AnnotationOptions(), SIZE0)


@pytest.mark.parametrize(
    "classification",
    [
        {"name": "Tumor: IDC"},
        {"names": ["IDC", "Grade 3"], "color": [1, 2, 3]},
        {"names": ["Tumor"]},
        {"name": "Invasive ductal  carcinoma "},
        {"name": " idc "},
        {"name": "Tumor : grade 2"},
        "Tumor",
        ["Tumor", "IDC"],
    ],
)
def test_every_way_of_naming_the_class_is_understood(tmp_path: Path, classification: Any) -> None:
    assert read(tmp_path, collection(feature(POLYGON, classification))).idc.area == 20_000


def test_of_a_derived_class_the_last_part_that_is_known_decides(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        collection(feature(POLYGON, {"name": "Tumor: DCIS"}), feature(OTHER, {"names": ["DCIS", "IDC"]})),
    )
    assert found.not_idc.bounds == (100, 100, 300, 200)
    assert found.idc.bounds == (600, 100, 800, 200)
    options = AnnotationOptions(idc_classes=("Tumor: DCIS",), not_idc_classes=("DCIS",))
    assert read(tmp_path, collection(feature(POLYGON, {"name": "Tumor: DCIS"})), options).idc.area == 20_000


@pytest.mark.parametrize(
    "content",
    [
        [feature(POLYGON)],
        feature(POLYGON),
        b"\xef\xbb\xbf" + json.dumps(collection(feature(POLYGON))).encode(),
        json.dumps(collection(feature(POLYGON))).encode("utf-16"),
        gzip.compress(json.dumps(collection(feature(POLYGON))).encode(), mtime=0),
        collection(feature({"type": "MultiPolygon", "coordinates": [[RING]]})),
        collection(feature({"type": "GeometryCollection", "geometries": [POLYGON, LINE]})),
        collection(feature({"type": "Polygon", "coordinates": [RING[:4]]})),
        collection(feature({"type": "Polygon", "coordinates": [[[*point, 0.0] for point in RING]]})),
        collection(feature(POLYGON, measurements={"Area": float("nan")})),
    ],
)
def test_every_form_of_the_file_gives_the_same_area(tmp_path: Path, content: Any) -> None:
    found = read(tmp_path, content)
    assert (found.idc.area, found.warnings) == (20_000, ())


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (feature(None), "1 objects without a place"),
        ({"type": "Feature", "geometry": OTHER, "properties": None}, "1 unclassified"),
        ({"type": "Feature", "geometry": OTHER}, "1 unclassified"),
        (feature(OTHER, None), "1 unclassified"),
        (feature(LINE), "1 line"),
        (feature(POINT), "1 point"),
        (feature({"type": "Polygon", "coordinates": []}), "1 objects without an area"),
        (
            feature({"type": "Polygon", "coordinates": [[[1, 1], [2, 2], [1, 1]]]}),
            "1 objects without an area",
        ),
        (feature(OTHER, {"name": "Grading field"}), "1 of class 'Grading field'"),
        (feature(OTHER, objectType="cell"), "1 cell"),
        (feature({"type": "Polygon", "coordinates": [[[x + 5000, y] for x, y in RING]]}), "1 off the slide"),
    ],
)
def test_what_is_no_outline_among_outlines_is_passed_over_with_a_line(
    tmp_path: Path, odd: Any, said: str
) -> None:
    found = read(tmp_path, collection(feature(POLYGON), odd))
    assert found.idc.area == 20_000
    assert found.warnings == (f"a.geojson: {said} passed over: they label nothing",)
    with pytest.raises(DataError, match="of which none labels anything; expected polygons on the slide"):
        read(tmp_path, collection(odd, odd))


def test_a_bare_geometry_is_an_outline_without_a_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 1 unclassified, of which none"):
        read(tmp_path, POLYGON)
    options = AnnotationOptions(idc_classes=("unclassified",))
    assert read(tmp_path, POLYGON, options).idc.area == 20_000


def test_the_refusal_names_the_classes_with_their_counts(tmp_path: Path) -> None:
    wrong = [feature(POLYGON, {"name": "Invasive carcinoma"})] * 2 + [feature(POLYGON, {"name": "Necrosis"})]
    with pytest.raises(
        DataError, match=r"found 2 Invasive carcinoma, 1 Necrosis, of which none.*idc_classes"
    ):
        read(tmp_path, collection(*wrong))


@pytest.mark.parametrize(
    "broken",
    [
        feature({"type": "Polygon", "coordinates": [[["a", 1], [2, 2], [3, 1], ["a", 1]]]}),
        feature({"type": "Polygon", "coordinates": [[[float("nan"), 1], [5, 5], [1, 9], [float("nan"), 1]]]}),
        feature({"type": "Polygon", "coordinates": [[1, 2, 3, 1]]}),
        feature({"type": "Polygon", "coordinates": [[[1], [2], [3], [1]]]}),
        feature({"type": "Polygon", "coordinates": [[[i, i % 7] for i in range(500_001)]]}),
        feature({"type": "Curve"}),
        feature(3),
        feature(POLYGON, 7),
        5,
        None,
        feature({"type": "Polygon", "coordinates": [[[0, 0], [1e308, 0], [1e308, 1e308], [0, 0]]]}),
    ],
)
def test_a_broken_object_is_refused_by_its_number(tmp_path: Path, broken: Any) -> None:
    with pytest.raises(DataError, match=r"a\.geojson: object 2 is broken.*expected GeoJSON"):
        read(tmp_path, collection(feature(POLYGON), broken))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b'{"a": 1}',
        b'{"type": "Topology"}',
        b'{"type": "FeatureCollection", "features": null}',
        b"7",
        b"[" * 100_000,
        b"\x1f\x8b rubbish",
        json.dumps(collection(feature(POLYGON, {"name": "Tum\u00f6r"})), ensure_ascii=False).encode(
            "latin-1"
        ),
        gzip.compress(b"x" * 1000, mtime=0)[:-20],
        b'{"type": "Feature", "geometry": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_geojson_says_so(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.geojson: (object 1 is broken.*)?expected GeoJSON"):
        read(tmp_path, content)


OBJECTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@example([0.0, 1e30, -5, 1.5e-7], 4, "utf-8", None)
@example([0.0, 1e30, -5, 1.5e-7], 5, "utf-8", None)
@example([0.0, 1e30, -5, 1.5e-7], 6, "utf-8", None)
@given(
    st.lists(OBJECTS, max_size=4),
    st.integers(1, 40),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([None, 1]),
)
def test_objects_are_the_same_wherever_pieces_of_the_file_end(
    objects: list[Any], piece: int, encoding: str, indent: int | None
) -> None:
    collected = {"type": "FeatureCollection", "features": objects, "name": "\u00e9"}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_objects, "PIECE_BYTES", max(piece, 4))  # an encoding is known by four
        patch.setattr(json_objects, "_MARGIN", 12)
        file = Path(folder) / "a.geojson"
        for content in (objects, collected):
            file.write_bytes(
                json.dumps(content, indent=indent, ensure_ascii=False).encode(encoding, "surrogatepass")
            )
            assert list(json_objects.json_objects(file)) == objects


def test_a_file_of_many_objects_costs_the_memory_of_one(tmp_path: Path) -> None:
    file = tmp_path / "cells.geojson"
    one = json.dumps(feature(POLYGON, objectType="detection"))
    file.write_text(f'{{"type": "FeatureCollection", "features": [{", ".join([one] * 60_000)}]}}')
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_objects.json_objects(file)) == 60_000
        assert tracemalloc.get_traced_memory()[1] < 8e6 < file.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["one.geojson", "many.geojson", "a.xml"])
def test_files_beyond_their_bounds_are_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_objects, "PIECE_BYTES", 1000)
    monkeypatch.setattr(json_objects, "MAX_BYTES", 20_000)
    monkeypatch.setattr(json_objects, "MAX_OBJECT_CHARACTERS", 5000)
    monkeypatch.setattr(xml_outlines, "MAX_BYTES", 20_000)
    long = feature({"type": "Polygon", "coordinates": [RING * 100]})
    content = collection(*[long] if name == "one.geojson" else [feature(POLYGON)] * 200)
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"expected .*: (an object of )?more than [0-9,]+ (bytes|characters)"):
        read_outlines(tmp_path / name, AnnotationOptions(), SIZE0)


def test_of_outlines_that_overlap_the_smaller_one_counts_and_what_is_ignored_has_no_label(
    tmp_path: Path,
) -> None:
    inner = {"type": "Polygon", "coordinates": [[[150, 120], [200, 120], [200, 180], [150, 180], [150, 120]]]}
    found = read(tmp_path, collection(feature(POLYGON), feature(inner, {"name": "DCIS"})))
    assert (found.idc.area, found.not_idc.area) == (20_000 - 3_000, 3_000)
    assert "the smaller one counts" in found.warnings[0]
    turned = read(tmp_path, collection(feature(inner), feature(POLYGON, {"name": "Stroma"})))
    assert (turned.idc.area, turned.not_idc.area) == (3_000, 17_000)
    alike = read(tmp_path, collection(feature(POLYGON), feature(POLYGON, {"name": "Stroma"}), feature(OTHER)))
    assert (alike.idc.area, alike.not_idc.area) == (20_000, 0)
    ignored = read(tmp_path, collection(feature(POLYGON), feature(inner, {"name": "Ignore*"})))
    assert (ignored.idc.area, ignored.ignored.area) == (17_000, 3_000)


def test_a_class_in_two_lists_is_refused() -> None:
    with pytest.raises(ConfigError, match="'stroma' stands in two lists"):
        options_from_dict(AnnotationOptions, {"idc_classes": ["Stroma "]}, "c.yaml")


def test_counts_from_the_point_that_the_viewer_shows_first(tmp_path: Path) -> None:
    file = tmp_path / "a.geojson"
    file.write_text(json.dumps(collection(feature(POLYGON))))
    found = read_outlines(file, AnnotationOptions(), Size(9000, 9000), (3000, 2000))
    assert found.idc.bounds == (3100, 2100, 3300, 2200)


def test_the_shared_outlines_are_read(shared: Path) -> None:
    file = shared / "data/slides/breast_40x.geojson"
    outlines = read_outlines(file, AnnotationOptions(), Size(24_000, 24_000))
    assert outlines.idc.area > 1e6
    assert listed(outlines.found) == "2 Stroma, 2 Tumor"


@pytest.mark.parametrize("name", ["s.geojson", "s.svs.geojson", "s.geojson.gz", "s.GEOJSON"])
def test_outlines_are_found_under_each_of_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert outlines_of(tmp_path, Path("x/s.svs"), "s") == tmp_path / name
    assert outlines_of(tmp_path, Path("x/s.2.svs"), "s.2") is None


def test_a_slide_that_a_list_names_has_the_outlines_of_that_name_alone(tmp_path: Path) -> None:
    (tmp_path / "s.svs.geojson").touch()
    assert outlines_of(tmp_path, Path("x/s.svs"), "other") is None
    (tmp_path / "s.geojson").touch()
    with pytest.raises(DataError, match=r"two files of outlines, s\.geojson and s\.svs\.geojson"):
        outlines_of(tmp_path, Path("x/s.svs"), "s")


def blob(rng: np.random.Generator, corners: int, centre: Any, radius: float) -> shapely.Geometry:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    r = radius * (1 + 0.1 * np.sin(7 * angle) + 0.02 * rng.normal(size=corners))
    points = np.stack([centre[0] + r * np.cos(angle), centre[1] + r * np.sin(angle)], axis=1)
    return shapely.make_valid(shapely.Polygon(points))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 25),
    st.integers(1, 25),
    st.sampled_from([0.5, 1.0, 1.37, 2.0, 3.0]),
)
def test_the_share_of_each_cell_is_that_of_a_polygon_cut_with_it(
    seed: int, columns: int, rows: int, stride: float
) -> None:
    rng = np.random.default_rng(seed)
    blobs = [
        blob(rng, int(rng.integers(3, 60)), rng.uniform(0, 500, 2), rng.uniform(5, 200)) for _ in range(4)
    ]
    outlines = shapely.difference(shapely.union_all(blobs[:3]), blobs[3])
    plane = Plane(*rng.uniform(0.5, 30, 2), *rng.uniform(-50, 50, 2))
    cells = Cells(plane, columns, rows, side=2.0, stride=stride * 2.0)
    down, across = np.indices(cells.shape)
    left = plane.origin_x0 + across * cells.stride * plane.downsample_x
    top = plane.origin_y0 + down * cells.stride * plane.downsample_y
    boxes = shapely.box(left, top, left + 2 * plane.downsample_x, top + 2 * plane.downsample_y)
    expected = shapely.area(shapely.intersection(boxes, outlines)) / shapely.area(boxes)
    assert np.abs(covered_share(outlines, cells) - expected).max() < 1e-6


def test_a_hundred_thousand_corners_over_six_hundred_thousand_cells_take_seconds() -> None:
    rng = np.random.default_rng(0)
    outlines = blob(rng, 100_000, (50_000, 50_000), 30_000)
    cells = Cells(Plane(1, 1), 775, 775, side=100_000 / 775, stride=100_000 / 775)
    began = time.process_time()
    share = covered_share(outlines, cells)
    assert time.process_time() - began < 20
    assert share.sum() * cells.side**2 == pytest.approx(outlines.area, rel=1e-9)
