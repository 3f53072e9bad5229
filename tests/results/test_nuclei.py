from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import write_scn, write_slide
from scipy import ndimage
from test_cellularity import stained

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.nuclei import can_be_counted, count_nuclei
from wsi_pipeline.slides.slide import open_slide

CELL_PX = 100  # 50 um at 0.5 um per pixel


@cache
def scene(side: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Tissue at 0.5 um per pixel with nuclei that do not touch, and where these are (x, y)."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(20, side - 20, 40)] * 2), axis=-1).reshape(-1, 2)
    places = (grid + rng.integers(-8, 9, grid.shape))[rng.random(len(grid)) < 0.4]
    away = np.ones((side, side), bool)
    away[places[:, 1], places[:, 0]] = False
    is_nucleus = ndimage.distance_transform_edt(away) <= 7
    nucleus, ground = stained(np.array([[0.06, 0.01]]))[0]
    return np.where(is_nucleus[..., None], nucleus, ground), places


def by_cell(places: np.ndarray, side: int) -> np.ndarray:
    counts = np.zeros((side // CELL_PX, side // CELL_PX))
    np.add.at(counts, (places[:, 1] // CELL_PX, places[:, 0] // CELL_PX), 1)
    return counts


@pytest.mark.parametrize("mpp", [0.5, 0.25, 0.24])
def test_nuclei_are_counted_in_the_cells_that_are_wanted_at_any_scale(tmp_path: Path, mpp: float):
    image, places = scene()
    finer = 1 if mpp == 0.5 else 2
    image = image.repeat(finer, axis=0).repeat(finer, axis=1)
    path = write_slide(tmp_path / "a.tiff", image, mpp=(mpp, mpp))
    plane = Plane(CELL_PX * finer, CELL_PX * finer)
    wanted = np.zeros((10, 10), bool)
    wanted[2:8, 3:10] = True
    with open_slide(path) as slide:
        found = count_nuclei(slide, wanted, plane)
    assert np.array_equal(found.counted, wanted)
    expected = by_cell(places, 1000)[wanted]
    assert found.nuclei[wanted].sum() == pytest.approx(expected.sum(), rel=0.02)
    assert (
        np.abs(found.nuclei[wanted] - expected).mean() < 0.3
    )  # a centre at a cell's edge falls to either side


def test_where_a_slide_begins_elsewhere_nuclei_lie_in_the_same_cells(tmp_path: Path):
    image, places = scene()
    path = write_scn(tmp_path / "a.scn", image, 600, 400, (4000, 3000))
    with open_slide(path) as slide:
        found = count_nuclei(slide, np.ones((10, 10), bool), Plane(CELL_PX, CELL_PX, 600, 400))
    assert np.abs(found.nuclei - by_cell(places, 1000)).mean() < 0.3


def test_nothing_wanted_is_nothing_read(tmp_path: Path):
    path = write_slide(tmp_path / "a.tiff", scene()[0])
    with open_slide(path) as slide:
        found = count_nuclei(slide, np.zeros((6, 6), bool), Plane(CELL_PX, CELL_PX))
    assert not found.counted.any()


def test_a_coarse_slide_shows_no_nuclei(tmp_path: Path):
    image = scene()[0]
    for mpp, can in ((0.25, True), (1.0, True), (1.1, False), (4.0, False)):
        with open_slide(write_slide(tmp_path / f"{mpp}.tiff", image, mpp=(mpp, mpp))) as slide:
            assert can_be_counted(slide) == can


def test_cells_that_cannot_be_decoded_are_not_counted(shared: Path):
    path = shared / "data/bad/five_tiles_corrupt.svs"
    with open_slide(path) as slide:
        cells = Plane(CELL_PX, CELL_PX)
        shape = (slide.size0.height // CELL_PX, slide.size0.width // CELL_PX)
        found = count_nuclei(slide, np.ones(shape, bool), cells)
    with open_slide(shared / "data/slides/cmu_1_small_region.svs") as slide:
        whole = count_nuclei(slide, np.ones(shape, bool), cells)
    assert whole.counted.all()
    lost = ~found.counted
    assert 5 < lost.sum() < 5 * 16
    sound = found.counted
    assert np.abs(found.nuclei[sound] - whole.nuclei[sound]).mean() < 0.2
