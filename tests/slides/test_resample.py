import numpy as np
import pytest
from conftest import noise
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.slides.resample import axis_weights, resample


@given(st.integers(1, 40), st.floats(0, 3), st.floats(0.2, 20), st.integers(1, 60))
def test_weights_of_each_output_pixel_sum_to_one(n_out: int, start: float, step: float, n_in: int) -> None:
    sums = np.asarray(axis_weights(n_out, start, step, n_in).sum(axis=1))
    assert sums == pytest.approx(1, abs=1e-5)


@given(st.integers(1, 12), st.floats(0, 2), st.floats(1, 9))
def test_reduction_is_the_mean_over_the_exact_area(n_out: int, start: float, step: float) -> None:
    n_in = int(np.ceil(start + n_out * step)) + 1
    values = np.random.default_rng(n_out).random(n_in)
    # The oracle: the integral of a step function, evaluated at the edges.
    integral = np.interp(start + step * np.arange(n_out + 1), np.arange(n_in + 1), np.r_[0, values.cumsum()])
    expected = np.diff(integral) / step
    assert axis_weights(n_out, start, step, n_in) @ values == pytest.approx(expected, abs=1e-4)


@given(st.integers(0, 4), st.integers(0, 3), st.integers(0, 9))
def test_a_step_of_two_gives_what_the_weights_give(x: int, y: int, seed: int) -> None:
    image = noise(21, 30, seed)
    across, down = axis_weights(12, x, 2, 30), axis_weights(8, y, 2, 21)
    exact = np.stack([down @ (across @ image[..., c].T.astype(float)).T for c in range(3)], axis=-1)
    assert np.array_equal(resample(image, 12, 8, (x, y), (2, 2)), np.floor(exact + 0.5))


def test_a_step_of_one_copies() -> None:
    image = noise(20, 30)
    assert np.array_equal(resample(image, 10, 8, (3, 2), (1, 1)), image[2:10, 3:13])


def test_whole_factors_give_block_means() -> None:
    image = noise(64, 96)
    expected = image.reshape(16, 4, 24, 4, 3).mean(axis=(1, 3))
    assert np.abs(resample(image, 24, 16, (0, 0), (4, 4)) - expected).max() <= 0.51


def test_strips_do_not_show() -> None:
    image = noise(700, 40)
    whole = resample(image, 10, 200, (0.3, 0.7), (3.5, 3.3))
    assert np.array_equal(whole[100:], resample(image, 10, 100, (0.3, 0.7 + 330), (3.5, 3.3)))


def test_enlarging_is_linear_between_pixel_centres() -> None:
    ramp = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    large = resample(ramp, 40, 8, (0, 0), (0.5, 0.5))
    assert np.array_equal(np.diff(large[0, 1:-1, 0].astype(int)), np.full(37, 5))


def test_each_axis_has_its_own_step() -> None:
    image = np.zeros((30, 30, 3), np.uint8)
    image[:15] = 200
    small = resample(image, 30, 10, (0, 0), (1, 3))
    assert (small[:5] == 200).all()
    assert (small[5:] == 0).all()
