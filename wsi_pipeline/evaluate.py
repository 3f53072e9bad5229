"""How good probabilities of IDC are, over patches and by patient, and the two numbers fitted on them.

Arrays are [N]: `labels` 0 or 1, `probability` in [0, 1], `patients` names. A measure without meaning (one
class alone, say) is NaN.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Decisions:
    """What a threshold makes of probabilities."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def precision(self) -> float:
        """Share of the patches called IDC that are."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the IDC patches called so."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of the other patches not called IDC."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(
            2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative
        )

    @property
    def balanced_accuracy(self) -> float:
        """Mean of recall and specificity."""
        return (self.recall + self.specificity) / 2


def decide(probability: Floats, labels: Labels, threshold: float) -> Decisions:
    """The decisions that calling IDC from `threshold` on makes.

    >>> decide(np.array([0.1, 0.5, 0.9]), np.array([0, 0, 1]), 0.5).precision
    0.5
    """
    called, idc = probability >= threshold, labels == 1
    return Decisions(
        int((called & idc).sum()),
        int((called & ~idc).sum()),
        int((~called & ~idc).sum()),
        int((~called & idc).sum()),
    )


def auroc(probability: Floats, labels: Labels) -> float:
    """Chance that a random IDC patch scores above a random other one, ties counted half.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    idc = labels == 1
    positive, negative = int(idc.sum()), int((~idc).sum())
    ranks = rankdata(probability)
    return _ratio(float(ranks[idc].sum()) - positive * (positive + 1) / 2, positive * negative)


def auprc(probability: Floats, labels: Labels) -> float:
    """Average precision: precision at each threshold, weighted by the recall that it gains."""
    _, true_positive, called = _sweep(probability, labels)
    gained = np.diff(true_positive, prepend=0)
    return _ratio(float((gained * true_positive / called).sum()), int((labels == 1).sum()))


def calibration_error(probability: Floats, labels: Labels) -> float:
    """Expected calibration error: |share of IDC - mean probability| of bins of equal width, by count."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=labels - probability.astype(float), minlength=CALIBRATION_BINS)
    return _ratio(float(np.abs(gap).sum()), len(labels))


def fit_temperature(logits: Floats, classes: Labels) -> float:
    """The temperature that makes `classes` [N] most likely under softmax(logits [N, C] / temperature)."""

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(classes)), classes].mean())

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded").x)


def choose_threshold(probability: Floats, labels: Labels) -> float:
    """The threshold of the highest F1, half way to the next probability below it.

    F1 and not balanced accuracy: with one IDC patch in five, the latter calls many patches IDC that are not,
    and the area of the tumour on a slide comes out too large.
    """
    thresholds, true_positive, called = _sweep(probability, labels)
    f1 = 2 * true_positive / (called + (labels == 1).sum())
    best = int(f1.argmax())
    below = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    return float(np.clip((thresholds[best] + below) / 2, 1e-6, 1 - 1e-6))


def measures(probability: Floats, labels: Labels, threshold: float) -> dict[str, float]:
    """All measures over the patches given, by name."""
    decisions = decide(probability, labels, threshold)
    return {
        "auroc": auroc(probability, labels),
        "auprc": auprc(probability, labels),
        "f1": decisions.f1,
        "precision": decisions.precision,
        "recall": decisions.recall,
        "balanced_accuracy": decisions.balanced_accuracy,
        "ece": calibration_error(probability, labels),
        "patches": len(labels),
        "idc_share": _ratio(int((labels == 1).sum()), len(labels)),
    }


def measures_by_patient(
    probability: Floats, labels: Labels, patients: NDArray[np.str_], threshold: float
) -> dict[str, dict[str, float]]:
    """The measures of each patient's own patches."""
    return {
        str(patient): measures(probability[patients == patient], labels[patients == patient], threshold)
        for patient in np.unique(patients)
    }


def spread(by_patient: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, lowest and highest of each measure among the patients where it has a meaning."""
    result = {}
    for name in ("auroc", "f1", "balanced_accuracy", "ece"):
        values = [m[name] for m in by_patient.values() if not math.isnan(m[name])]
        if values:
            result[name] = {
                "median": float(np.median(values)),
                "lowest": min(values),
                "highest": max(values),
                "patients": len(values),
            }
    return result


def crossfitted(
    logits: Floats, labels: Labels, patients: NDArray[np.str_], idc: int = 1, folds: int = 5
) -> dict[str, float]:
    """The measures when each patient's temperature and threshold come from other patients only.

    What these two fitted numbers alone flatter shows as the difference to `measures`.
    """
    names = np.unique(patients)
    fold_of = np.searchsorted(names, patients) % folds
    probability, called = np.empty(len(labels)), np.empty(len(labels), bool)
    for fold in np.unique(fold_of):
        held, rest = fold_of == fold, fold_of != fold
        temperature = fit_temperature(logits[rest], labels[rest])
        threshold = choose_threshold(softmax(logits[rest] / temperature, axis=1)[:, idc], labels[rest])
        probability[held] = softmax(logits[held] / temperature, axis=1)[:, idc]
        called[held] = probability[held] >= threshold
    decisions = decide(called.astype(float), labels, 0.5)
    return {
        "f1": decisions.f1,
        "balanced_accuracy": decisions.balanced_accuracy,
        "ece": calibration_error(probability, labels),
    }


def _sweep(probability: Floats, labels: Labels) -> tuple[Floats, Floats, Floats]:
    """Each distinct probability, falling, with how many IDC patches and how many at all lie from it on."""
    order = np.argsort(-probability, kind="stable")
    falling = probability[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    return falling[last], np.cumsum(labels[order] == 1)[last].astype(float), last + 1.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
