"""Levels lie where their pixels say, not where their sizes do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import noise
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import SlideError, SlideOpenError
from wsi_pipeline.base.geometry import Box, Plane, Size
from wsi_pipeline.slides.levels import downsample
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.grid import GridOptions
from wsi_pipeline.tiling.overview import OverviewOptions, make_overview

IMAGE = noise(1199, 1800)
TILE = 256


def reduced(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    whole = Image.fromarray(image[: height * factor, : width * factor])
    return np.asarray(whole.resize((width, height), Image.Resampling.BOX))


def padded(image: NDArray[np.uint8], tile: int = TILE) -> NDArray[np.uint8]:
    below, right = -image.shape[0] % tile, -image.shape[1] % tile
    return np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=255)


def write_pages(path: Path, pages: Sequence[NDArray[np.uint8]], tile: int = TILE, **options: object) -> Path:
    """A TIFF of these pages, the first the slide, the others its reductions as the file says."""
    with tifffile.TiffWriter(path) as tif:
        for i, page in enumerate(pages):
            settings = {
                "photometric": "rgb",
                "metadata": None,
                "subfiletype": min(i, 1),
                "resolution": (2e4, 2e4),
                "resolutionunit": "CENTIMETER",
            } | options
            tif.write(page, tile=(tile, tile), **settings)  # type: ignore[arg-type]
    return path


def planes(path: Path) -> list[Plane]:
    return [level.plane for level in open_slide(path).levels]


@pytest.mark.parametrize("tile", [64, 256, 512])
def test_levels_padded_to_whole_tiles_have_their_whole_factors(tmp_path: Path, tile: int) -> None:
    pages = [padded(reduced(IMAGE, factor), tile) for factor in (1, 2, 4, 8)]
    path = write_pages(tmp_path / "a.tiff", pages, tile)
    assert planes(path) == [Plane(f, f) for f in (1, 2, 4, 8)]
    slide = open_slide(path)
    assert slide.warnings == ()
    plane = slide.plane_at(2.0)  # the third level's
    assert slide.level_for(plane) == 2
    level = slide.read(Box(0, 0, 450, 299), plane).astype(int)
    assert np.abs(level - reduced(IMAGE, 4)).max() <= 1


def test_a_padded_level_whose_size_another_whole_factor_explains_goes_by_its_pixels(tmp_path: Path) -> None:
    # 2100 px a side padded to 2560 and, 8 times smaller, to 512: the sizes alone say 5.
    image = noise(2100, 2100)
    pages = [padded(reduced(image, factor), 512) for factor in (1, 8)]
    assert pages[0].shape[0] == 5 * pages[1].shape[0]
    assert planes(write_pages(tmp_path / "a.tiff", pages, 512))[1] == Plane(8, 8)


def test_a_padded_level_with_nothing_on_it_is_left_out(tmp_path: Path) -> None:
    blank = [np.full(page.shape, 255, np.uint8) for page in (padded(IMAGE), padded(reduced(IMAGE, 2)))]
    slide = open_slide(write_pages(tmp_path / "a.tiff", blank))
    assert len(slide.levels) == 1
    assert "level 1 of the file (1024 x 768 pixels) is not used: it is padded" in slide.warnings[0]


@pytest.mark.parametrize("factor", [2, 3, 4, 32])
def test_levels_of_whole_factors_are_those_whether_rounded_up_or_down(tmp_path: Path, factor: int) -> None:
    down = reduced(IMAGE, factor)
    up = np.pad(down, ((0, 1), (0, 1), (0, 0)), mode="edge")
    for i, page in enumerate((down, up)):
        assert planes(write_pages(tmp_path / f"{i}.tiff", [IMAGE, page]))[1] == Plane(factor, factor)


def test_a_level_of_no_whole_factor_has_its_ratio(tmp_path: Path) -> None:
    image = noise(1200, 1800)
    page = np.asarray(Image.fromarray(image).resize((1200, 800), Image.Resampling.BOX))
    assert planes(write_pages(tmp_path / "a.tiff", [image, page]))[1] == Plane(1.5, 1.5)


def test_blank_levels_are_taken_at_their_size(tmp_path: Path) -> None:
    pages = [np.full((n * 200, n * 300, 3), 240, np.uint8) for n in (4, 2, 1)]
    assert planes(write_pages(tmp_path / "a.tiff", pages)) == [Plane(f, f) for f in (1, 2, 4)]


@pytest.mark.parametrize("missing_of", [0, 1])
def test_missing_tiles_do_not_speak_against_a_level(tmp_path: Path, missing_of: int) -> None:
    path = write_pages(tmp_path / "a.tiff", [IMAGE, reduced(IMAGE, 4)], compression="jpeg")
    with tifffile.TiffFile(path, mode="r+") as tif:
        tag = tif.pages[missing_of].tags["TileByteCounts"]
        tag.overwrite([0 if i % 2 else count for i, count in enumerate(tag.value)])
    slide = open_slide(path)
    assert [level.plane for level in slide.levels] == [Plane(1, 1), Plane(4, 4)]
    assert slide.warnings == ()


OTHERS = {
    "another size": np.ascontiguousarray(noise(300, 300, seed=1)),
    "the size of a level": np.ascontiguousarray(noise(299, 450, seed=1)),
    "a level's negative": 255 - reduced(IMAGE, 4),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_the_file_calls_a_level_and_is_none_is_left_out_and_named(tmp_path: Path, other: str) -> None:
    path = write_pages(tmp_path / "a.tiff", [IMAGE, reduced(IMAGE, 4), OTHERS[other]])
    slide = open_slide(path)
    assert [level.plane for level in slide.levels] == [Plane(1, 1), Plane(4, 4)]
    assert len(slide.warnings) == 1
    height, width = OTHERS[other].shape[:2]
    assert f"({width} x {height} pixels) is not used: " in slide.warnings[0]
    overview = make_overview(slide, OverviewOptions(), GridOptions(patch_px=50, mpp=0.5))
    assert slide.warnings[0] in overview.warnings


def test_levels_that_are_left_out_in_the_middle_do_not_move_the_others(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tiff", [IMAGE, noise(599, 900, seed=1), reduced(IMAGE, 4)])
    slide = open_slide(path)
    assert [level.index for level in slide.levels] == [0, 2]
    assert np.array_equal(slide.read(Box(0, 0, 450, 299), slide.plane_at(2.0)), reduced(IMAGE, 4))


def test_a_pyramid_of_which_nothing_belongs_to_level_0_is_refused(tmp_path: Path) -> None:
    pages = [noise(2048, 2048, seed=1), IMAGE, reduced(IMAGE, 4)]
    slide = open_slide(write_pages(tmp_path / "a.tiff", pages))
    with pytest.raises(SlideOpenError, match="none of its 2 lower levels is a reduction of its level 0"):
        slide.levels  # noqa: B018


def test_a_larger_page_that_the_file_calls_a_reduction_is_refused(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tiff", [IMAGE, reduced(IMAGE, 4), noise(2048, 2048, seed=1)])
    with pytest.raises(SlideOpenError, match=r"a\.tiff: .*2048 x 2048"):
        open_slide(path)


def test_a_pyramid_whose_smallest_page_comes_first_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    with tifffile.TiffWriter(path) as tif:
        for page, kind in ((reduced(IMAGE, 4), 1), (IMAGE, 0)):
            tif.write(page, tile=(TILE, TILE), photometric="rgb", metadata=None, subfiletype=kind)
    with pytest.raises(SlideOpenError, match="page of 1800 x 1199 pixels after the first of 450 x 299"):
        open_slide(path, 0.5)


@pytest.mark.parametrize("turned", range(2, 9))
def test_a_picture_that_is_turned_or_mirrored_is_refused(tmp_path: Path, turned: int) -> None:
    path = write_pages(tmp_path / "a.tiff", [IMAGE], extratags=[(274, "H", 1, turned, True)])
    with pytest.raises(
        SlideOpenError, match=rf"a\.tiff: .*orientation tag says {turned}: .*write it upright"
    ):
        open_slide(path)


GREY = np.ascontiguousarray(IMAGE[..., 1])
NOT_8_BIT_RGB = {
    "grey": (GREY, {"photometric": "minisblack"}, "1 channel of 8 bits (minisblack)"),
    "grey, white is 0": (255 - GREY, {"photometric": "miniswhite"}, "1 channel of 8 bits (miniswhite)"),
    "16-bit grey": (
        GREY.astype(np.uint16) * 200,
        {"photometric": "minisblack"},
        "1 channel of 16 bits (minisblack)",
    ),
    "16-bit colours": (IMAGE.astype(np.uint16) * 257, {}, "3 channels of 16 bits (rgb)"),
    "12-bit colours": (IMAGE.astype(np.uint16) * 16, {}, "3 channels of 16 bits (rgb)"),
    "floats": (IMAGE.astype(np.float32) / 255, {}, "3 channels of 32 floating-point values (rgb)"),
    "a fourth channel of nothing": (
        np.dstack([IMAGE, np.zeros_like(GREY)]),
        {"extrasamples": ["unspecified"]},
        "4 channels of 8 bits (rgb, the last without a meaning)",
    ),
    "one plane a page": (
        np.moveaxis(IMAGE, -1, 0).copy(),
        {"photometric": "minisblack"},
        "1 channel of 8 bits",
    ),
    "16-bit planes": (
        np.moveaxis(IMAGE.astype(np.uint16), -1, 0).copy(),
        {"planarconfig": "separate"},
        "3 channels of 16 bits (rgb)",
    ),
}


@pytest.mark.parametrize("kind", NOT_8_BIT_RGB)
def test_what_is_not_8_bit_rgb_is_refused_and_its_channels_and_bits_are_named(
    tmp_path: Path, kind: str
) -> None:
    pixels, options, found = NOT_8_BIT_RGB[kind]
    path = write_pages(tmp_path / "a.tiff", [pixels], **options)
    with pytest.raises(SlideOpenError) as caught:
        open_slide(path)
    assert f"found {found}" in str(caught.value)
    assert "expected 3 of 8 bits" in str(caught.value)


def test_colours_in_planes_or_with_transparency_are_read_as_they_are(tmp_path: Path) -> None:
    planar = write_pages(tmp_path / "a.tiff", [np.moveaxis(IMAGE, -1, 0).copy()], planarconfig="separate")
    opaque = np.dstack([IMAGE, np.full_like(GREY, 255)])
    with_alpha = write_pages(tmp_path / "b.tiff", [opaque], extrasamples=["unassalpha"])
    for path in (planar, with_alpha):
        assert np.array_equal(open_slide(path).read(Box(0, 0, 1800, 1199), Plane(1, 1)), IMAGE)


def test_a_tile_too_large_to_decode_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pages(tmp_path / "a.tiff", [IMAGE], tile=1024)
    monkeypatch.setattr("wsi_pipeline.slides.readers.openslide.MAX_TILE_PX", 1000 * 1000)
    with pytest.raises(
        SlideOpenError, match=r"a\.tiff: .*storage tiles have 1024 x 1024 pixels, more than 1,000,000"
    ):
        open_slide(path)


def test_a_slide_too_large_to_be_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.slides.slide.MAX_WHOLE_PX", 10_000)
    slide = open_slide(write_pages(tmp_path / "a.tiff", [IMAGE]))
    with pytest.raises(SlideError, match=r"a\.tiff: the slide at 4 um per pixel would have 225 x 150 pixels"):
        slide.read_whole(slide.plane_at(4.0))


@given(st.integers(1, 200_000), st.integers(1, 64))
def test_a_rounded_size_gives_its_whole_factor_back(full: int, factor: int) -> None:
    for size in {full // factor, -(-full // factor)}:
        if size > 2 * factor:  # else another factor is as near
            assert downsample(full, size) == factor


def test_real_pyramids_keep_their_levels(shared: Path) -> None:
    for name, factors in (
        ("breast_40x.svs", [1, 4, 16, 64]),
        ("ihc_sparse_jp2k.svs", [1, 4]),
        ("jp2k_no_mpp.svs", [1, 2]),
        ("cmu_1_small_region.svs", [1]),
    ):
        slide = open_slide(shared / "data/slides" / name, 0.5)
        assert [level.plane for level in slide.levels] == [Plane(f, f) for f in factors]
        assert slide.warnings == ()
        assert slide.levels[0].size == Size(slide.size0.width, slide.size0.height)
