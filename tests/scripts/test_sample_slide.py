"""The sample slide: true scale, exact levels, truth in place, the same scene at any scale."""

import json

import numpy as np
import openslide
import pytest
from PIL import Image, ImageDraw

from scripts.sample_slide.make_sample_slide import make_sample_slide
from scripts.sample_slide.sample_scan import truth_geojson, truth_png

WIDTH_MM, HEIGHT_MM = 1.0, 0.72


@pytest.fixture(scope="module")
def slide_at(tmp_path_factory):
    """Path of the same small scene at a scale, lossless unless said otherwise; each made once."""
    folder, made = tmp_path_factory.mktemp("sample"), {}

    def make(mpp, name="slide.tiff", seed=1, compression="deflate"):
        key = (mpp, name, seed, compression)
        if key not in made:
            path = folder / str(len(made)) / name
            made[key] = make_sample_slide(path, WIDTH_MM, HEIGHT_MM, mpp, seed, compression)
        return made[key]

    return make


def pixels_at_4um(path):
    """The slide's level 0 averaged to 4 um/px, over the scene's nominal size."""
    with openslide.OpenSlide(path) as slide:
        mpp_x, mpp_y = (float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        image = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
    box = (0, 0, WIDTH_MM * 1000 / mpp_x, HEIGHT_MM * 1000 / mpp_y)
    size = (round(WIDTH_MM * 250), round(HEIGHT_MM * 250))
    return np.asarray(image.resize(size, Image.Resampling.BOX, box=box)).astype(np.float32)


@pytest.mark.parametrize("name", ["slide.svs", "slide.tiff"])
def test_openslide_reads_the_scale_and_exact_levels(slide_at, name):
    with openslide.OpenSlide(slide_at(0.5, name, compression="jpeg")) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert slide.level_downsamples == (1.0, 4.0, 16.0, 64.0)
        width0, height0 = slide.dimensions
        assert 0 <= width0 * 0.5 - WIDTH_MM * 1000 < 64 * 0.5
        assert 0 <= height0 * 0.5 - HEIGHT_MM * 1000 < 64 * 0.5


@pytest.mark.parametrize("mpp", [0.25, 0.23, (0.5, 0.525)])
def test_the_scene_is_the_same_at_any_scale(slide_at, mpp):
    """Differences at 4 um/px stay within what rounding and scanner noise leave."""
    difference = np.abs(pixels_at_4um(slide_at(mpp)) - pixels_at_4um(slide_at(0.5)))
    assert difference.mean() < 0.5
    assert difference.max() < 12


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(slide_at, tmp_path):
    first = slide_at(0.5)
    again = make_sample_slide(tmp_path / "again.tiff", WIDTH_MM, HEIGHT_MM, 0.5, 1, "deflate", workers=1)
    assert first.read_bytes() == again.read_bytes()
    assert np.abs(pixels_at_4um(first) - pixels_at_4um(slide_at(0.5, seed=2))).mean() > 5


def test_the_truth_lies_on_the_tissue_it_names(slide_at):
    """Glass is where the slide is bright and carcinoma is bluer than the tissue around it."""
    path = slide_at(0.5)
    truth = np.asarray(Image.open(truth_png(path)))
    red, green = np.moveaxis(pixels_at_4um(path), -1, 0)[:2]
    truth = truth[: red.shape[0], : red.shape[1]]
    assert set(np.unique(truth)) == {0, 1, 255}
    assert (green[truth == 255] > 235).mean() > 0.95
    assert red[truth == 1].mean() < red[truth == 0].mean() - 10


def test_the_outlines_enclose_the_carcinoma_of_the_truth_picture(slide_at):
    path = slide_at((0.5, 0.525))
    truth = np.asarray(Image.open(truth_png(path)))
    inside = np.zeros(truth.shape, bool)
    for feature in json.loads(truth_geojson(path).read_text())["features"]:
        assert feature["properties"]["classification"]["name"] == "Tumor"
        x0, y0 = np.array(feature["geometry"]["coordinates"][0]).T
        image = Image.new("1", truth.shape[::-1])
        ImageDraw.Draw(image).polygon(list(zip(x0 * 0.5 / 4, y0 * 0.525 / 4, strict=True)), fill=1)
        inside |= np.asarray(image)
    both = (inside & (truth == 1)).sum()
    assert both / (inside | (truth == 1)).sum() > 0.96


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mpp": (0.25, 0.26)}, "one scale"),
        ({"mpp": 0.0}, "4 um/px or finer"),
        ({"compression": "webp"}, "jpeg or deflate"),
    ],
)
def test_arguments_without_meaning_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        make_sample_slide(tmp_path / "slide.svs", **{"width_mm": 1.0, "height_mm": 1.0, **change})
