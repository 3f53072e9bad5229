"""Measures against scikit-learn, and intervals that are of patients."""

import numpy as np
import pytest
from sklearn import metrics

from wsi_pipeline.learning.evaluation import metrics as evaluate
from wsi_pipeline.learning.evaluation.bootstrap import Resampled, draw_patients, interval, resampled_measures

RNG = np.random.default_rng(0)


def generated(patches: int = 600, patients: int = 12, decimals: int = 2):
    """Scores with many ties, labels that follow them, and patients of unlike sizes and levels."""
    patient = RNG.integers(0, patients, patches) ** 2 // patients
    labels = (RNG.random(patches) < 0.3).astype(int)
    scores = 1 / (1 + np.exp(-(RNG.normal(0, 1, patches) + 1.5 * labels - 1 + 0.2 * (patient - 4))))
    return np.round(scores, decimals), labels, patient.astype(str)


def oracle(scores, labels, threshold, weights=None):
    called = scores >= threshold
    options = {"sample_weight": weights}
    return {
        "accuracy": metrics.accuracy_score(labels, called, **options),
        "precision": metrics.precision_score(labels, called, zero_division=np.nan, **options),
        "recall": metrics.recall_score(labels, called, **options),
        "specificity": metrics.recall_score(labels, called, pos_label=0, **options),
        "f1": metrics.f1_score(labels, called, **options),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, called, **options),
        "auroc": metrics.roc_auc_score(labels, scores, **options),
        "auprc": metrics.average_precision_score(labels, scores, **options),
    }


@pytest.mark.parametrize("decimals", [1, 2, 8])
def test_measures_equal_those_of_scikit_learn_with_ties(decimals) -> None:
    scores, labels, _ = generated(decimals=decimals)
    values = evaluate.measures(scores, labels, 0.4)
    decisions = evaluate.decide(scores, labels, 0.4)
    values |= {"accuracy": decisions.accuracy, "specificity": decisions.specificity}
    expected = oracle(scores, labels, 0.4)
    assert {name: values[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("decimals", [1, 8])
def test_each_draw_has_the_measures_of_its_patches_repeated(decimals) -> None:
    scores, labels, patients = generated(decimals=decimals)
    resampled = draw_patients(patients, draws=25, seed=1)
    drawn = resampled_measures(scores, labels, 0.4, resampled)
    for draw, times in enumerate(resampled.times):
        weights = times[resampled.patient_of].astype(float)
        expected = oracle(scores, labels, 0.4, weights)
        assert {name: drawn[name][draw] for name in expected} == pytest.approx(expected)
        again = np.repeat(np.arange(len(labels)), weights.astype(int))
        assert drawn["ece"][draw] == pytest.approx(evaluate.calibration_error(scores[again], labels[again]))


def test_patches_of_a_patient_are_drawn_together() -> None:
    _, _, patients = generated()
    resampled = draw_patients(patients, draws=50)
    names = np.unique(patients)
    assert resampled.times.shape == (50, len(names))
    assert (resampled.times.sum(axis=1) == len(names)).all()
    assert (names[resampled.patient_of] == patients).all()


def test_the_same_seed_gives_the_same_draws_and_another_others() -> None:
    _, _, patients = generated()
    first, again, other = (draw_patients(patients, draws=20, seed=seed).times for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_interval_holds_the_value_and_grows_when_patches_of_patients_are_alike() -> None:
    scores, labels, _ = generated(2000, decimals=8)
    # A hundred patches, each twenty times: of a hundred patients, or as if all of different ones.
    few = np.arange(len(labels)) % 100
    alike, alike_labels = scores[few], labels[few]
    by_patient = resampled_measures(alike, alike_labels, 0.4, draw_patients(few.astype(str)))
    by_patch = resampled_measures(alike, alike_labels, 0.4, draw_patients(np.arange(len(few)).astype(str)))
    value = evaluate.auroc(alike, alike_labels)
    low, high = interval(by_patient["auroc"])
    assert low < value < high
    narrow_low, narrow_high = interval(by_patch["auroc"])
    assert high - low > 3 * (narrow_high - narrow_low)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth, covered = 0.3, 0
    for trial in range(100):
        generator = np.random.default_rng(trial)
        # Patients differ: a recall of 0.3 on average, its own of each.
        own = generator.beta(3, 7, 40)
        called = generator.random((40, 30)) < own[:, None]
        patients = np.repeat(np.arange(40).astype(str), 30)
        drawn = resampled_measures(
            called.ravel().astype(float), np.ones(1200, int), 0.5, draw_patients(patients, 400, trial)
        )
        low, high = interval(drawn["recall"])
        covered += low <= truth <= high
    assert 85 <= covered <= 100


def test_draws_without_a_class_are_left_out_of_the_interval() -> None:
    scores, labels = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0, 0, 1, 1])
    times = np.array([[2, 0], [0, 2], [1, 1]], np.uint8)
    drawn = resampled_measures(scores, labels, 0.5, Resampled(times, np.array([0, 0, 1, 1])))
    assert np.isnan(drawn["auroc"]).tolist() == [True, True, False]
    assert interval(drawn["auroc"]) == (1.0, 1.0)
    assert np.isnan(interval(np.array([np.nan]))).all()
