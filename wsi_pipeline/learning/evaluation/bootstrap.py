"""How sure measures are: 95 % intervals by drawing patients again and again, with replacement.

Patches of one patient resemble each other, so that thousands of patches of a few patients say little more than
a few patients do: a draw takes a patient with all patches or not at all (the cluster bootstrap; Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; intervals are its percentiles). A draw is
a row of weights, how often each patient is in it, and every measure is computed from weighted counts, of all
draws together. Calibration and threshold stay as they are: the intervals are of patients, not of fitting.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.learning.evaluation.metrics import CALIBRATION_BINS, Floats, Labels, calibration_bins

DRAWS = 1000
# Fewer patients give fewer than a hundred different draws (3 of two patients, 35 of four, 126 of five): the ends
# of an interval, 2.5 % on each side, would be single draws.
LEAST_PATIENTS = 5
# Draws worked on at a time hold about this many weights of patches.
WEIGHTS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Resampled:
    """Patches and the draws of their patients."""

    # uint8 [draws, patients] how often each patient is in each draw.
    times: NDArray[np.uint8]
    # [N] which column each patch's patient is.
    patient_of: NDArray[np.int64]

    @property
    def patients(self) -> int:
        """How many there are to draw from."""
        return int(self.times.shape[1])


def draw_patients(patients: NDArray[np.str_], draws: int = DRAWS, seed: int = 0) -> Resampled:
    """The draws of the patients of patches [N]; the same patients, draws and seed give the same ones."""
    names, patient_of = np.unique(patients, return_inverse=True)
    generator, count = np.random.default_rng(seed), len(names)
    times = np.empty((draws, count), np.uint8)
    for row in times:
        row[:] = np.bincount(generator.integers(count, size=count), minlength=count)
    return Resampled(times, patient_of)


def resampled_measures(
    probability: Floats, labels: Labels, threshold: float, resampled: Resampled
) -> dict[str, NDArray[np.float64]]:
    """Each measure in each draw, float64 [draws]; NaN in draws where it has no meaning (one class alone)."""
    called = probability >= threshold
    return decision_measures(called, labels, resampled) | ranking_measures(probability, labels, resampled)


def decision_measures(
    called: NDArray[np.bool_], labels: Labels, resampled: Resampled
) -> dict[str, NDArray[np.float64]]:
    """Of patches `called` IDC (bool [N]): the measures that decisions have, in each draw."""
    idc = labels == 1
    tp, fp, tn, fn = (
        _drawn_sums(np.asarray(which, float), resampled)
        for which in (called & idc, called & ~idc, ~called & ~idc, ~called & idc)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "accuracy": (tp + tn) / (tp + fp + tn + fn),
            "precision": tp / (tp + fp),
            "recall": recall,
            "specificity": specificity,
            "f1": 2 * tp / (2 * tp + fp + fn),
            "balanced_accuracy": (recall + specificity) / 2,
        }


def ranking_measures(
    probability: Floats, labels: Labels, resampled: Resampled
) -> dict[str, NDArray[np.float64]]:
    """Of probabilities [N]: AUROC, AUPRC and ECE in each draw."""
    order = np.argsort(-probability, kind="stable")
    falling = probability[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of each run of ties
    patient_of, idc = resampled.patient_of[order], labels[order] == 1
    step = max(1, WEIGHTS_AT_ONCE // len(labels))
    auroc, auprc = [], []
    for start in range(0, len(resampled.times), step):
        weights = resampled.times[start : start + step].astype(float)[:, patient_of]  # [draws, N]
        hit = np.cumsum(np.where(idc, weights, 0), axis=1)[:, last]
        miss = np.cumsum(np.where(idc, 0, weights), axis=1)[:, last]
        before = np.pad(hit, ((0, 0), (1, 0)))[:, :-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = np.diff(miss, axis=1, prepend=0) * (hit + before) / 2
            auroc.append(pairs.sum(axis=1) / (hit[:, -1] * miss[:, -1]))
            # Where a draw's weights begin with zeros, nothing is called yet, and nothing gained.
            precision = np.divide(hit, hit + miss, out=np.zeros_like(hit), where=hit + miss > 0)
            auprc.append(((hit - before) * precision).sum(axis=1) / hit[:, -1])
    bins = calibration_bins(probability)
    gap = labels - probability.astype(float)
    gaps = [np.abs(_drawn_sums(np.where(bins == b, gap, 0), resampled)) for b in range(CALIBRATION_BINS)]
    ece = np.sum(gaps, axis=0) / _drawn_sums(np.ones(len(labels)), resampled)
    return {"auroc": np.concatenate(auroc), "auprc": np.concatenate(auprc), "ece": ece}


def interval(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """The middle 95 % of the draws in which the measure has a meaning; NaN twice where none has."""
    meant = values[~np.isnan(values)]
    if not len(meant):
        return float("nan"), float("nan")
    low, high = np.percentile(meant, [2.5, 97.5])
    return float(low), float(high)


def _drawn_sums(values: Floats, resampled: Resampled) -> NDArray[np.float64]:
    """The sum of values [N] in each draw, float64 [draws]."""
    by_patient = np.bincount(resampled.patient_of, weights=values, minlength=resampled.patients)
    # In parts: as floats at once, the draws of a set of many images would fill the memory.
    step = max(1, WEIGHTS_AT_ONCE // resampled.patients)
    starts = range(0, len(resampled.times), step)
    return np.concatenate([resampled.times[s : s + step].astype(float) @ by_patient for s in starts])
