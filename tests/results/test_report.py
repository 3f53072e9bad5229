import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import scipy.ndimage
from test_maps import MPP0, pixels, slide_of

from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.results.fields import choose_fields
from wsi_pipeline.results.figures.maps import render_overlay
from wsi_pipeline.results.figures.palette import colour, sample
from wsi_pipeline.results.figures.report import ReportInfo, Uncertainty, info_rows, render_report
from wsi_pipeline.results.regions import DelineateOptions, delineate

SLIDES = Path(os.environ.get("WSI_SHARED", "../shared")) / "data" / "slides"
FACTS = ReportInfo(
    slide_name="section.svs",
    size0=Size(24_000, 16_000),
    mpp_overridden=False,
    models=[("made up", "0123456789abcdef" * 4)],
    map_kind="each patch alone",
    threshold=0.5,
    patch_px=50,
    patch_mpp=4.0,
    scored=600,
    rejected=2,
    unreadable=1,
    tissue_mm2=24.0,
    idc_mm2=1.0,
    uncertainty=None,
    warnings=[],
    version="0.0",
    date="2020-01-01",
)


def report(path: Path, heatmap: np.ndarray, info: ReportInfo = FACTS, least_mm2: float = 0.1) -> np.ndarray:
    """A report of a made slide under the map, its cells 200 um; a warning fails the test (missing glyphs)."""
    cells = Plane(800.0, 800.0)
    rows, columns = heatmap.shape
    step = max(1, round(max(rows, columns) * 800 / 600))
    thumbnail = slide_of(max(1, columns * 800 // step), max(1, rows * 800 // step))
    plane = Plane(columns * 800 / thumbnail.shape[1], rows * 800 / thumbnail.shape[0])
    options = DelineateOptions(min_area_mm2=least_mm2)
    regions = delineate(heatmap, cells, MPP0, 0.5, options)
    fields = choose_fields(heatmap, cells, MPP0, regions, options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render_report(path, thumbnail, plane, heatmap, cells, MPP0, regions, fields, info)
    return pixels(path)


MAPS = {
    "all 0": np.zeros((20, 30), np.float32),
    "nothing scored": np.full((20, 30), np.nan, np.float32),
    "one region": np.pad(np.full((6, 8), 0.9, np.float32), 7, constant_values=0.1),
    "hundreds of regions": np.random.default_rng(0).random((40, 60), dtype=np.float32),
    "one cell": np.ones((1, 1), np.float32),
    "a row": np.ones((1, 60), np.float32),
    "a column": np.ones((60, 1), np.float32),
    "wide": np.ones((12, 30), np.float32),
    "tall": np.ones((30, 12), np.float32),
    "rather tall": np.ones((30, 17), np.float32),
    "rather wide": np.ones((14, 30), np.float32),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_report_of_any_map_is_a_page_with_an_empty_margin(tmp_path, name):
    page = report(tmp_path / "report.png", MAPS[name], least_mm2=0.0)
    height, width = page.shape[:2]
    assert 1500 <= width <= 3000
    assert 700 <= height <= 3000
    # Text that runs off the page would stand in the margin.
    assert (page[:, -60:] == 255).all()
    assert (page[-60:] == 255).all()


def test_an_ensembles_models_and_their_uncertainty_are_said_a_row_each(tmp_path):
    models = [("one", "a" * 64), ("two", "b" * 64)]
    info = replace(FACTS, models=models, uncertainty=Uncertainty(2, 0.0304, 0.05))
    rows = dict(info_rows(info, MPP0))
    assert rows["Model 1"] == "one (aaaaaaaaaaaa)"
    assert rows["Model 2"] == "two (bbbbbbbbbbbb)"
    said = "0.030 in the mean, 0.050 in regions: standard deviation between 2 models"
    assert rows["Uncertainty"] == said
    one = dict(info_rows(FACTS, MPP0))
    assert one["Model"] == "made up (0123456789ab)"
    assert "Uncertainty" not in one
    page = report(tmp_path / "report.png", MAPS["one region"], info)
    assert (page[:, -60:] == 255).all()
    nowhere = replace(FACTS, uncertainty=Uncertainty(2, 0.0304, None))
    assert "regions" not in dict(info_rows(nowhere, MPP0))["Uncertainty"]


def test_a_map_of_2000_by_2000_cells_is_reported(tmp_path):
    noise = np.random.default_rng(0).random((2000, 2000), dtype=np.float32)
    heatmap = scipy.ndimage.gaussian_filter(noise, 30)
    heatmap = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
    assert report(tmp_path / "report.png", heatmap).shape[1] > 1500


@pytest.mark.parametrize(
    "slide_name",
    ["x" * 300 + ".svs", "$\\frac{1}{2}$ 100 % _a^b.svs", "切片 乳腺 12.svs", "line\nbreak\ttab.svs"],
)
def test_any_name_and_any_warning_fit_on_the_page(tmp_path, slide_name):
    info = replace(FACTS, slide_name=slide_name, warnings=[slide_name, "many words " * 200, *"abcdefghijk"])
    page = report(tmp_path / "report.png", MAPS["one region"], info)
    assert (page[:, -60:] == 255).all()


def test_what_was_not_scored_looks_unlike_probability_zero(tmp_path):
    nothing = report(tmp_path / "nothing.png", MAPS["nothing scored"])
    zero = report(tmp_path / "zero.png", MAPS["all 0"])
    dark = colour(np.zeros((1, 1), np.float32))[0, 0, :3]
    assert (zero == dark).all(axis=2).sum() > 200_000
    assert (nothing == dark).all(axis=2).sum() < 2_000


@pytest.mark.skipif(not SLIDES.is_dir(), reason="no sample slides beside the checkout (WSI_SHARED)")
@pytest.mark.parametrize("name", ["breast_40x.svs", "cmu_1_small_region.svs"])
def test_a_real_slide_is_rendered(tmp_path, name):
    with openslide.OpenSlide(SLIDES / name) as slide:
        size0 = Size(*slide.dimensions)
        thumbnail = np.asarray(slide.get_thumbnail((700, 700)).convert("RGB"))
    plane = Plane(size0.width / thumbnail.shape[1], size0.height / thumbnail.shape[0])
    heatmap = sample(1 - thumbnail.mean(axis=2, dtype=np.float32) / 255, plane, Plane(400, 400), (20, 50))
    regions = delineate(heatmap, Plane(400, 400), (0.5, 0.5), 0.3, DelineateOptions())
    render_overlay(tmp_path / "overlay.png", thumbnail, plane, heatmap, Plane(400, 400), regions)
    info = replace(FACTS, slide_name=name, size0=size0)
    arguments = (thumbnail, plane, heatmap, Plane(400, 400), (0.5, 0.5), regions, [], info)
    render_report(tmp_path / "report.png", *arguments)
    assert pixels(tmp_path / "report.png").std() > 10
