"""How good probabilities of IDC are, over patches and by patient, and the numbers fitted on them.

Arrays are [N]: `labels` 0 or 1, `probability` in [0, 1], `patients` names. A measure without meaning (one
class alone, say) is NaN.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import rankdata

from wsi_pipeline.models.calibration import log_odds, probability
from wsi_pipeline.models.score_distance import SCORE_BINS

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

CALIBRATION_BINS = SCORE_BINS


@dataclass(frozen=True)
class Decisions:
    """What a threshold makes of probabilities."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def accuracy(self) -> float:
        """Share of all patches called rightly; flatters where IDC is rare."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative)

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


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities: divided by a temperature, the log odds of IDC shifted."""

    temperature: float
    log_odds_shift: float


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
    group = rankdata(probability)
    return _ratio(float(group[idc].sum()) - positive * (positive + 1) / 2, positive * negative)


def auprc(probability: Floats, labels: Labels) -> float:
    """Average precision: precision at each threshold, weighted by the recall that it gains."""
    _, true_positive, called = sweep(probability, labels)
    gained = np.diff(true_positive, prepend=0)
    return _ratio(float((gained * true_positive / called).sum()), int((labels == 1).sum()))


def calibration_error(probability: Floats, labels: Labels) -> float:
    """Expected calibration error: |share of IDC - mean probability| of bins of equal width, by count."""
    bins = calibration_bins(probability)
    gap = np.bincount(bins, weights=labels - probability.astype(float), minlength=CALIBRATION_BINS)
    return _ratio(float(np.abs(gap).sum()), len(labels))


def calibration_bins(probability: Floats) -> NDArray[np.int64]:
    """int64 [N]: in which of the `CALIBRATION_BINS` bins of equal width each probability lies."""
    return np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def reliability(probability: Floats, labels: Labels) -> list[dict[str, float]]:
    """Of each bin that holds patches: its edges, how many, their mean probability and their share of IDC."""
    bins = calibration_bins(probability)
    return [
        {
            "from": float(b / CALIBRATION_BINS),
            "to": float((b + 1) / CALIBRATION_BINS),
            "patches": int((bins == b).sum()),
            "probability": float(probability[bins == b].mean()),
            "idc_share": float((labels[bins == b] == 1).mean()),
        }
        for b in np.unique(bins)
    ]


def fit_temperature(logits: Floats, labels: Labels, idc: int = 1) -> Calibration:
    """The temperature alone, without a shift, that makes `labels` most likely (Guo et al., ICML 2017)."""
    odds, sign = logits.astype(float), np.where(labels == 1, -1.0, 1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, sign * log_odds(odds / math.exp(log_temperature), idc)).mean())

    return Calibration(math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x), 0.0)


def fit_calibration(logits: Floats, labels: Labels, idc: int = 1) -> Calibration:
    """The calibration that makes `labels` most likely, of logits [N, C] whose column `idc` speaks for IDC.

    A temperature alone leaves the whole level off where IDC is rarer, or outlines are wider, than among the
    patches trained on.
    """

    logits = logits.astype(float)  # in float32 the loss has steps, and no slope to follow

    def loss(parameters: Floats) -> float:
        odds = log_odds(logits / math.exp(parameters[0]), idc) + parameters[1]
        return float(np.logaddexp(0, np.where(labels == 1, -odds, odds)).mean())

    log_temperature, shift = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-3, 3), (-5, 5)]).x
    return Calibration(math.exp(log_temperature), float(shift))


def calibrated(logits: Floats, calibration: Calibration, idc: int = 1) -> Floats:
    """Probability of IDC [N] of logits [N, C]."""
    return probability(logits, calibration.temperature, calibration.log_odds_shift, idc)


