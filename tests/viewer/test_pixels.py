"""Slides that are open side by side, few of many, and tiles from their levels."""

import io
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import write_slide
from PIL import Image
from test_infer import section

import wsi_pipeline as wp
from wsi_pipeline.base.errors import SlideError
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.slides.slide import PlaneReader, open_slide
from wsi_pipeline.viewer import pixels
from wsi_pipeline.viewer.deep_zoom import DeepZoom
from wsi_pipeline.viewer.pixels import OpenSlides, read_box, slide_tile

HERE = Box(0, 0, 40, 30)
PLANE = Plane(1, 1)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    first = write_slide(folder / "0.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))
    return [first, *(shutil.copy(first, folder / f"{i}.tiff") for i in range(1, 4))]


def is_open(slide: wp.Slide) -> bool:
    try:
        slide.read(HERE, PLANE)
    except SlideError:
        return False
    return True


def test_beyond_so_many_slides_those_are_closed_that_wait_longest(slides):
    kept, seen = OpenSlides(most=2), []
    for path in slides:
        with kept.use(path, None) as slide:
            seen.append(slide)
    assert [is_open(slide) for slide in seen] == [False, False, True, True]
    with kept.use(slides[2], None) as slide:
        assert slide is seen[2]
    kept.close()
    assert not any(map(is_open, seen))


def test_a_slide_in_use_stays_open_whatever_others_are_opened(slides):
    kept = OpenSlides(most=1)
    with kept.use(slides[0], None) as slide:
        for path in slides[1:]:
            with kept.use(path, None) as other:
                assert is_open(other)
        assert is_open(slide)
        kept.close()
        assert is_open(slide)
    assert not is_open(slide)


def test_a_slide_that_is_let_go_is_opened_again_and_closed_by_its_last_user(slides):
    kept = OpenSlides()
    with kept.use(slides[0], None) as first:
        kept.forget(slides[0])
        with kept.use(slides[0], None) as second:
            assert second is not first
            assert is_open(first)
    assert not is_open(first)
    assert is_open(second)
    kept.close()


def test_one_that_cannot_be_opened_is_tried_again(slides, tmp_path):
    kept, path = OpenSlides(), tmp_path / "late.tiff"
    for _ in range(2):
        with pytest.raises(SlideError), kept.use(path, None):
            pass
    shutil.copy(slides[0], path)
    with kept.use(path, None) as slide:
        assert is_open(slide)
    kept.close()


def test_a_slide_that_does_not_answer_keeps_nobody_from_the_others(slides, monkeypatch):
    # Stands for a file on a mount that hangs: opening it does not return.
    mends = threading.Event()

    def open_or_hang(path, mpp=None):
        if path == slides[0]:
            assert mends.wait(30)
        return open_slide(path, mpp=mpp)

    monkeypatch.setattr(pixels, "open_slide", open_or_hang)
    kept = OpenSlides()

    def shape_of(path):
        with kept.use(path, None) as slide:
            return slide.read(HERE, PLANE).shape

    with ThreadPoolExecutor(4) as pool:
        hanging = [pool.submit(shape_of, slides[0]) for _ in range(2)]
        assert pool.submit(shape_of, slides[1]).result(10) == (30, 40, 3)
        assert not any(future.done() for future in hanging)
        mends.set()
        assert [future.result(10) for future in hanging] == [(30, 40, 3)] * 2
    kept.close()


@pytest.mark.parametrize("downsample", [1.0, 2.0, 3.0, 4.0, 8.0, 2.5])
@pytest.mark.parametrize("corner", [(0, 0), (37, 61), (-9, 120)])
def test_a_tile_is_what_the_slides_own_reader_gives(slides, downsample, corner):
    with open_slide(slides[0]) as slide:
        for plane in (Plane(downsample, downsample), Plane(downsample, downsample, 3.5, 0)):
            box = Box(*corner, 70, 50)
            reader = PlaneReader(slide, plane, slide.level_for(plane, least_reduction=1.0))
            expected, found = reader(box).rgb, read_box(reader, box)
            assert found.shape == expected.shape
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_coarse_tile_is_made_of_finer_ones_and_shows_the_same(tmp_path):
    image = np.kron(
        section(300, 420, 20), np.ones((4, 4, 1), np.uint8)
    )  # no multiple of a tile, and odd levels
    with open_slide(write_slide(tmp_path / "flat.tiff", image, factors=(1,))) as slide:
        zoom, made = DeepZoom(slide.size0, tile_px=128), []

        def tile(level, column, row):
            made.append((level, column, row))
            return slide_tile(slide, zoom, level, column, row, tile)

        for level in range(zoom.levels - 6, zoom.levels):
            made.clear()
            with Image.open(io.BytesIO(tile(level, 0, 0))) as picture:
                found = np.asarray(picture).astype(int)
            plane, box = zoom.plane(level), zoom.box(level, 0, 0)
            expected = slide.read(box, plane)
            assert found.shape == expected.shape
            assert np.abs(found - expected).mean() < 6
            assert (len(made) > 1) == (plane.downsample_x >= pixels.COMPOSED_FROM)
