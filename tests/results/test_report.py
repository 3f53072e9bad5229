import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import scipy.ndimage
from field_grounds import chosen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from test_maps import MPP0, pixels, slide_of

from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.results.fields import NO_FIELDS
from wsi_pipeline.results.figures.grading_page import GradedSlide, grading_figure
from wsi_pipeline.results.figures.maps import render_overlay
from wsi_pipeline.results.figures.palette import colour, sample
from wsi_pipeline.results.figures.report import render_report, report_figure
from wsi_pipeline.results.figures.report_words import ReportInfo, info_rows
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.regions import DelineateOptions, delineate
from wsi_pipeline.results.summary import Uncertainty
from wsi_pipeline.tiling.overview import Thumbnail

SLIDES = Path(os.environ.get("WSI_SHARED", "../shared")) / "data" / "slides"
INFO = ReportInfo(
    slide_name="section.svs",
    size0=Size(24_000, 16_000),
    mpp0=MPP0,
    mpp_overridden=False,
    models=[("made up", "0123456789abcdef" * 4)],
    patch_px=50,
    patch_mpp=4.0,
    tissue_mm2=24.0,
    warnings=[],
    version="0.0",
    date="2020-01-01",
)


COUNTS = {"cells": {"scored": 600, "rejected": 2, "unreadable": 1}}
NO_MAP = FinishedMap(np.zeros((1, 1), np.float32), Plane(1, 1), "each patch alone", 0.5, [], COUNTS)


def drawn_on(
    heatmap: np.ndarray, least_mm2: float = 0.1, uncertainty: Uncertainty | None = None
) -> tuple[Thumbnail, FinishedMap]:
    """A made slide under the map, its cells 200 um, and what is found on it."""
    cells = Plane(800.0, 800.0)
    rows, columns = heatmap.shape
    step = max(1, round(max(rows, columns) * 800 / 600))
    rgb = slide_of(max(1, columns * 800 // step), max(1, rows * 800 // step))
    thumbnail = Thumbnail(rgb, Plane(columns * 800 / rgb.shape[1], rows * 800 / rgb.shape[0]))
    options = DelineateOptions(min_area_mm2=least_mm2)
    regions = delineate(heatmap, cells, MPP0, 0.5, options)
    choice = chosen(heatmap, cells, MPP0, regions) if regions else NO_FIELDS
    finished = replace(NO_MAP, heatmap=heatmap, plane=cells, regions=regions, choice=choice)
    return thumbnail, replace(finished, uncertainty=uncertainty)


def report(
    path: Path,
    heatmap: np.ndarray,
    info: ReportInfo = INFO,
    least_mm2: float = 0.1,
    uncertainty: Uncertainty | None = None,
) -> np.ndarray:
    """A report of it; a warning fails the test (missing glyphs)."""
    thumbnail, finished = drawn_on(heatmap, least_mm2, uncertainty)
    with warnings.catch_warnings():
        # Those of drawing alone: what other tests left open may be collected, and warned of, while this page is drawn.
        for kind in (UserWarning, RuntimeWarning):
            warnings.simplefilter("error", kind)
        render_report(path, thumbnail, finished, info)
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


def words_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """What is written on the page itself, and where, with a blank or two beside it."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    written = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in written]
    return [(text.get_text(), box.padded(6, -1)) for text, box in zip(written, boxes, strict=True)]


def assert_apart(words: list[tuple[str, Bbox]]) -> None:
    over = [
        (one, other)
        for i, (one, box) in enumerate(words)
        for other, beside in words[:i]
        if box.overlaps(beside)
    ]
    assert over == []


LIMITS = "Other stains, scanners and carcinomas were not measured; " * 20 + "this is the end."


@pytest.mark.parametrize("name", ["one region", "hundreds of regions", "tall", "wide"])
def test_nothing_on_the_report_runs_into_something_else_and_what_the_card_says_is_whole(name):
    info = replace(INFO, limits=LIMITS, area_error="on 8 validation slides " + "0.4 to 1.5 times " * 9)
    words = words_of(report_figure(*drawn_on(MAPS[name], least_mm2=0.0), info))
    assert_apart(words)
    written = " ".join(text for text, _ in words)
    assert LIMITS in written
    assert info.area_error.strip() in written


@pytest.mark.parametrize("fields", [0, 1, 4, 10])
def test_the_page_to_grade_on_names_no_more_fields_than_there_are(fields):
    _, finished = drawn_on(np.ones((30, 12), np.float32))
    some = finished.fields[:fields]
    page = grading_figure(GradedSlide("section", finished.regions, some, MPP0, "key"))
    words = words_of(page)
    assert_apart(words)
    written = " ".join(text for text, _ in words)
    assert len(re.findall(r"Field \d", written)) == len(some)
    assert ("in 4 fields of 0.55 mm, 0.95 mm²: score 1: up to 3" in written) == (fields == 4)
    assert bool(re.search(r"\b10 fields|\bten\b", written)) == (fields == 10)
    assert "of one field alone no score is made" in written


def test_an_ensembles_models_and_their_uncertainty_are_said_a_row_each(tmp_path):
    models = [("one", "a" * 64), ("two", "b" * 64)]
    info, uncertainty = replace(INFO, models=models), Uncertainty(2, 0.0304, 0.05)
    rows = dict(info_rows(info, replace(NO_MAP, uncertainty=uncertainty)))
    assert rows["Model 1"] == "one (aaaaaaaaaaaa)"
    assert rows["Model 2"] == "two (bbbbbbbbbbbb)"
    said = "0.030 in the mean, 0.050 in regions: standard deviation between 2 models"
    assert rows["Uncertainty"] == said
    one = dict(info_rows(INFO, NO_MAP))
    assert one["Model"] == "made up (0123456789ab)"
    assert "Uncertainty" not in one
    page = report(tmp_path / "report.png", MAPS["one region"], info, uncertainty=uncertainty)
    assert (page[:, -60:] == 255).all()
    nowhere = replace(NO_MAP, uncertainty=Uncertainty(2, 0.0304, None))
    assert "regions" not in dict(info_rows(info, nowhere))["Uncertainty"]


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
    info = replace(INFO, slide_name=slide_name, warnings=[slide_name, "many words " * 200, *"abcdefghijk"])
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
        rgb = np.asarray(slide.get_thumbnail((700, 700)).convert("RGB"))
    thumbnail = Thumbnail(rgb, Plane(size0.width / rgb.shape[1], size0.height / rgb.shape[0]))
    cells = Plane(400, 400)
    heatmap = sample(1 - rgb.mean(axis=2, dtype=np.float32) / 255, thumbnail.plane, cells, (20, 50))
    regions = delineate(heatmap, cells, (0.5, 0.5), 0.3, DelineateOptions())
    finished = replace(NO_MAP, heatmap=heatmap, plane=cells, regions=regions)
    render_overlay(tmp_path / "overlay.png", thumbnail, finished, 0.5)
    info = replace(INFO, slide_name=name, size0=size0, mpp0=(0.5, 0.5))
    render_report(tmp_path / "report.png", thumbnail, finished, info)
    assert pixels(tmp_path / "report.png").std() > 10