def choose_threshold(probability: Floats, labels: Labels) -> float:
    """The threshold of the highest mean of F1 and balanced accuracy, half way to the next probability below.

    Not balanced accuracy alone: where one patch in five is IDC it calls many that are not, and the tumour's
    area comes out too large. Not F1 alone: it is flat around its top, where chance would choose, and balanced
    accuracy takes of that stretch the end that misses less.
    """
    thresholds, true_positive, called = sweep(probability, labels)
    positive = int((labels == 1).sum())
    negative = len(labels) - positive
    f1 = 2 * true_positive / (called + positive)
    balanced = (true_positive / max(positive, 1) + 1 - (called - true_positive) / max(negative, 1)) / 2
    best = int((f1 + balanced).argmax())
    below = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    return float(np.clip((thresholds[best] + below) / 2, 1e-6, 1 - 1e-6))


# What `measures` gives, in its order.
MEASURES = (
    "auroc",
    "auprc",
    "f1",
    "precision",
    "recall",
    "balanced_accuracy",
    "ece",
    "patches",
    "idc_share",
)


def measures(probability: Floats, labels: Labels, threshold: float) -> dict[str, float]:
    """All measures over the patches given, by name."""
    decisions = decide(probability, labels, threshold)
    values = (
        auroc(probability, labels),
        auprc(probability, labels),
        decisions.f1,
        decisions.precision,
        decisions.recall,
        decisions.balanced_accuracy,
        calibration_error(probability, labels),
        len(labels),
        _ratio(int((labels == 1).sum()), len(labels)),
    )
    return dict(zip(MEASURES, values, strict=True))


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
    """The measures when each patient's calibration and threshold come from other patients only.

    How far these fitted numbers flatter shows as the difference to `measures`. They have no meaning where
    `no_crossfit` says why.
    """
    if no_crossfit(labels, patients, folds=folds):
        return dict.fromkeys(("f1", "balanced_accuracy", "ece"), math.nan)
    probability, called = crossfit(logits, labels, patients, idc, folds)
    decisions = decide(called.astype(float), labels, 0.5)
    return {
        "f1": decisions.f1,
        "balanced_accuracy": decisions.balanced_accuracy,
        "ece": calibration_error(probability, labels),
    }


def no_crossfit(labels: Labels, patients: NDArray[np.str_], by: str = "patient", folds: int = 5) -> str:
    """Why nothing can be cross-fitted on these patches; empty where it can. `by` is what patients are called.

    >>> no_crossfit(np.array([0, 1]), np.array(["a", "a"]), "slide")
    'one slide alone leaves no other to fit on'
    """
    names = np.unique(patients)
    if len(names) < 2:
        return f"one {by} alone leaves no other to fit on"
    fold_of = _folds(patients, folds)
    for fold in np.unique(fold_of):
        if len(np.unique(labels[fold_of != fold])) < 2:
            held = ", ".join(np.unique(patients[fold_of == fold])[:3])
            return f"the {by}s other than {held} hold patches of one class alone"
    return ""


def crossfit(
    logits: Floats, labels: Labels, patients: NDArray[np.str_], idc: int = 1, folds: int = 5
) -> tuple[Floats, NDArray[np.bool_]]:
    """Probability [N] and whether it is called IDC, bool [N], by what was fitted on other patients only.

    Only where `no_crossfit` finds nothing against it.
    """
    fold_of = _folds(patients, folds)
    probability, called = np.empty(len(labels)), np.empty(len(labels), bool)
    for fold in np.unique(fold_of):
        held, rest = fold_of == fold, fold_of != fold
        calibration = fit_calibration(logits[rest], labels[rest], idc)
        threshold = choose_threshold(calibrated(logits[rest], calibration, idc), labels[rest])
        probability[held] = calibrated(logits[held], calibration, idc)
        called[held] = probability[held] >= threshold
    return probability, called


def _folds(patients: NDArray[np.str_], folds: int) -> NDArray[np.int64]:
    """int64 [N]: the fold of each patch, the same for all of a patient."""
    return np.searchsorted(np.unique(patients), patients) % folds


def sweep(probability: Floats, labels: Labels) -> tuple[Floats, Floats, Floats]:
    """Each distinct probability, falling, with how many IDC patches and how many at all lie from it on."""
    order = np.argsort(-probability, kind="stable")
    falling = probability[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    return falling[last], np.cumsum(labels[order] == 1)[last].astype(float), last + 1.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
