"""A model evaluated on labelled patches: its probabilities, and all that is measured of them, as plain values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.options import options_from_dict
from wsi_pipeline.learning.datasets import LabelledPatches, SplitOptions
from wsi_pipeline.learning.datasets.scale import scale_in_words
from wsi_pipeline.learning.datasets.tiled_slides import SlideReadOptions
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import (
    DRAWS,
    LEAST_PATIENTS,
    draw_patients,
    interval,
    resampled_measures,
)
from wsi_pipeline.learning.evaluation.metrics import Calibration
from wsi_pipeline.models.stain import as_the_card_wants

if TYPE_CHECKING:
    import torch

    from wsi_pipeline.models.card import ModelCard
    from wsi_pipeline.models.model import Model

MEASURES = (
    "accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "balanced_accuracy",
    "auroc",
    "auprc",
    "ece",
)
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
# At least this share of the IDC patches found: a threshold for those who would rather look twice.
SENSITIVE = 0.95
# Mistakes listed on each side, and of one patient at most, lest one difficult section fills the sheet.
MISTAKES, MISTAKES_A_PATIENT = 24, 4


@dataclass(frozen=True)
class EvaluatedPatches:
    """What a model says of labelled patches."""

    card: "ModelCard"
    sha256: str
    side: LabelledPatches
    # float32 [N, classes].
    logits: NDArray[np.float32]
    # [N] in [0, 1], by the card's calibration.
    probability: NDArray[np.floating[Any]]
    # [N] in [0, 1], the softmax as it leaves the network.
    raw: NDArray[np.floating[Any]]


def evaluate_patches(model: "Model", side: LabelledPatches, device: "torch.device") -> EvaluatedPatches:
    """The model's probabilities of the patches, computed in float32, each patient's stain as the card wants it.

    A network that hears of its slide hears of each patient, by its own patches; of single images it hears nothing.
    """
    from wsi_pipeline.models.logits import evaluate, evaluate_by_slide

    pixels = as_the_card_wants(side.pixels, side.patients, model.card)
    network = model.network.to(device)
    if side.by == "image":  # of a single image a network knows no slide
        logits = evaluate(network, model.card, pixels, device)
    else:
        logits = evaluate_by_slide(network, model.card, pixels, side.patients, device)
    return evaluated_from(model.card, model.sha256, side, logits)


def evaluated_from(
    card: "ModelCard", sha256: str, side: LabelledPatches, logits: NDArray[np.float32]
) -> EvaluatedPatches:
    """The same, of logits that are there already."""
    idc = card.classes.index("idc")
    calibration = Calibration(card.temperature, card.log_odds_shift)
    probability = metrics.calibrated(logits, calibration, idc)
    return EvaluatedPatches(
        card, sha256, side, logits, probability, metrics.calibrated(logits, Calibration(1, 0), idc)
    )


def split_of(card: "ModelCard") -> SplitOptions:
    """How the card's training split its patients; the defaults where the card does not say."""
    config = card.training.get("config", {})
    return options_from_dict(SplitOptions, config.get("split", {}), f"the card of '{card.name}', split")


def reading_of(card: "ModelCard") -> tuple[SlideReadOptions, int]:
    """How the card's training read patches from slides, and its seed; the defaults where the card does not say."""
    config = card.training.get("config", {})
    where = f"the card of '{card.name}', reading"
    return options_from_dict(SlideReadOptions, config.get("reading", {}), where), int(config.get("seed", 0))


