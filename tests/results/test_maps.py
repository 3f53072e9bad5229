from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.figures.maps import (
    render_heatmap,
    render_overlay,
    render_tissue,
    render_uncertainty,
)
from wsi_pipeline.results.figures.palette import colour, colour_uncertainty
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.regions import DelineateOptions, IdcRegion, delineate
from wsi_pipeline.tiling.overview import Thumbnail

MPP0 = (0.25, 0.25)
KIND = "each patch alone"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def slide_of(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), (230, 180, 205), np.uint8)


def finished_map(heatmap: np.ndarray, plane: Plane, regions: Sequence[IdcRegion] = ()) -> FinishedMap:
    return FinishedMap(heatmap, plane, KIND, 0.5, regions, [], {})


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


def test_a_hot_cell_lands_on_its_thumbnail_pixels_and_only_there(tmp_path):
    thumbnail = Thumbnail(slide_of(1000, 800), Plane(16.0, 20.0, 100.0, 0.0))
    cells = Plane(800.0, 600.0, 260.0, 400.0)
    heatmap = np.full((20, 18), np.nan, np.float32)
    heatmap[5, 7] = 1.0
    render_overlay(tmp_path / "overlay.png", thumbnail, finished_map(heatmap, cells))
    shown = pixels(tmp_path / "overlay.png")[:800, :1000]
    # Level 0: x 260 + 7*800 = 5860 to 6660, y 400 + 5*600 = 3400 to 4000; in pixels of the thumbnail:
    left, right, top, bottom = (5860 - 100) // 16, (6660 - 100) // 16, 3400 // 20, 4000 // 20
    changed = (shown != thumbnail.rgb).any(axis=2)
    expected = np.zeros((800, 1000), bool)
    expected[top:bottom, left:right] = True
    assert np.array_equal(changed, expected)


def test_a_low_probability_leaves_the_tissue_to_be_seen_and_zero_is_not_unscored(tmp_path):
    thumbnail = Thumbnail(slide_of(900, 900), Plane(16, 16))
    heatmap = np.array([[0.0, 0.1, 1.0]], np.float32)
    cells = Plane(16 * 200, 16 * 900)
    render_overlay(tmp_path / "overlay.png", thumbnail, finished_map(heatmap, cells))
    shown = pixels(tmp_path / "overlay.png")[450, [100, 300, 500, 700]].astype(int)
    change = np.abs(shown - thumbnail.rgb[0, 0].astype(int)).sum(axis=1)
    assert 15 < change[0] < change[2] / 2
    assert change[3] == 0


def test_region_outlines_are_drawn_where_they_lie(tmp_path):
    thumbnail = Thumbnail(slide_of(1000, 1000), Plane(16, 16))
    cells = Plane(1600, 1600)
    heatmap = np.zeros((10, 10), np.float32)
    heatmap[3:5, 2:6] = 0.9
    regions = delineate(heatmap, cells, MPP0, 0.5, DelineateOptions())
    render_overlay(tmp_path / "overlay.png", thumbnail, finished_map(heatmap, cells, regions))
    black = (pixels(tmp_path / "overlay.png")[:1000] == 0).all(axis=2)
    rows, columns = np.nonzero(black)
    assert abs(rows.min() - 305) <= 2  # between centres, where 0 rises to 0.9
    assert abs(rows.max() - 495) <= 2
    assert abs(columns.min() - 205) <= 2
    assert abs(columns.max() - 595) <= 2


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
    finished = finished_map(np.ones(size[::-1], np.float32), plane)
    render_overlay(tmp_path / "overlay.png", Thumbnail(thumbnail, plane), finished)
    assert pixels(tmp_path / "tissue.png").shape[1] >= 400
    assert pixels(tmp_path / "overlay.png").shape[1] >= 400


def test_a_picture_replaces_the_old_one_whole_or_not_at_all(tmp_path):
    path = tmp_path / "heatmap.png"
    render_heatmap(path, np.full((6, 8), 0.9, np.float32))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        render_heatmap(path, np.array([[None]]))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["heatmap.png"]


def test_uncertainty_covers_what_was_scored_in_colours_to_be_read_off_its_scale(tmp_path):
    thumbnail = Thumbnail(slide_of(1000, 900), Plane(16, 16))
    cells = Plane(1600, 1600)
    deviation = np.full((9, 10), 0.1, np.float32)
    deviation[2, 3] = 0.4
    deviation[:, 8:] = np.nan
    finished = finished_map(np.zeros((9, 10), np.float32), cells)
    render_uncertainty(tmp_path / "uncertainty.png", thumbnail, deviation, finished, models=3)
    shown = pixels(tmp_path / "uncertainty.png")
    assert shown.shape[0] > 900  # the key below
    expected = colour_uncertainty(deviation)[:, :, :3]
    for row, column in ((2, 3), (5, 5)):
        assert np.array_equal(shown[row * 100 + 50, column * 100 + 50], expected[row, column])
    assert np.array_equal(shown[:900, 805:1000], thumbnail.rgb[:, 805:])
    bar = colour_uncertainty(np.array([[0.25]], np.float32))[0, 0, :3]
    assert (shown[900:] == bar).all(axis=2).any()


def test_an_uncertainty_of_nothing_scored_leaves_the_thumbnail(tmp_path):
    thumbnail = Thumbnail(slide_of(900, 900), Plane(16, 16))
    nothing = np.full((3, 3), np.nan, np.float32)
    finished = finished_map(nothing, Plane(4800, 4800))
    render_uncertainty(tmp_path / "uncertainty.png", thumbnail, nothing, finished, models=2)
    assert np.array_equal(pixels(tmp_path / "uncertainty.png")[:900, :900], thumbnail.rgb)
