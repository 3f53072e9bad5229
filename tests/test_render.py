import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import scipy.ndimage
from PIL import Image

from wsi_pipeline.delineate import DelineateOptions, choose_fields, delineate
from wsi_pipeline.geometry import Plane, Size
from wsi_pipeline.render import (
    ReportFacts,
    colour,
    render_heatmap,
    render_overlay,
    render_report,
    render_tissue,
    sample,
)

SLIDES = Path(os.environ.get("WSI_SHARED", "../shared")) / "data" / "slides"
MPP0 = (0.25, 0.25)
FACTS = ReportFacts(
    slide_name="section.svs",
    size0=Size(24_000, 16_000),
    mpp_overridden=False,
    model_name="made up",
    model_sha256="0123456789abcdef" * 4,
    map_kind="each patch alone",
    threshold=0.5,
    patch_px=50,
    patch_mpp=4.0,
    scored=600,
    rejected=2,
    unreadable=1,
    tissue_mm2=24.0,
    idc_mm2=1.0,
    warnings=[],
    version="0.0",
    date="2020-01-01",
)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def slide_of(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), (230, 180, 205), np.uint8)


# --- colour -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [[0.5, 0.5], [0.0, 1.0], [0.49, 0.51], [np.nan, 0.2]])
def test_a_probability_has_one_colour_whatever_else_the_map_holds(others):
    shown = colour(np.array([[0.5, *others]], np.float32))[0, 0]
    assert np.array_equal(shown, colour(np.array([[0.5]], np.float32))[0, 0])
    assert shown[3] == 255


def test_lightness_grows_with_probability_and_no_scored_cell_is_transparent():
    rgba = colour(np.linspace(0, 1, 101, dtype=np.float32)[None])[0].astype(float)
    assert (np.diff(rgba[:, :3] @ [0.2126, 0.7152, 0.0722]) > -0.75).all()  # bytes are rounded
    assert (rgba[:, 3] == 255).all()


def test_the_map_alone_is_enlarged_by_whole_squares_and_transparent_where_not_scored(tmp_path):
    heatmap = np.array([[0.0, np.nan, 1.0], [0.2, 0.5, np.nan]], np.float32)
    render_heatmap(tmp_path / "heatmap.png", heatmap)
    shown = pixels(tmp_path / "heatmap.png")
    factor = shown.shape[1] // 3
    assert shown.shape == (2 * factor, 3 * factor, 4)
    assert shown.shape[1] >= 800
    expected = colour(heatmap).repeat(factor, 0).repeat(factor, 1)
    assert np.array_equal(shown, expected)
    assert (shown[:factor, factor : 2 * factor, 3] == 0).all()


def test_a_large_map_is_written_cell_for_pixel(tmp_path):
    render_heatmap(tmp_path / "heatmap.png", np.zeros((900, 20), np.float32))
    assert pixels(tmp_path / "heatmap.png").shape == (900, 20, 4)


# --- registration -------------------------------------------------------------------------------------


def test_sampling_on_its_own_plane_is_the_identity():
    heatmap = np.random.default_rng(0).random((7, 9), dtype=np.float32)
    heatmap[2, 3] = np.nan
    plane = Plane(33.3, 51.7, 12.0, -40.0)
    assert np.array_equal(sample(heatmap, plane, plane, (7, 9)), heatmap, equal_nan=True)


def test_a_pixel_over_many_cells_shows_the_mean_of_those_scored():
    heatmap = np.array([[0.2, 0.4, np.nan, 0.9], [0.2, 0.4, np.nan, np.nan]], np.float32)
    shown = sample(heatmap, Plane(10, 10), Plane(20, 20), (1, 3))
    assert shown[0, :2] == pytest.approx([0.3, 0.9])
    assert np.isnan(shown[0, 2])


def test_a_hot_cell_lands_on_its_thumbnail_pixels_and_only_there(tmp_path):
    thumbnail, thumbnail_plane = slide_of(1000, 800), Plane(16.0, 20.0, 100.0, 0.0)
    heatmap_plane = Plane(800.0, 600.0, 260.0, 400.0)
    heatmap = np.full((20, 18), np.nan, np.float32)
    heatmap[5, 7] = 1.0
    render_overlay(tmp_path / "overlay.png", thumbnail, thumbnail_plane, heatmap, heatmap_plane, [])
    shown = pixels(tmp_path / "overlay.png")[:800, :1000]
    # Level 0: x 260 + 7*800 = 5860 to 6660, y 400 + 5*600 = 3400 to 4000; in pixels of the thumbnail:
    left, right, top, bottom = (5860 - 100) // 16, (6660 - 100) // 16, 3400 // 20, 4000 // 20
    changed = (shown != thumbnail).any(axis=2)
    expected = np.zeros((800, 1000), bool)
    expected[top:bottom, left:right] = True
    assert np.array_equal(changed, expected)


