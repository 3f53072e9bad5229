"""Measures against values worked out by hand, and what their fitted numbers promise."""

import math

import numpy as np
import pytest
from scipy.special import expit, softmax

from wsi_pipeline.learning.evaluation import metrics as evaluate

RNG = np.random.default_rng(0)


def test_auroc_is_one_for_perfect_zero_for_inverted_and_half_for_constant_scores():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    assert evaluate.auroc(scores, labels) == 1.0
    assert evaluate.auroc(-scores, labels) == 0.0
    assert evaluate.auroc(np.full(4, 0.5), labels) == 0.5


def test_auroc_equals_the_share_of_pairs_in_order():
    labels = RNG.integers(0, 2, 60)
    scores = RNG.integers(0, 10, 60) / 10  # with ties
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[labels == 1] for n in scores[labels == 0]
    ]
    assert evaluate.auroc(scores, labels) == pytest.approx(np.mean(pairs))


def test_auprc_of_a_known_ranking():
    # Falling: 1, 0, 1: precision 1 at recall 1/2, then 2/3 at recall 1.
    assert evaluate.auprc(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1])) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_tied_scores_count_as_one_threshold_in_auprc():
    assert evaluate.auprc(np.full(4, 0.3), np.array([1, 0, 0, 0])) == pytest.approx(0.25)


def test_decisions_of_a_known_table():
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    called = np.array([1, 1, 0, 1, 0, 0, 0, 0], float)
    decisions = evaluate.decide(called, labels, 0.5)
    assert (decisions.precision, decisions.recall, decisions.specificity) == (2 / 3, 2 / 3, 4 / 5)
    assert decisions.f1 == pytest.approx(2 / 3)
    assert decisions.balanced_accuracy == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_measures_without_meaning_are_nan():
    values = evaluate.measures(np.array([0.2, 0.3]), np.array([0, 0]), 0.5)
    assert math.isnan(values["auroc"])
    assert math.isnan(values["recall"])
    assert values["patches"] == 2


def test_calibration_error_is_the_gap_between_what_is_said_and_what_is():
    assert evaluate.calibration_error(np.full(10, 0.8), np.array([1] * 8 + [0] * 2)) == pytest.approx(0)
    assert evaluate.calibration_error(np.full(10, 0.8), np.array([1] * 5 + [0] * 5)) == pytest.approx(0.3)
    assert evaluate.calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fitted_calibration_gives_back_what_labels_were_drawn_with(dtype):
    margins = RNG.normal(0, 4, 40_000)
    labels = (RNG.random(40_000) < expit(margins / 2.5 - 0.7)).astype(int)
    logits = np.stack([np.zeros_like(margins), margins], axis=1)
    calibration = evaluate.fit_calibration(logits.astype(dtype), labels)
    assert calibration.temperature == pytest.approx(2.5, rel=0.05)
    assert calibration.log_odds_shift == pytest.approx(-0.7, abs=0.05)
    assert evaluate.calibration_error(evaluate.calibrated(logits, calibration), labels) < 0.02


def test_calibrated_probabilities_of_several_classes_are_the_softmax():
    logits = RNG.normal(0, 3, (50, 4))
    probability = evaluate.calibrated(logits, evaluate.Calibration(2.0, 0.0), idc=2)
    assert np.allclose(probability, softmax(logits / 2, axis=1)[:, 2])


def test_no_threshold_has_a_higher_mean_of_f1_and_balanced_accuracy_than_the_chosen_one():
    probability = np.round(RNG.random(200), 2)
    labels = (RNG.random(200) < probability).astype(int)

    def aim(threshold):
        decisions = evaluate.decide(probability, labels, threshold)
        return decisions.f1 + decisions.balanced_accuracy

    chosen = evaluate.choose_threshold(probability, labels)
    assert aim(chosen) == pytest.approx(max(aim(t) for t in np.arange(0.005, 1, 0.01)))
    assert 0 < chosen < 1


def test_patients_are_judged_each_on_their_own_patches():
    probability, labels = np.array([0.9, 0.1, 0.2, 0.7]), np.array([1, 0, 1, 0])
    by_patient = evaluate.measures_by_patient(probability, labels, np.array(["a", "a", "b", "b"]), 0.5)
    assert by_patient["a"]["auroc"] == 1
    assert by_patient["b"]["auroc"] == 0
    assert evaluate.spread(by_patient)["auroc"] == {"median": 0.5, "lowest": 0, "highest": 1, "patients": 2}


def test_crossfitting_uses_no_label_of_the_patient_judged():
    logits = RNG.normal(0, 2, (300, 2))
    labels = (RNG.random(300) < softmax(logits, axis=1)[:, 1]).astype(int)
    patients = np.repeat(np.array(["a", "b", "c"]), 100)
    values = evaluate.crossfitted(logits, labels, patients, folds=3)
    by_hand = np.empty(300)
    for patient in "abc":
        rest = patients != patient
        calibration = evaluate.fit_calibration(logits[rest], labels[rest])
        by_hand[~rest] = evaluate.calibrated(logits[~rest], calibration)
    assert values["ece"] == pytest.approx(evaluate.calibration_error(by_hand, labels))


def test_one_patient_alone_or_one_class_among_the_others_is_not_crossfitted():
    logits, labels = RNG.normal(0, 2, (40, 2)), np.arange(40) % 2
    one = np.full(40, "a")
    assert "one patient alone" in evaluate.no_crossfit(labels, one)
    assert all(np.isnan(value) for value in evaluate.crossfitted(logits, labels, one).values())
    two = np.where(np.arange(40) < 20, "a", "b")
    assert evaluate.no_crossfit(labels, two) == ""
    assert not any(np.isnan(value) for value in evaluate.crossfitted(logits, labels, two).values())
    healthy = np.where(np.arange(40) < 20, labels, 0)  # nothing of b is IDC: a would be judged by one class
    assert "slides other than a hold patches of one class" in evaluate.no_crossfit(healthy, two, "slide")
    assert all(np.isnan(value) for value in evaluate.crossfitted(logits, healthy, two).values())
