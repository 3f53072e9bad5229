"""The context step: what it may depend on, and what it must not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_step
from scipy.special import expit, logit

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.models.context import (
    ContextCard,
    ContextStep,
    RingOptions,
    apply_context,
    neighbour_mean,
    ring_features,
)

STEP = random_step()


def some_map(height: int = 23, width: int = 31, seed: int = 0, missing: float = 0.2) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.random((height, width)).astype(np.float32)
    values[random.random((height, width)) < missing] = np.nan
    return values


@settings(deadline=None)  # a loaded machine is no fault of the step
@given(height=st.integers(1, 40), width=st.integers(1, 40), missing=st.floats(0, 1))
def test_a_map_of_any_size_keeps_its_cells_and_its_gaps(height: int, width: int, missing: float) -> None:
    alone = some_map(height, width, missing=missing)
    after = apply_context(alone, STEP)
    assert after.dtype == np.float32
    assert np.array_equal(np.isnan(after), np.isnan(alone))
    assert ((after >= 0) & (after <= 1))[~np.isnan(alone)].all()


def test_a_single_cell_is_its_own_neighbourhood() -> None:
    base, rings = ring_features(np.array([[1.5]]), RingOptions())
    assert base == pytest.approx([1.5])
    assert rings[0, :8] == pytest.approx(1.5)
    assert rings[0, 8:16] == pytest.approx(expit(1.5))
    assert rings[0, 16:] == pytest.approx(0, abs=1e-6)


def test_values_under_cells_that_were_not_scored_never_count() -> None:
    values = some_map(missing=0)
    scored = np.random.default_rng(1).random(values.shape) < 0.7
    means = [
        neighbour_mean(np.where(scored, values, junk), scored, 1.5)[scored]
        for junk in (0, 1e9, np.nan, -np.inf)
    ]
    for other in means[1:]:
        assert np.array_equal(other, means[0])


def test_a_margin_of_cells_that_were_not_scored_changes_nothing() -> None:
    alone = some_map()
    wide = np.pad(alone, ((30, 7), (1, 40)), constant_values=np.nan)
    np.testing.assert_allclose(apply_context(wide, STEP)[30:-7, 1:-40], apply_context(alone, STEP), atol=1e-6)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_turned_or_flipped_map_gives_the_turned_or_flipped_result(quarters: int, flipped: bool) -> None:
    def turn(values: np.ndarray) -> np.ndarray:
        values = np.rot90(values, quarters)
        return values[:, ::-1] if flipped else values

    alone = some_map()
    np.testing.assert_allclose(apply_context(turn(alone), STEP), turn(apply_context(alone, STEP)), atol=1e-6)


def test_cells_far_apart_do_not_touch_each_other() -> None:
    alone = some_map(10, 120, missing=0)
    other = alone.copy()
    other[:, 60:] = 1 - other[:, 60:]
    before, after = apply_context(alone, STEP), apply_context(other, STEP)
    # The widest ring of this step, 3 patches, ends after 9.
    assert np.array_equal(before[:, :50], after[:, :50])
    assert not np.array_equal(before[:, 51:60], after[:, 51:60])


def test_without_a_correction_the_step_is_the_plain_mean_of_log_odds_calibrated() -> None:
    silent = {name: np.zeros_like(values) for name, values in STEP.weights.items()}
    silent["std"] += 1
    alone = some_map(missing=0)
    odds = logit(alone.astype(float)).clip(-6, 6)
    mean = neighbour_mean(odds, np.ones(alone.shape, np.bool_), 1.0)
    expected = expit(mean / STEP.card.temperature + STEP.card.log_odds_shift)
    np.testing.assert_allclose(apply_context(alone, ContextStep(STEP.card, silent)), expected, atol=1e-6)


def test_certain_patches_stay_finite() -> None:
    alone = np.array([[0.0, 1.0, 1.0], [0.5, 0.0, 1.0]], np.float32)
    assert np.isfinite(apply_context(alone, STEP)).all()


def test_a_finer_map_is_judged_on_each_grid_of_cells_a_patch_apart() -> None:
    alone = some_map(24, 32)
    after = apply_context(alone, STEP, patch_cells=2)
    for y in (0, 1):
        for x in (0, 1):
            part = apply_context(alone[y::2, x::2], STEP)
            assert np.array_equal(after[y::2, x::2], part, equal_nan=True)


def test_weights_that_do_not_fit_the_card_are_refused() -> None:
    for wrong in (
        {},
        {name: values for name, values in STEP.weights.items() if name != "bias2"},
        STEP.weights | {"weight1": STEP.weights["weight1"][:, :-1]},
    ):
        with pytest.raises(ModelError, match="train-context"):
            ContextStep(STEP.card, wrong)
    wider = replace(STEP.card, options=RingOptions())
    with pytest.raises(ModelError, match="do not fit the card"):
        ContextStep(wider, STEP.weights)


def test_a_gaussian_is_the_calibrated_mean_of_log_odds_and_has_no_weights() -> None:
    random = np.random.default_rng(5)
    alone = random.uniform(0.01, 0.99, (12, 17)).astype(np.float32)
    alone[random.random(alone.shape) < 0.2] = np.nan
    card = ContextCard(kind="gaussian", temperature=0.8, log_odds_shift=0.3)
    found = apply_context(alone, ContextStep(card, {}))
    scored = ~np.isnan(alone)
    mean = neighbour_mean(np.where(scored, logit(np.where(scored, alone, 0.5)), 0.0), scored, 1.0)
    np.testing.assert_allclose(found[scored], expit(mean / 0.8 + 0.3)[scored], atol=1e-6)
    assert np.array_equal(np.isnan(found), ~scored)
    with pytest.raises(ModelError, match="do not fit the card"):
        ContextStep(card, random_step().weights)


def test_a_mean_of_probability_lets_no_patch_count_for_more_than_one():
    alone = np.full((9, 9), 0.4, np.float32)
    alone[4, 4] = 0.99
    alone[0, 0] = np.nan
    of = {}
    for base_of in ("log_odds", "probability"):
        card = ContextCard(kind="gaussian", options=RingOptions(base_of=base_of))
        of[base_of] = apply_context(alone, ContextStep(card, {}))
    scored = ~np.isnan(alone)
    mean = neighbour_mean(np.nan_to_num(alone).astype(np.float64), scored, 1.0)
    bounds = expit(-6.0), expit(6.0)
    np.testing.assert_allclose(of["probability"][scored], mean.clip(*bounds)[scored], atol=1e-5)
    assert np.array_equal(np.isnan(of["probability"]), ~scored)
    assert of["log_odds"][4, 4] > of["probability"][4, 4] + 0.01
    certain = apply_context(np.ones((3, 3), np.float32), ContextStep(card, {}))
    np.testing.assert_allclose(certain, bounds[1], atol=1e-6)