def test_a_low_probability_leaves_the_tissue_to_be_seen_and_zero_is_not_unscored(tmp_path):
    thumbnail, plane = slide_of(900, 900), Plane(16, 16)
    heatmap = np.array([[0.0, 0.1, 1.0]], np.float32)
    render_overlay(tmp_path / "overlay.png", thumbnail, plane, heatmap, Plane(16 * 200, 16 * 900), [])
    shown = pixels(tmp_path / "overlay.png")[450, [100, 300, 500, 700]].astype(int)
    change = np.abs(shown - thumbnail[0, 0].astype(int)).sum(axis=1)
    assert 15 < change[0] < change[2] / 2
    assert change[3] == 0


def test_region_outlines_are_drawn_along_their_cells(tmp_path):
    thumbnail, plane = slide_of(1000, 1000), Plane(16, 16)
    cells = Plane(1600, 1600)
    heatmap = np.zeros((10, 10), np.float32)
    heatmap[3:5, 2:6] = 0.9
    regions = delineate(heatmap, cells, MPP0, 0.5, DelineateOptions())
    render_overlay(tmp_path / "overlay.png", thumbnail, plane, heatmap, cells, regions)
    black = (pixels(tmp_path / "overlay.png")[:1000] == 0).all(axis=2)
    rows, columns = np.nonzero(black)
    assert abs(rows.min() - 300) <= 2
    assert abs(rows.max() - 500) <= 2
    assert abs(columns.min() - 200) <= 2
    assert abs(columns.max() - 600) <= 2


# --- tissue -------------------------------------------------------------------------------------------


def test_the_tissue_picture_outlines_what_was_kept_and_hatches_what_was_rejected(tmp_path):
    thumbnail = slide_of(900, 600)
    tissue = np.zeros((600, 900), bool)
    tissue[100:500, 100:800] = True
    rejected = np.zeros_like(tissue)
    rejected[100:500, 500:800] = True
    render_tissue(tmp_path / "tissue.png", thumbnail, tissue, rejected, None)
    shown = pixels(tmp_path / "tissue.png")
    changed = (shown[:600, :900] != thumbnail).any(axis=2)
    assert shown.shape[0] > 600
    assert changed[300, 100]
    assert not changed[300, 300]
    assert 0.1 < changed[200:400, 550:750].mean() < 0.5
    assert not changed[:100].any()


def test_the_reason_is_written_below_when_nothing_was_found(tmp_path):
    thumbnail, nothing = slide_of(900, 600), np.zeros((600, 900), bool)
    render_tissue(tmp_path / "short.png", thumbnail, nothing, None, None)
    render_tissue(tmp_path / "long.png", thumbnail, nothing, None, "nothing differs from the glass, " * 12)
    short, long = pixels(tmp_path / "short.png"), pixels(tmp_path / "long.png")
    assert np.array_equal(short[:600, :900], thumbnail)
    assert long.shape[0] > short.shape[0] + 60
    assert (long[short.shape[0] :] < 128).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (2000, 5)])
def test_pictures_of_any_shape_have_room_for_their_key(tmp_path, size):
    thumbnail = slide_of(*size)
    render_tissue(tmp_path / "tissue.png", thumbnail, np.ones(size[::-1], bool), None, "a reason")
    plane = Plane(10, 10)
    render_overlay(tmp_path / "overlay.png", thumbnail, plane, np.ones(size[::-1], np.float32), plane, [])
    assert pixels(tmp_path / "tissue.png").shape[1] >= 400
    assert pixels(tmp_path / "overlay.png").shape[1] >= 400


# --- report -------------------------------------------------------------------------------------------


def report(path: Path, heatmap: np.ndarray, facts: ReportFacts = FACTS, least_mm2: float = 0.1) -> np.ndarray:
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
        render_report(path, thumbnail, plane, heatmap, cells, MPP0, regions, fields, facts)
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
    facts = replace(FACTS, slide_name=slide_name, warnings=[slide_name, "many words " * 200, *"abcdefghijk"])
    page = report(tmp_path / "report.png", MAPS["one region"], facts)
    assert (page[:, -60:] == 255).all()


def test_what_was_not_scored_looks_unlike_probability_zero(tmp_path):
    nothing = report(tmp_path / "nothing.png", MAPS["nothing scored"])
    zero = report(tmp_path / "zero.png", MAPS["all 0"])
    dark = colour(np.zeros((1, 1), np.float32))[0, 0, :3]
    assert (zero == dark).all(axis=2).sum() > 200_000
    assert (nothing == dark).all(axis=2).sum() < 2_000


def test_a_picture_replaces_the_old_one_whole_or_not_at_all(tmp_path):
    path = tmp_path / "heatmap.png"
    render_heatmap(path, MAPS["one region"])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        render_heatmap(path, np.array([[None]]))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["heatmap.png"]


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
    facts = replace(FACTS, slide_name=name, size0=size0)
    arguments = (thumbnail, plane, heatmap, Plane(400, 400), (0.5, 0.5), regions, [], facts)
    render_report(tmp_path / "report.png", *arguments)
    assert pixels(tmp_path / "report.png").std() > 10
