"""The way from one slide's outlines to a network at 40x."""

import json
from pathlib import Path

import pytest
import shapely
from conftest import SHARED

from scripts.results.train_40x import TEST, TRAIN, halves, main
from wsi_pipeline.learning.training.options import load_train_options
from wsi_pipeline.models.model import load_model

SLIDE, OUTLINES = SHARED / "data/slides/breast_40x.svs", SHARED / "data/slides/breast_40x.geojson"


def test_each_outline_is_cut_at_its_middle_and_the_halves_do_not_overlap() -> None:
    polygons = [shapely.box(0, 0, 100, 40), shapely.Point(300, 300).buffer(50)]
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(polygon),
            "properties": {"classification": {"name": name}},
        }
        for polygon, name in zip(polygons, ("Tumor", "Stroma"), strict=True)
    ]
    found = halves({"type": "FeatureCollection", "features": features})
    areas = {
        side: [shapely.geometry.shape(each["geometry"]) for each in half["features"]]
        for side, half in found.items()
    }
    for left, right, whole in zip(areas[TRAIN], areas[TEST], polygons, strict=True):
        assert left.area == pytest.approx(whole.area / 2, rel=0.01)
        assert shapely.intersection(left, right).area < 1e-9
        assert shapely.union(left, right).symmetric_difference(whole).area < 1e-6
        assert left.centroid.x < right.centroid.x
    assert found[TEST]["features"][1]["properties"] == features[1]["properties"]


def test_the_config_tests_on_the_right_half_alone_and_chooses_no_epoch_on_it() -> None:
    options = load_train_options("train/idc_40x")
    assert options.split.val_patients == (TEST,)
    assert (options.patch_px, options.mpp, options.best_by) == (50, 0.25, "epoch")
    assert "One slide" in options.limits


@pytest.mark.slow
@pytest.mark.skipif(not SLIDE.exists(), reason="needs ../shared/data/slides/breast_40x.svs")
def test_a_network_of_the_left_halves_tells_tumour_from_stroma_in_the_right_ones(tmp_path: Path) -> None:
    coarse = "grid: {patch_px: 50, mpp: 0.25, stride_px: 200, min_tissue: 0.5}\n"
    assert main([str(SLIDE), str(OUTLINES), "--out", str(tmp_path), "--tiles", coarse]) >= 0.9
    card = load_model(tmp_path / "model/idc_40x.safetensors").card
    assert card.training["train"]["patients"] == card.training["val"]["patients"] == 1
    assert json.loads((tmp_path / "outlines/left.geojson").read_text())["type"] == "FeatureCollection"
