import matplotlib
import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, hed2rgb, rgb2lab

from scripts.results.measure_colours import GLASS, VISIONS, as_seen
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.figures.palette import (
    COLOURS,
    UNCERTAINTY_COLOURS,
    colour,
    colour_uncertainty,
    sample,
)


def shades(colours):
    """sRGB [65, 3] from a map's lowest value to its highest."""
    return colours(np.linspace(0, 1, 65))[:, :3]


def distances(some, others):
    """CIEDE2000 of each colour to each other one, sRGB."""
    pairs = np.broadcast_arrays(rgb2lab(some)[:, None], rgb2lab(others)[None])
    return deltaE_ciede2000(*pairs)


@pytest.mark.parametrize("others", [[0.5, 0.5], [0.0, 1.0], [0.49, 0.51], [np.nan, 0.2]])
def test_a_probability_has_one_colour_whatever_else_the_map_holds(others):
    shown = colour(np.array([[0.5, *others]], np.float32))[0, 0]
    assert np.array_equal(shown, colour(np.array([[0.5]], np.float32))[0, 0])
    assert shown[3] == 255


def test_lightness_grows_with_probability_and_no_scored_cell_is_transparent():
    rgba = colour(np.linspace(0, 1, 101, dtype=np.float32)[None])[0].astype(float)
    assert (np.diff(rgba[:, :3] @ [0.2126, 0.7152, 0.0722]) > -0.75).all()  # bytes are rounded
    assert (rgba[:, 3] == 255).all()


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


def test_an_uncertainty_has_its_own_colours_on_a_fixed_scale_to_a_half():
    rgba = colour_uncertainty(np.linspace(0, 0.5, 101, dtype=np.float32)[None])[0].astype(float)
    lightness = rgba[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) < 0.75).all()
    assert lightness[0] - lightness[-1] > 150
    # Of probabilities and deviations no two colours are nearly the same.
    assert distances(shades(UNCERTAINTY_COLOURS), shades(COLOURS)).min() > 20
    alone = colour_uncertainty(np.array([[0.2, np.nan]], np.float32))[0]
    assert np.array_equal(alone[0], rgba[40])
    assert alone[1, 3] == 0


def test_no_colour_of_a_map_is_one_of_stained_tissue_or_glass():
    haematoxylin, eosin = map(np.ravel, np.meshgrid(np.linspace(0, 0.2, 21), np.linspace(0, 0.3, 21)))
    stained = hed2rgb(np.stack([haematoxylin, eosin, 0 * eosin], axis=-1)[None])[0]
    tissue = np.concatenate([stained, GLASS])
    assert distances(shades(COLOURS), tissue).min() > 20
    assert distances(shades(matplotlib.colormaps["magma"]), tissue).min() < 10


@pytest.mark.parametrize("seen", VISIONS.values(), ids=VISIONS)
def test_steps_of_the_scale_look_alike_and_rise_in_lightness_with_any_colour_vision(seen):
    lab = as_seen(shades(COLOURS)[::16], seen)
    steps = deltaE_ciede2000(lab[:-1], lab[1:])
    assert steps.min() > 0.45 * steps.mean()
    assert (np.diff(lab[:, 0]) > 2).all()
