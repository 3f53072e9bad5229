from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.results.figures.maps import (
    PASSED_OVER,
    SPOILT,
    heatmap_place,
    render_heatmap,
    render_overlay,
    render_tissue,
    render_uncertainty,
)
from wsi_pipeline.results.figures.palette import COLOURS, colour, colour_uncertainty, write_png
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.regions import DelineateOptions, IdcRegion, delineate
from wsi_pipeline.tiling.overview import Thumbnail

MPP0 = (0.25, 0.25)
KIND = "each patch alone"


def pixels(path: Path) -> np.ndarray:
    image = Image.open(path)
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def slide_of(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), (230, 180, 205), np.uint8)


def finished_map(heatmap: np.ndarray, plane: Plane, regions: Sequence[IdcRegion] = ()) -> FinishedMap:
    return FinishedMap(heatmap, plane, KIND, 0.5, regions, {})


def test_the_map_alone_covers_exactly_the_slide_wherever_its_cells_end(tmp_path):
    size0, mpp0 = Size(2310, 1490), (0.5, 0.4)
    heatmap = np.array([[0.0, np.nan, 1.0], [0.2, 0.5, np.nan]], np.float32)
    cells = Plane(800, 800, -10, 20)  # they reach beyond the slide at the right and below, and not to its top
    status = np.array([[1, 2, 1], [1, 1, 3]], np.uint8)
    finished = replace(finished_map(heatmap, cells), status=status)
    render_heatmap(tmp_path / "heatmap.png", finished, size0, mpp0)
    image = Image.open(tmp_path / "heatmap.png")
    place = heatmap_place(finished, size0, mpp0)
    assert place["extent_um"] == [0, 0, 1155, 596]
    assert image.info["extent_um"] == "0 0 1155 596"
    assert list(image.size) == place["size_px"]
    assert max(image.size) >= 770
    um_x, um_y = map(float, image.info["um_per_pixel"].split())
    assert (um_x * image.width, um_y * image.height) == pytest.approx((1155, 596))
    shown = np.asarray(image)
    for y, x in np.random.default_rng(0).integers(0, shown.shape[:2], (400, 2)):
        x0, y0 = (x + 0.5) * size0.width / image.width, (y + 0.5) * size0.height / image.height
        column, row = int((x0 + 10) // 800), int((y0 - 20) // 800)
        if row < 0:
            assert shown[y, x, 3] == 0
        elif status[row, column] == 1:
            assert (shown[y, x] == colour(heatmap[row : row + 1, column : column + 1])[0, 0]).all()
    # What was rejected and what could not be read are striped, each in its colour.
    rejected, unreadable = shown[30:260, 300:500], shown[320:, 600:]
    for part, expected in ((rejected, (230, 159, 0, 255)), (unreadable, (213, 94, 0, 255))):
        striped = (part == expected).all(axis=2)
        assert 0.2 < striped.mean() < 0.3
        assert (part[~striped][:, 3] == 0).all()


def test_a_large_map_is_written_cell_for_pixel(tmp_path):
    finished = finished_map(np.zeros((900, 20), np.float32), Plane(10, 10))
    render_heatmap(tmp_path / "heatmap.png", finished, Size(200, 9000), MPP0)
    assert pixels(tmp_path / "heatmap.png").shape == (900, 20, 4)


@pytest.mark.parametrize("picture", ["overlay", "uncertainty"])
def test_what_is_not_scored_is_told_apart_from_background(tmp_path, picture):
    thumbnail = Thumbnail(slide_of(1000, 900), Plane(16, 16))
    heatmap = np.full((9, 10), 0.3, np.float32)
    status = np.ones((9, 10), np.uint8)
    for row, value in ((2, 0), (4, 2), (6, 3)):
        heatmap[row], status[row] = np.nan, value
    finished = replace(finished_map(heatmap, Plane(1600, 1600)), status=status)
    if picture == "overlay":
        render_overlay(tmp_path / "a.png", thumbnail, finished, MPP0[0])
    else:
        render_uncertainty(tmp_path / "a.png", thumbnail, heatmap, finished, 3, MPP0[0])
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert (shown[220:280, :1000] == thumbnail.rgb[0, 0]).all()
    for row, expected in ((4, (230, 159, 0)), (6, (213, 94, 0))):
        assert 0.2 < (shown[row * 100 + 20 : row * 100 + 80, :1000] == expected).all(axis=2).mean() < 0.3


def test_a_scale_bar_is_as_long_as_it_says(tmp_path):
    thumbnail = Thumbnail(slide_of(1000, 900), Plane(16, 16))
    for mpp_x, expected_px in ((0.25, 125), (1.0, 125), (0.4, 156)):  # 500 um, 2 mm, 1 mm
        render_overlay(
            tmp_path / "a.png", thumbnail, finished_map(np.zeros((1, 1), np.float32), Plane(16, 16)), mpp_x
        )
        strip = np.asarray(Image.open(tmp_path / "a.png").convert("L"))[900:960, :300] == 0
        assert expected_px in strip.sum(axis=1)


def test_pictures_of_many_colours_take_few_bytes_and_look_the_same(tmp_path):
    y, x = np.mgrid[:900, :1200]
    noise = np.random.default_rng(0).normal(0, 6, (900, 1200, 3))
    pink = np.stack(
        [200 + 40 * np.sin(x / 60), 120 + 60 * np.sin(y / 40), 190 + 30 * np.sin((x + y) / 50)], axis=2
    )
    picture = np.clip(pink + noise, 0, 255).astype(np.uint8)
    write_png(tmp_path / "a.png", Image.fromarray(picture))
    Image.fromarray(picture).save(tmp_path / "b.png")
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert (tmp_path / "a.png").stat().st_size < 0.5 * (tmp_path / "b.png").stat().st_size
    assert np.abs(shown - picture).mean() < 6


def test_a_map_and_what_is_drawn_keep_their_colours_beside_a_photograph(tmp_path):
    rng = np.random.default_rng(0)
    photograph = np.clip(rng.normal((220, 150, 200), 30, (600, 900, 3)), 0, 255).astype(np.uint8)
    values = np.linspace(0, 1, 900, dtype=np.float32)[None].repeat(300, 0)
    drawn = np.full((100, 900, 3), 255, np.uint8)
    drawn[20:40], drawn[60:80] = (0, 114, 178), 0
    picture = np.concatenate([photograph, colour(values)[:, :, :3], drawn])
    write_png(tmp_path / "a.png", Image.fromarray(picture), COLOURS)
    image = Image.open(tmp_path / "a.png")
    assert image.mode == "P"
    shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.array_equal(shown[900:], drawn)
    # Of two neighbours among 64 steps, the nearer one, or one as near as a cell of the look-up.
    assert np.abs(shown[600:900] - picture[600:900]).max() <= 12


def test_a_hot_cell_lands_on_its_thumbnail_pixels_and_only_there(tmp_path):
    thumbnail = Thumbnail(slide_of(1000, 800), Plane(16.0, 20.0, 100.0, 0.0))
    cells = Plane(800.0, 600.0, 260.0, 400.0)
    heatmap = np.full((20, 18), np.nan, np.float32)
    heatmap[5, 7] = 1.0
    render_overlay(tmp_path / "overlay.png", thumbnail, finished_map(heatmap, cells), MPP0[0])
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
    render_overlay(tmp_path / "overlay.png", thumbnail, finished_map(heatmap, cells), MPP0[0])
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
    render_overlay(tmp_path / "overlay.png", thumbnail, finished_map(heatmap, cells, regions), MPP0[0])
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
    render_tissue(tmp_path / "tissue.png", thumbnail, tissue, {"pen": (rejected, 1.92)}, None, 4.0)
    shown = pixels(tmp_path / "tissue.png")
    changed = (shown[:600, :900] != thumbnail).any(axis=2)
    assert shown.shape[0] > 600
    assert changed[300, 100]
    assert not changed[300, 300]
    assert 0.1 < changed[200:400, 550:750].mean() < 0.5
    assert not changed[:100].any()


def test_each_reason_not_to_score_tissue_has_its_own_colour_and_its_area(tmp_path):
    thumbnail, tissue = slide_of(900, 600), np.ones((600, 900), bool)
    names = [*SPOILT, *PASSED_OVER]
    bands = {name: np.zeros_like(tissue) for name in names}
    for i, name in enumerate(names):
        bands[name][:, 50 + 120 * i : 130 + 120 * i] = True
    render_tissue(tmp_path / "all.png", thumbnail, tissue, {n: (m, 1.5) for n, m in bands.items()}, None, 4.0)
    render_tissue(tmp_path / "none.png", thumbnail, tissue, {}, None, 4.0)
    shown, plain = pixels(tmp_path / "all.png"), pixels(tmp_path / "none.png")
    colours = {name: tuple(bytes.fromhex(fill[1:])) for name, (fill, _) in (SPOILT | PASSED_OVER).items()}
    assert len(set(colours.values())) == len(names)
    for name in names:
        is_it = (shown[20:580, :900] == colours[name]).all(axis=2)
        assert 0.2 < is_it[bands[name][20:580]].mean() < 0.4  # stripes: a quarter, give or take
        assert not is_it[~bands[name][20:580]].any()
    assert shown.shape[0] > plain.shape[0]  # the key has its lines


def test_the_reason_is_written_below_when_nothing_was_found(tmp_path):
    thumbnail, nothing = slide_of(900, 600), np.zeros((600, 900), bool)
    render_tissue(tmp_path / "short.png", thumbnail, nothing, {}, None, 4.0)
    render_tissue(tmp_path / "long.png", thumbnail, nothing, {}, "nothing differs from the glass, " * 12, 4.0)
    short, long = pixels(tmp_path / "short.png"), pixels(tmp_path / "long.png")
    assert np.array_equal(short[:600, :900], thumbnail)
    assert long.shape[0] > short.shape[0] + 60
    assert (long[short.shape[0] :] < 128).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (2000, 5)])
