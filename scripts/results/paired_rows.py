"""Measures of one way beside another's on the same patches: values, 95 % intervals over patients, differences."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import (
    Resampled,
    decision_measures,
    interval,
    ranking_measures,
)

MEASURES = {"auroc": "AUROC", "f1": "F1", "balanced_accuracy": "balanced accuracy", "ece": "ECE"}


@dataclass(frozen=True)
class Measured:
    """Each of MEASURES, over all patches and in each draw of patients, float64 [draws]."""

    values: dict[str, float]
    drawn: dict[str, NDArray[np.float64]]


def measured(
    probability: NDArray[np.floating],
    called: NDArray[np.bool_],
    labels: NDArray[np.integer],
    resampled: Resampled,
) -> Measured:
    """Of patches [N]: calibrated probabilities, which are called IDC, labels (1 is IDC) and the draws."""
    drawn = decision_measures(called, labels, resampled) | ranking_measures(probability, labels, resampled)
    decisions = metrics.decide(called.astype(float), labels, 0.5)
    values = {
        "auroc": metrics.auroc(probability, labels),
        "f1": decisions.f1,
        "balanced_accuracy": decisions.balanced_accuracy,
        "ece": metrics.calibration_error(probability, labels),
    }
    return Measured(values, {name: drawn[name] for name in MEASURES})


def cells(found: Measured, first: Measured | None, intervals: bool = False) -> list[str]:
    """The cells of a table's row; with a first row, the differences to it, draw by draw."""
    row = []
    for name, value in found.values.items():
        cell = f"{value:.3f}"
        if intervals:
            cell += " ({:.3f} to {:.3f})".format(*interval(found.drawn[name]))
        if first is not None:
            low, high = interval(found.drawn[name] - first.drawn[name])
            cell += f"; {value - first.values[name]:+.3f} ({low:+.3f} to {high:+.3f})"
        row.append(cell)
    return row


def heading(name: str) -> list[str]:
    """The two lines above such rows; `name`: what a row is."""
    return [
        f"| {name} | " + " | ".join(MEASURES.values()) + " |",
        "| --- | " + " | ".join("---" for _ in MEASURES) + " |",
    ]
