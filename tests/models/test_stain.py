"""A slide's stain is brought towards the training mean: as far as is said, as far as is known, evenly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.models.card import Stain
from wsi_pipeline.models.stain import (
    DENSITY,
    MAX_GAIN,
    normalise_stain,
    normalise_stain_by_patient,
    stain_tables,
)

TARGET = Stain(od_mean=(0.2, 0.35, 0.25), od_std=(0.1, 0.1, 0.1), od_patient_std=(0.03, 0.04, 0.03))


def patches_of(density: tuple[float, float, float], count: int = 64, px: int = 8) -> np.ndarray:
    """Patches whose density varies by a factor from 0.5 to 1.5 about `density`."""
    share = np.random.default_rng(0).uniform(0.5, 1.5, (count, px, px, 1))
    return (256 * 10 ** -(share * np.array(density)) - 1).clip(0, 255).round().astype(np.uint8)


def density_of(patches: np.ndarray) -> np.ndarray:
    return DENSITY[patches].mean(axis=(1, 2))  # [N, 3]


def test_glass_stays_white_and_order_is_kept():
    tables = stain_tables(density_of(patches_of((0.3, 0.3, 0.3))), TARGET, 1.0)
    assert (tables[:, 255] == 255).all()
    assert (np.diff(tables.astype(int), axis=1) >= 0).all()


@given(st.tuples(*[st.floats(0.15, 0.5)] * 3), st.floats(0.1, 1), st.integers(1, 64))
def test_the_mean_moves_by_the_share_of_the_way_that_is_trusted(density, strength, count):
    patches = patches_of(density, count)
    before = density_of(patches)
    after = density_of(normalise_stain(patches, stain_tables(before, TARGET, strength))).mean(axis=0)
    share = strength * count / (count + 16)
    gain = ((np.array(TARGET.od_mean) / before.mean(axis=0)) ** share).clip(1 / MAX_GAIN, MAX_GAIN)
    np.testing.assert_allclose(after, before.mean(axis=0) * gain, atol=0.015)


def test_nothing_changes_without_strength_without_patches_or_without_a_target():
    densities = density_of(patches_of((0.3, 0.3, 0.3)))
    assert stain_tables(densities, TARGET, 0.0) is None
    assert stain_tables(densities[:0], TARGET, 0.7) is None
    assert stain_tables(densities, Stain(), 0.7) is None
    patches = patches_of((0.3, 0.3, 0.3))
    assert normalise_stain(patches, None) is patches


def test_a_stain_of_the_training_mean_hardly_changes():
    patches = patches_of(TARGET.od_mean)
    moved = normalise_stain(patches, stain_tables(density_of(patches), TARGET, 1.0)).astype(int) - patches
    assert np.abs(moved).max() <= 3


def test_each_patient_is_measured_alone():
    pale, dark = patches_of((0.15, 0.25, 0.2)), patches_of((0.3, 0.5, 0.35))
    patients = np.array(["a"] * 64 + ["b"] * 64)
    both = normalise_stain_by_patient(np.concatenate([pale, dark]), patients, TARGET, 0.7)
    alone = normalise_stain_by_patient(dark, patients[64:], TARGET, 0.7)
    assert np.array_equal(both[64:], alone)
    distance = np.abs(density_of(both[:64]).mean(axis=0) - density_of(both[64:]).mean(axis=0))
    assert (distance < 0.6 * np.abs(density_of(pale).mean(axis=0) - density_of(dark).mean(axis=0))).all()


def test_more_patches_than_a_slide_is_sampled_at_count_no_more():
    many, few = patches_of((0.3, 0.3, 0.3), 1000), patches_of((0.3, 0.3, 0.3), 64)
    a, b = (stain_tables(density_of(p), TARGET, 1.0).astype(int) for p in (many, few))
    assert np.abs(a - b).max() <= 2
    assert stain_tables(density_of(few)[:8], TARGET, 1.0)[1, 128] != pytest.approx(b[1, 128], abs=1)
