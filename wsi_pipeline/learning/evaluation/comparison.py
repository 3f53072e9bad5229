"""A model beside an older one on the same patches: what got better and worse, and which patches changed.

Both are measured in the same draws of patients, so that a difference has an interval of its own: much of what makes one
number unsure, which patients there are, is the same for both.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import ScaleError
from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import (
    DRAWS,
    LEAST_PATIENTS,
    draw_patients,
    interval,
    resampled_measures,
)
from wsi_pipeline.learning.evaluation.patches import MEASURES, EvaluatedPatches, name_of, split_of

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.card import ModelCard

# Measures of which less is better.
LESS_IS_BETTER = ("ece",)


def check_same_patches(new: "ModelCard", old: "ModelCard") -> None:
    """Raises ScaleError where the two models see patches of another size or scale, and none can be compared."""
    if (new.patch_px, new.mpp) != (old.patch_px, old.mpp):
        raise ScaleError(
            f"--against {old.name}: sees patches of {old.patch_px} px at {old.mpp:g} um/px, {new.name} of "
            f"{new.patch_px} px at {new.mpp:g}; expected two models of the same patches"
        )


def comparison_of(
    new: EvaluatedPatches, old: EvaluatedPatches, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """All that is compared, as plain values; each model at its own card's threshold. What has no meaning is NaN.

    `measures`: by measure, `new`, `old`, `difference` (new less old), the 95 % interval of that by patient (`low`,
    `high`), and `verdict`: better or worse where the interval excludes 0, else `unsure`. `patients`: by patient, how
    many patches each has right. `changed`: patches that one has right and the other wrong. `note`: what makes the
    comparison unfair, as far as the cards say; empty where they say nothing.
    """
    side = new.side
    right = {
        name: (each.probability >= each.card.threshold) == (side.labels == 1)
        for name, each in (("new", new), ("old", old))
    }
    fixed, broken = right["new"] & ~right["old"], right["old"] & ~right["new"]
    return {
        "new": {"name": new.card.name, "sha256": new.sha256, "threshold": new.card.threshold},
        "old": {"name": old.card.name, "sha256": old.sha256, "threshold": old.card.threshold},
        "data": {"by": side.by, "patches": len(side), "patients": len(np.unique(side.patients))},
        "note": _about_splits(new.card, old.card),
        "bootstrap": {"draws": draws, "seed": seed, "least_patients": LEAST_PATIENTS},
        "measures": _measures(new, old, draws, seed),
        "patients": _patients(side.patients, right),
        "changed": {
            "fixed": int(fixed.sum()),
            "broken": int(broken.sum()),
            "patches": [_changed(new, old, i, fixed) for i in _most_moved(new, old, fixed | broken)],
        },
    }


def in_words(comparison: dict[str, Any]) -> list[str]:
    """The comparison in a few lines."""
    lines = []
    for name in ("f1", "balanced_accuracy", "auroc", "ece"):
        found = comparison["measures"][name]
        known = not math.isnan(found["low"])
        by = comparison["data"]["by"]
        sure = f" (95 % by {by}: {found['low']:+.3f} to {found['high']:+.3f})" if known else ""
        lines.append(
            f"{name.replace('_', ' ')} {found['old']:.3f} -> {found['new']:.3f}, {found['difference']:+.3f}{sure}: "
            f"{found['verdict']}"
        )
    changed, patients = comparison["changed"], comparison["patients"]
    better, worse = (sum(p["new"] > p["old"] for p in patients), sum(p["new"] < p["old"] for p in patients))
    lines.append(
        f"right that were wrong: {counted(changed['fixed'], 'patch')}; wrong that were right: {changed['broken']:,}; "
        f"{better} of {counted(len(patients), comparison['data']['by'])} better, {worse} worse"
    )
    return [*lines, *filter(None, [comparison["note"]])]


def _about_splits(new: "ModelCard", old: "ModelCard") -> str:
    """That the older model may know these patients: both cards are of one set, and split it otherwise."""
    is_one_set = new.training.get("data") == old.training.get("data")
    if not is_one_set or split_of(new) == split_of(old):
        return ""
    return (
        "the older model split its patients otherwise than the newer one (split on their cards): if it was trained on "
        "patients of these, it is flattered here"
    )


def _measures(
    new: EvaluatedPatches, old: EvaluatedPatches, draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    labels = new.side.labels
    resampled = draw_patients(new.side.patients, draws, seed)
    values, drawn = [], []
    for each in (new, old):
        threshold = each.card.threshold
        decisions = metrics.decide(each.probability, labels, threshold)
        values.append(
            metrics.measures(each.probability, labels, threshold)
            | {"accuracy": decisions.accuracy, "specificity": decisions.specificity}
        )
        drawn.append(resampled_measures(each.probability, labels, threshold, resampled))
    found = {}
    for name in MEASURES:
        enough = resampled.patients >= LEAST_PATIENTS
        low, high = interval(drawn[0][name] - drawn[1][name]) if enough else (math.nan, math.nan)
        sign = -1 if name in LESS_IS_BETTER else 1
        sure = low > 0 or high < 0
        verdict = ("better" if sign * low > 0 or sign * high > 0 else "worse") if sure else "unsure"
        difference = values[0][name] - values[1][name]
        found[name] = {
            "new": values[0][name],
            "old": values[1][name],
            "difference": difference,
            "low": low,
            "high": high,
            "verdict": verdict,
        }
    return found


def _patients(patients: NDArray[np.str_], right: dict[str, NDArray[np.bool_]]) -> list[dict[str, Any]]:
    """By patient, how many patches there are and how many each model has right; the most worsened first."""
    names, of = np.unique(patients, return_inverse=True)
    counts = {name: np.bincount(of, weights=values, minlength=len(names)) for name, values in right.items()}
    order = np.argsort(counts["new"] - counts["old"], kind="stable")
    patches = np.bincount(of, minlength=len(names))
    return [
        {
            "patient": str(names[i]),
            "patches": int(patches[i]),
            "new": int(counts["new"][i]),
            "old": int(counts["old"][i]),
        }
        for i in order.tolist()
    ]


def _most_moved(new: EvaluatedPatches, old: EvaluatedPatches, which: NDArray[np.bool_]) -> list[int]:
    """The patches of `which`, those whose probability moved most first."""
    rows = np.flatnonzero(which)
    moved = np.abs(new.probability[rows] - old.probability[rows])
    return [int(row) for row in rows[np.argsort(-moved, kind="stable")]]


def _changed(
    new: EvaluatedPatches, old: EvaluatedPatches, row: int, fixed: NDArray[np.bool_]
) -> dict[str, Any]:
    side = new.side
    return {
        "patient": str(side.patients[row]),
        "name": name_of(side, row),
        "label": int(side.labels[row]),
        "new": float(new.probability[row]),
        "old": float(old.probability[row]),
        "change": "fixed" if fixed[row] else "broken",
    }
