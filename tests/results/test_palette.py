import numpy as np
import pytest

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.figures.palette import colour, colour_uncertainty, sample


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
    assert lightness[0] - lightness[-1] > 200
    probabilities = colour(np.linspace(0, 1, 101, dtype=np.float32)[None])[0].astype(float)
    # Both scales have a dark end; up to a deviation of 0.25 no colour is shared.
    assert np.abs(rgba[:51, None, :3] - probabilities[None, :, :3]).sum(axis=2).min() > 100
    alone = colour_uncertainty(np.array([[0.2, np.nan]], np.float32))[0]
    assert np.array_equal(alone[0], rgba[40])
    assert alone[1, 3] == 0