def metrics_of(evaluated: EvaluatedPatches, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Everything measured, as plain values; what has no meaning is NaN."""
    side, card, probability = evaluated.side, evaluated.card, evaluated.probability
    labels, threshold, idc = side.labels, card.threshold, card.classes.index("idc")
    decisions = metrics.decide(probability, labels, threshold)
    # Where each image is its own patient, there is nothing to measure within one.
    by_patient = (
        {}
        if side.by == "image"
        else metrics.measures_by_patient(probability, labels, side.patients, threshold)
    )
    return {
        "model": {
            "name": card.name,
            "sha256": evaluated.sha256,
            "architecture": card.architecture,
            "patch_px": card.patch_px,
            "mpp": card.mpp,
        },
        "data": {
            "by": side.by,
            "patches": len(side),
            "idc_patches": int((labels == 1).sum()),
            "patients": len(by_patient) or None,
            "scale": scale_in_words(side.scale, "model"),
        },
        "threshold": threshold,
        "bootstrap": {
            "draws": draws,
            "seed": seed,
            "of": side.by,
            "patients": len(np.unique(side.patients)),
            "least_patients": LEAST_PATIENTS,
        },
        "patches": _with_intervals(probability, side, threshold, draws, seed),
        "crossfitted": metrics.crossfitted(evaluated.logits, labels, side.patients, idc),
        "not_crossfitted": metrics.no_crossfit(labels, side.patients, side.by) or None,
        "confusion": {
            "true_positive": decisions.true_positive,
            "false_positive": decisions.false_positive,
            "true_negative": decisions.true_negative,
            "false_negative": decisions.false_negative,
        },
        "calibration": _calibrations(evaluated),
        "thresholds": [_at_threshold(probability, labels, t, "") for t in THRESHOLDS],
        "threshold_choices": _threshold_choices(probability, labels, threshold),
        "patients": [
            {"patient": name, **values, **_counts(probability, side, name, threshold)}
            for name, values in by_patient.items()
        ],
        "spread": metrics.spread(by_patient),
        "mistakes": {
            "called_idc": [_mistake(evaluated, i) for i in mistakes(evaluated, called_idc=True)],
            "missed_idc": [_mistake(evaluated, i) for i in mistakes(evaluated, called_idc=False)],
        },
    }


def mistakes(evaluated: EvaluatedPatches, called_idc: bool) -> list[int]:
    """Indices of the most confident mistakes, worst first: called IDC and not, or IDC and not called.

    Of one patient no more than `MISTAKES_A_PATIENT`.
    """
    probability, labels = evaluated.probability, evaluated.side.labels
    called = probability >= evaluated.card.threshold
    wrong = np.flatnonzero(called & (labels == 0) if called_idc else ~called & (labels == 1))
    worst_first = wrong[np.argsort(-probability[wrong] if called_idc else probability[wrong], kind="stable")]
    taken: list[int] = []
    seen: dict[str, int] = {}
    for index in worst_first.tolist():
        patient = str(evaluated.side.patients[index])
        # Without patients there is no one whose share to limit.
        if seen.get(patient, 0) < MISTAKES_A_PATIENT:
            seen[patient] = seen.get(patient, 0) + 1
            taken.append(index)
        if len(taken) == MISTAKES:
            break
    return taken


def name_of(side: LabelledPatches, index: int) -> str:
    """What the patch is called in its set; its number where nobody knows."""
    return str(side.names[index]) if len(side.names) else f"patch {index}"


def plain(value: Any) -> Any:
    """The same with None for what JSON does not know: NaN and infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _with_intervals(
    probability: NDArray[np.floating[Any]], side: LabelledPatches, threshold: float, draws: int, seed: int
) -> dict[str, dict[str, float]]:
    decisions = metrics.decide(probability, side.labels, threshold)
    values = metrics.measures(probability, side.labels, threshold) | {
        "accuracy": decisions.accuracy,
        "specificity": decisions.specificity,
    }
    resampled = draw_patients(side.patients, draws, seed)
    drawn = resampled_measures(probability, side.labels, threshold, resampled)
    result = {}
    for name in MEASURES:
        low, high = interval(drawn[name]) if resampled.patients >= LEAST_PATIENTS else (math.nan, math.nan)
        result[name] = {"value": values[name], "low": low, "high": high}
    return result


def _calibrations(evaluated: EvaluatedPatches) -> list[dict[str, Any]]:
    """Before and after: the raw softmax, a temperature fitted on these patches, the card's calibration."""
    labels, idc = evaluated.side.labels, evaluated.card.classes.index("idc")
    temperature = metrics.fit_temperature(evaluated.logits, labels, idc)
    card = Calibration(evaluated.card.temperature, evaluated.card.log_odds_shift)
    variants = (
        ("raw", Calibration(1.0, 0.0), evaluated.raw),
        ("temperature", temperature, metrics.calibrated(evaluated.logits, temperature, idc)),
        ("card", card, evaluated.probability),
    )
    return [
        {
            "name": name,
            "temperature": calibration.temperature,
            "log_odds_shift": calibration.log_odds_shift,
            "ece": metrics.calibration_error(probability, labels),
            "mean_probability": float(probability.mean()),
            "reliability": metrics.reliability(probability, labels),
        }
        for name, calibration, probability in variants
    ]


def _threshold_choices(
    probability: NDArray[np.floating[Any]], labels: NDArray[np.uint8], card: float
) -> list[dict[str, Any]]:
    """What other choices of a threshold would make: each best in its own way on these patches."""
    by_f1 = _best(probability, labels, "f1")
    by_balance = _best(probability, labels, "balanced_accuracy")
    positive = np.sort(probability[labels == 1])
    sensitive = float(positive[int((1 - SENSITIVE) * len(positive))]) if len(positive) else math.nan
    return [
        _at_threshold(probability, labels, card, "the card's"),
        _at_threshold(
            probability, labels, metrics.choose_threshold(probability, labels), "as the card's, on these"
        ),
        _at_threshold(probability, labels, by_f1, "best F1"),
        _at_threshold(probability, labels, by_balance, "best balanced accuracy"),
        _at_threshold(probability, labels, sensitive, f"recall of {SENSITIVE:.0%}"),
    ]


def _best(probability: NDArray[np.floating[Any]], labels: NDArray[np.uint8], measure: str) -> float:
    candidates = np.unique(np.quantile(probability, np.linspace(0, 1, 401)))
    reached = [getattr(metrics.decide(probability, labels, t), measure) for t in candidates]
    return float(candidates[int(np.nanargmax(reached))]) if not np.isnan(reached).all() else math.nan


def _at_threshold(
    probability: NDArray[np.floating[Any]], labels: NDArray[np.uint8], threshold: float, name: str
) -> dict[str, Any]:
    d = metrics.decide(probability, labels, threshold)
    values = {
        key: getattr(d, key) for key in ("precision", "recall", "specificity", "f1", "balanced_accuracy")
    }
    return {"name": name, "threshold": threshold, **values}


def _counts(
    probability: NDArray[np.floating[Any]], side: LabelledPatches, patient: str, threshold: float
) -> dict[str, int]:
    own = side.patients == patient
    d = metrics.decide(probability[own], side.labels[own], threshold)
    return {
        "idc_patches": d.true_positive + d.false_negative,
        "false_positive": d.false_positive,
        "false_negative": d.false_negative,
    }


def _mistake(evaluated: EvaluatedPatches, index: int) -> dict[str, Any]:
    side = evaluated.side
    return {
        "patient": str(side.patients[index]),
        "name": name_of(side, index),
        "label": int(side.labels[index]),
        "probability": float(evaluated.probability[index]),
    }
