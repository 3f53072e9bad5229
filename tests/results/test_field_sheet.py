import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import write_slide
from models import brightness_model
from PIL import Image
from test_nuclei import scene

import wsi_pipeline as wp
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.pipeline.fields import fields_of, write_fields
from wsi_pipeline.results.fields import FieldOptions
from wsi_pipeline.results.figures.field_sheet import (
    _lines,
    _words,
    read_field,
    sheet_mpp,
    write_field_sheet,
)
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.regions import DelineateOptions, delineate
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.grid import GridOptions
from wsi_pipeline.tiling.overview import OverviewOptions, make_overview

GRID = GridOptions(patch_px=50, mpp=4.0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory):
    """A slide of 1.5 mm at 0.5 um per pixel, its overview, and a map that says carcinoma everywhere."""
    folder = tmp_path_factory.mktemp("slide")
    image = np.full((3000, 3000, 3), 243, np.uint8)
    image[100:2900, 100:2900] = np.tile(scene()[0], (3, 3, 1))[:2800, :2800]
    slide = open_slide(write_slide(folder / "a.tiff", image))
    overview = make_overview(slide, OverviewOptions(), GRID)
    heatmap = np.full((8, 8), 0.9, np.float32)
    plane = overview.plan.grid.map_plane
    regions = delineate(heatmap, plane, slide.mpp, 0.5, DelineateOptions())
    finished = FinishedMap(heatmap, plane, "each patch alone", 0.5, regions, {})
    return slide, overview, finished


def test_a_slide_that_shows_nuclei_has_fields_by_them_and_a_sheet_and_crops(drawn, tmp_path: Path):
    slide, overview, finished = drawn
    options = FieldOptions(count=4, crops_mpp=1.0)
    choice = fields_of(slide, overview, finished.heatmap, finished.plane, finished.regions, options)
    assert len(choice.fields) == 4
    assert choice.cellularity is not None
    drawn_per_mm2 = len(scene()[1]) / 0.25
    for field in choice.fields:
        assert field.nuclei_per_mm2 == pytest.approx(0.9 * drawn_per_mm2, rel=0.1)
        assert field.usable_mm2 >= 0.9 * 0.2376
    finished = replace(finished, choice=choice)
    write_fields(tmp_path, slide, overview, finished, options)
    with Image.open(tmp_path / "fields.png") as sheet:
        assert sheet.info["mpp"] == "0.5"
        assert sheet.width >= 4 * 1100
        assert (tmp_path / "fields.png").stat().st_size < 20e6
    crops = sorted(path.name for path in (tmp_path / "fields").iterdir())
    assert crops == [f"field_{n:02d}.png" for n in range(1, 5)]
    with Image.open(tmp_path / "fields" / crops[0]) as crop:
        assert crop.size == (583, 583)
        expected = read_field(slide, choice.fields[0], 1.0)
        assert np.array_equal(np.asarray(crop), expected)
    root = zarr.open_group(tmp_path / "cellularity.zarr", mode="r")
    stored = root["0"][...]
    assert np.array_equal(stored, choice.cellularity.per_mm2(slide.mpp), equal_nan=True)
    (transforms,) = (d["coordinateTransformations"] for d in root.attrs["ome"]["multiscales"][0]["datasets"])
    plane = choice.cellularity.plane
    assert transforms[0]["scale"] == [plane.downsample_y * 0.5, plane.downsample_x * 0.5]
    none = FieldOptions(count=0)
    write_fields(tmp_path, slide, overview, finished, none)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fields", [0, 1, 4])
def test_the_sheet_says_what_there_is_and_cuts_no_words(drawn, tmp_path: Path, fields: int):
    slide, overview, finished = drawn
    options = FieldOptions(count=4)
    choice = fields_of(slide, overview, finished.heatmap, finished.plane, finished.regions, options)
    finished = replace(finished, choice=replace(choice, fields=choice.fields[:fields]))
    words = _words(slide, finished, 0.55, 0.5)
    said = " ".join(word.text for word in words)
    assert ("10" in said, "mm2" in said, "1 fields" in said) == (False, False, False)
    assert {0: "No field found room", 1: "1 field, 0.55 mm", 4: "4 fields, 0.55 mm"}[fields] in said
    assert ("no score of one field alone" in said) == (fields == 1)
    assert ("in 4 fields of 0.55 mm, 0.95 mm²: score 1: up to 3" in said) == (fields == 4)
    # No hot spot of 2 mm2, for there is less carcinoma: its line has no sign in the picture.
    assert [word.sign for word in words if word.sign][-3:] == ["hot spot", "region", "nuclei"]
    width, size = 300, 17
    for word in words:
        assert "".join(_lines(word, width, size)).replace(" ", "") == word.text.replace(" ", "")
    write_field_sheet(tmp_path / "fields.png", slide, overview.thumbnail, finished, 0.55)
    with Image.open(tmp_path / "fields.png") as sheet:
        letters = np.asarray(sheet.convert("L")) < 90
    # All words stand before the fields begin, and none at the right edge.
    assert not letters[: sheet.height // 4, -20:].any()


def test_a_field_is_shown_where_it_lies_at_its_true_scale(drawn):
    slide, overview, finished = drawn
    choice = fields_of(
        slide, overview, finished.heatmap, finished.plane, finished.regions, FieldOptions(count=1)
    )
    (field,) = choice.fields
    shown = read_field(slide, field, 0.5)
    left, top = round(field.x0 - shown.shape[1] / 2), round(field.y0 - shown.shape[0] / 2)
    whole = slide.read(wp.Box(0, 0, 3000, 3000), Plane(1, 1))
    assert np.array_equal(shown, whole[top : top + shown.shape[0], left : left + shown.shape[1]])


def test_wide_fields_are_shown_coarser_and_coarse_slides_no_finer_than_they_are(drawn, tmp_path: Path):
    slide, _, _ = drawn
    assert sheet_mpp(slide, 0.55) == 0.5
    assert sheet_mpp(slide, 5.0) > 3
    with open_slide(write_slide(tmp_path / "b.tiff", scene()[0], mpp=(4.0, 4.0))) as coarse:
        assert 1 < sheet_mpp(coarse, 0.55) <= 4.0


def test_where_nuclei_cannot_be_counted_it_is_said_and_fields_are_chosen_by_probability(tmp_path: Path):
    rng = np.random.default_rng(0)
    image = np.full((1000, 1000, 3), 243, np.uint8)
    image[100:900, 100:900] = rng.integers(150, 200, (800, 800, 3)) - np.array([0, 60, 0])
    path = write_slide(tmp_path / "a.tiff", image, mpp=(4.0, 4.0))
    result = wp.infer_slide(path, tmp_path, model=brightness_model(threshold=0.3), device="cpu")
    assert result.fields
    assert all(field.nuclei_per_mm2 is None for field in result.fields)
    said = [w for w in result.summary["warnings"] if "chosen by probability and tissue alone" in w]
    assert len(said) == 1
    assert "the slide has 4 um per pixel" in said[0]
    assert result.summary["fields"]["mitoses"]["score3_from"] == 18
    assert not (result.folder / "cellularity.zarr").exists()
    collection = json.loads((result.folder / "regions.geojson").read_text())
    classes = {feature["properties"]["classification"]["name"] for feature in collection["features"]}
    assert classes == {"IDC", "Grading field", "Hot spot"}