def test_pictures_of_any_shape_have_room_for_their_key(tmp_path, size):
    thumbnail = slide_of(*size)
    render_tissue(tmp_path / "tissue.png", thumbnail, np.ones(size[::-1], bool), {}, "a reason", 4.0)
    plane = Plane(10, 10)
    finished = finished_map(np.ones(size[::-1], np.float32), plane)
    render_overlay(tmp_path / "overlay.png", Thumbnail(thumbnail, plane), finished, MPP0[0])
    assert pixels(tmp_path / "tissue.png").shape[1] >= 400
    assert pixels(tmp_path / "overlay.png").shape[1] >= 400


def test_a_picture_replaces_the_old_one_whole_or_not_at_all(tmp_path):
    path = tmp_path / "heatmap.png"
    render_heatmap(path, finished_map(np.full((6, 8), 0.9, np.float32), Plane(10, 10)), Size(80, 60), MPP0)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        render_heatmap(path, finished_map(np.array([[None]]), Plane(10, 10)), Size(10, 10), MPP0)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["heatmap.png"]


def test_uncertainty_covers_what_was_scored_in_colours_to_be_read_off_its_scale(tmp_path):
    thumbnail = Thumbnail(slide_of(1000, 900), Plane(16, 16))
    cells = Plane(1600, 1600)
    deviation = np.full((9, 10), 0.1, np.float32)
    deviation[2, 3] = 0.4
    deviation[:, 8:] = np.nan
    finished = finished_map(np.zeros((9, 10), np.float32), cells)
    render_uncertainty(tmp_path / "uncertainty.png", thumbnail, deviation, finished, 3, MPP0[0])
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
    render_uncertainty(tmp_path / "uncertainty.png", thumbnail, nothing, finished, 2, MPP0[0])
    assert np.array_equal(pixels(tmp_path / "uncertainty.png")[:900, :900], thumbnail.rgb)
