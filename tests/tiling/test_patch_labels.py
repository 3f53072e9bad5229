import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, read_outlines
from wsi_pipeline.tiling.grid import Grid, Plan
from wsi_pipeline.tiling.patch_labels import label_patches


def feature(polygon: shapely.Polygon, name: str) -> dict[str, object]:
    return {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(polygon),
        "properties": {"classification": {"name": name}},
    }


def test_patches_half_under_an_outline_are_idc(tmp_path: Path) -> None:
    grid = Grid(Plane(2, 2, 10, 0), 50, 50, columns=4, rows=2)
    kept = np.ones((2, 4), np.bool_)
    kept[0, 0] = False
    plan = Plan(grid, kept.astype(np.float32), kept, ~kept, 8)
    file = tmp_path / "a.geojson"
    outline = feature(shapely.box(160, 0, 310, 100), "tumor")  # level 0: half of column 1, all of column 2
    other = feature(shapely.box(0, 100, 500, 200), "Stroma")
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [outline, other]}))
    labels = label_patches(plan, read_outlines(file, AnnotationOptions()), AnnotationOptions())
    assert labels.tolist() == [1, 1, 0, 0, 0, 0, 0]


def test_a_file_without_idc_outlines_labels_nothing_idc(tmp_path: Path) -> None:
    kept = np.ones((1, 2), np.bool_)
    plan = Plan(Grid(Plane(1, 1), 50, 50, 2, 1), kept.astype(np.float32), kept, ~kept, 8)
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    outlines = read_outlines(tmp_path / "a.geojson", AnnotationOptions())
    assert label_patches(plan, outlines, AnnotationOptions()).tolist() == [0, 0]


@pytest.mark.parametrize(
    "text", ["", "[", '{"a": 1}', '[{"geometry": 3, "properties": {"classification": {"name": "IDC"}}}]']
)
def test_what_is_no_geojson_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "wrong.geojson").write_text(text)
    with pytest.raises(DataError, match=r"wrong\.geojson: expected GeoJSON"):
        read_outlines(tmp_path / "wrong.geojson", AnnotationOptions())


def test_the_shared_outlines_are_read(shared: Path) -> None:
    outlines = read_outlines(shared / "data/slides/breast_40x.geojson", AnnotationOptions())
    assert outlines.area > 1e6
    assert outlines.bounds[2] <= 24_000
