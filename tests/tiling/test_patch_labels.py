import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.results.summary import count
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, Outlines, read_outlines
from wsi_pipeline.tiling.grid import Grid, Plan
from wsi_pipeline.tiling.patch_labels import label_patches, rejected_labels

SIZE0 = Size(1000, 1000)


def saved(path: Path, *outlines: tuple[shapely.Polygon, str]) -> Path:
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(polygon),
            "properties": {"classification": {"name": name}},
        }
        for polygon, name in outlines
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def read(path: Path, options: AnnotationOptions | None = None) -> Outlines:
    return read_outlines(path, options or AnnotationOptions(), SIZE0)


def plan(plane: Plane, columns: int, rows: int, stride: int = 50) -> Plan:
    kept = np.ones((rows, columns), np.bool_)
    return Plan(Grid(plane, 50, stride, columns, rows), kept.astype(np.float32), kept, ~kept, 8)


def test_patches_are_labelled_by_what_half_of_them_lies_under_and_else_not_at_all(tmp_path: Path) -> None:
    found = plan(Plane(2, 2, 10, 0), 4, 2)
    found.kept[0, 0] = False
    outlines = read(
        saved(
            tmp_path / "a.geojson",
            (shapely.box(160, 0, 310, 100), "tumor"),  # level 0: half of column 1, all of column 2
            (shapely.box(0, 100, 200, 200), "Stroma"),
            (shapely.box(210, 100, 300, 149), "Stroma"),
        )
    )
    assert label_patches(found, outlines, AnnotationOptions()).tolist() == [1, 1, -1, 0, 0, -1, -1]


def test_labels_on_artefacts_are_not_counted_and_said_to_be_left_out(tmp_path: Path) -> None:
    found = plan(Plane(1, 1), 4, 1)
    found.kept[0, 0] = False
    file = saved(
        tmp_path / "a.geojson", (shapely.box(50, 0, 150, 50), "IDC"), (shapely.box(150, 0, 200, 50), "Stroma")
    )
    labels = label_patches(found, read(file), AnnotationOptions())
    assert labels.tolist() == [1, 1, 0]
    assert rejected_labels(found, labels) == ""
    found.rejected[0, 1:] = (False, True, True)
    assert count(found, None, labels)["labels"] == {"idc": 1, "not_idc": 0, "unlabelled": 0}
    assert rejected_labels(found, labels) == (
        "patches on artefacts are left out, and their labels with them: 1 of 2 labelled IDC, 1 of 1 labelled not IDC"
    )


def test_where_the_slide_is_annotated_throughout_all_else_is_not_idc(tmp_path: Path) -> None:
    options = AnnotationOptions(annotated_throughout=True)
    outlines = read(
        saved(
            tmp_path / "a.geojson",
            (shapely.box(0, 0, 50, 50), "IDC"),
            (shapely.box(50, 0, 99, 50), "Ignore*"),
        ),
        options,
    )
    assert label_patches(plan(Plane(1, 1), 3, 2), outlines, options).tolist() == [1, -1, 0, 0, 0, 0]


def test_what_lies_in_an_outline_of_an_unknown_class_is_not_taken_for_not_idc(tmp_path: Path) -> None:
    options = AnnotationOptions(annotated_throughout=True)
    whole, inner = shapely.box(0, 0, 100, 50), shapely.box(0, 0, 50, 50)
    outlines = read(saved(tmp_path / "a.geojson", (whole, "Invasive carcinoma"), (inner, "IDC")), options)
    assert label_patches(plan(Plane(1, 1), 3, 1), outlines, options).tolist() == [1, -1, 0]


def test_outside_of_a_region_of_interest_nothing_is_labelled(tmp_path: Path) -> None:
    file = saved(
        tmp_path / "a.geojson",
        (shapely.box(0, 0, 50, 50), "IDC"),
        (shapely.box(100, 0, 150, 50), "IDC"),
        (shapely.box(0, 0, 100, 50), "Region*"),
    )
    found = plan(Plane(1, 1), 3, 2)
    throughout = AnnotationOptions(annotated_throughout=True)
    assert label_patches(found, read(file), AnnotationOptions()).tolist() == [1, -1, -1, -1, -1, -1]
    assert label_patches(found, read(file, throughout), throughout).tolist() == [1, 0, -1, -1, -1, -1]
    assert "outside of the regions of interest" in read(file).warnings[0]


def test_a_file_without_objects_labels_nothing_unless_the_slide_is_annotated_throughout(
    tmp_path: Path,
) -> None:
    outlines, found = read(saved(tmp_path / "a.geojson")), plan(Plane(1, 1), 2, 1)
    assert label_patches(found, outlines, AnnotationOptions()).tolist() == [-1, -1]
    assert label_patches(found, outlines, AnnotationOptions(annotated_throughout=True)).tolist() == [0, 0]


def test_outlines_that_label_no_patch_are_refused(tmp_path: Path) -> None:
    outlines = read(saved(tmp_path / "a.geojson", (shapely.box(500, 500, 700, 700), "IDC")))
    with pytest.raises(DataError, match=r"a\.geojson: found 1 IDC, which label none of the 2 patches"):
        label_patches(plan(Plane(1, 1), 2, 1), outlines, AnnotationOptions())


def test_patches_that_overlap_are_each_labelled_by_their_own_area(tmp_path: Path) -> None:
    outlines = read(saved(tmp_path / "a.geojson", (shapely.box(0, 0, 50, 50), "IDC")))
    labels = label_patches(plan(Plane(1, 1), 4, 1, stride=10), outlines, AnnotationOptions(min_share=0.75))
    assert labels.tolist() == [1, 1, -1, -1]


@pytest.mark.parametrize(
    ("overlap", "idc", "not_idc"),
    [("smaller", 90_000, 30_000), ("idc", 100_000, 20_000), ("not_idc", 90_000, 30_000)],
)
def test_where_outlines_overlap_the_config_ranks_them(
    tmp_path: Path, overlap: str, idc: int, not_idc: int
) -> None:
    big, small = shapely.box(0, 0, 500, 200), shapely.box(400, 0, 700, 100)
    file = saved(tmp_path / "a.geojson", (big, "Tumor"), (small, "Stroma"))
    found = read(file, AnnotationOptions(overlap=overlap))  # type: ignore[arg-type]
    assert (found.idc.area, found.not_idc.area) == (idc, not_idc)
    assert "overlap" in found.warnings[0]


def test_outlines_that_overlap_are_refused_where_the_config_says_so(tmp_path: Path) -> None:
    refuse = AnnotationOptions(overlap="refuse")
    boxes = (shapely.box(0, 0, 500, 200), "Tumor"), (shapely.box(400, 0, 700, 100), "Stroma")
    with pytest.raises(
        DataError, match=r"found outlines of IDC and of what is not that overlap \(1 outline\)"
    ):
        read(saved(tmp_path / "a.geojson", *boxes), refuse)
    apart = (shapely.box(0, 0, 400, 200), "Tumor"), (shapely.box(400, 0, 700, 100), "Stroma")
    assert not read(saved(tmp_path / "b.geojson", *apart), refuse).warnings
