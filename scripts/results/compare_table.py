"""The comparison in words and tables, for docs/results.md."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.results.compare_speed import BATCH, GPU_BATCH, HEAVY_BATCH, HEAVY_MFLOP, Speed
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.evaluation.bootstrap import (
    DRAWS,
    decision_measures,
    draw_patients,
    interval,
    ranking_measures,
)
from wsi_pipeline.learning.evaluation.metrics import auroc, crossfit, decide
from wsi_pipeline.models.cost import network_cost
from wsi_pipeline.models.model import Model

WITHOUT_GPU = (
    "On a GPU the networks were not timed: there was none. `scripts/bench/gpu.sh --only machine lineup` does that, "
    "with the engine that `infer-slide` takes."
)


@dataclass(frozen=True)
class Row:
    """A network as it was trained, and its logits, float32 [N, classes], of the patches evaluated."""

    name: str
    model: Model
    logits: NDArray[np.float32]
    got: str


@dataclass(frozen=True)
class Measured:
    """A measure and all its draws."""

    value: float
    drawn: NDArray[np.float64]

    def __str__(self) -> str:
        low, high = interval(self.drawn)
        return f"{self.value:.3f} ({low:.3f} to {high:.3f})"

    def less(self, other: "Measured") -> "Measured":
        """The difference, draw by draw: both are of the same patients."""
        return Measured(self.value - other.value, self.drawn - other.drawn)

    @property
    def signed(self) -> str:
        """As text, with its sign."""
        low, high = interval(self.drawn)
        return f"{self.value:+.3f} ({low:+.3f} to {high:+.3f})"


def table_text(
    rows: Sequence[Row],
    val: LabelledPatches,
    speed: Mapping[str, Speed],
    failures: Mapping[str, str],
    minutes: float,
) -> str:
    """The section on all networks, best AUROC first."""
    measured = [(row, measures(row.logits, val)) for row in rows]
    measured.sort(key=lambda pair: -pair[1]["auroc"].value)
    gpu = next((s.gpu for s in speed.values()), None) is not None
    head = ["network", "trained", "AUROC", "AUROC less the first's", "F1", "balanced accuracy", "MFLOP", "parameters",
            "patches/s, CPU", *(["patches/s, GPU"] if gpu else [])]  # fmt: skip
    lines = [
        "## Networks compared",
        "",
        f"Written by `make results BUDGET={minutes:g}`: each config of configs/train was given {minutes:g} minutes of "
        "training at most, as many whole epochs as fit with a whole learning rate schedule, or, where not one fits, as "
        "many patches as do (without a GPU: minutes that the processor worked, for each thread). "
        "A network that wants longer may do better than here. All start from random weights.",
        "",
        f"{len(val):,} validation patches of {len(set(val.patients))} patients. 95 % intervals: {DRAWS:,} bootstrap "
        "draws of patients; of a difference, draw by draw. F1 and balanced accuracy are cross-fitted: each patient's "
        "calibration and threshold come from other patients. The best epoch was chosen on these patients.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * 2}{' ---: |' * (len(head) - 2)}",
    ]
    best = measured[0][1]["auroc"]
    for row, m in measured:
        cost = network_cost(row.model.network, row.model.card.patch_px)
        parameters = sum(p.numel() for p in row.model.network.parameters())  # frozen, so that `cost` has none
        key = "as shipped" if row.name.endswith("as shipped") else row.name
        cells = [
            row.name,
            row.got,
            str(m["auroc"]),
            "" if m["auroc"] is best else m["auroc"].less(best).signed,
            str(m["f1"]),
            str(m["balanced_accuracy"]),
            f"{cost.mflop:,.1f}",
            f"{parameters:,}",
            f"{speed[key].cpu:,.0f}",
            *([f"{speed[key].gpu:,.0f}"] if gpu else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"MFLOP a patch: a multiplication and its addition are two. Patches/s: float32, one process of "
        f"{torch.get_num_threads()} threads on {platform.machine()}, batches of {BATCH} ({HEAVY_BATCH} above "
        f"{HEAVY_MFLOP:,.0f} MFLOP), networks in turn, median of five rounds"
        + (f"; {torch.cuda.get_device_name()}, batches of {GPU_BATCH}." if gpu else f". {WITHOUT_GPU}"),
    ]
    if failures:
        lines += ["", "Not compared:", ""]
        lines += [f"- {name}: {reason}" for name, reason in failures.items()]
    return "\n".join(lines)


def leak_text(
    test: LabelledPatches, logits: Mapping[str, NDArray[np.float32]], got: Mapping[str, str], network: str
) -> str:
    """The section on how far a split by patch flatters."""
    patient, patch = (measures(logits[name], test) for name in ("by patient", "by patch"))
    names = {"auroc": "AUROC", "f1": "F1", "balanced_accuracy": "balanced accuracy"}
    return "\n".join(
        [
            "## How far a split by patch flatters",
            "",
            f"`{network}` twice, on as many patches, evaluated on the very same {len(test):,} patches of "
            f"{len(set(test.patients))} patients: once trained on patches of other patients alone, once on the other "
            "patches of these patients as well, as a random split of patches would have it. Nothing else differs; "
            "what the second gains over the first it will not have on a new patient.",
            "",
            "| split | trained | AUROC | F1 | balanced accuracy |",
            "| --- | --- | ---: | ---: | ---: |",
            *(
                f"| {name} | {got[name]} | {' | '.join(str(m[key]) for key in names)} |"
                for name, m in (("by patient", patient), ("by patch", patch))
            ),
            f"| difference | | {' | '.join(patch[key].less(patient[key]).signed for key in names)} |",
            "",
            f"95 % intervals: {DRAWS:,} bootstrap draws of patients, of the difference draw by draw. Best epoch chosen "
            "on these patches, calibration and threshold cross-fitted by patient, in both alike.",
        ]
    )


def measures(logits: NDArray[np.float32], side: LabelledPatches) -> dict[str, Measured]:
    """AUROC of the log odds, F1 and balanced accuracy of cross-fitted decisions, each with its draws."""
    odds = (logits[:, 1] - logits[:, 0]).astype(float)
    resampled = draw_patients(side.patients)
    _, called = crossfit(logits, side.labels, side.patients)
    decisions = decide(called.astype(float), side.labels, 0.5)
    drawn = decision_measures(called, side.labels, resampled)
    return {
        "auroc": Measured(
            auroc(odds, side.labels), ranking_measures(_to_unit(odds), side.labels, resampled)["auroc"]
        ),
        "f1": Measured(decisions.f1, drawn["f1"]),
        "balanced_accuracy": Measured(decisions.balanced_accuracy, drawn["balanced_accuracy"]),
    }


def _to_unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same order and ties between 0 and 1, where calibration has its bins."""
    return np.unique(values, return_inverse=True)[1] / len(values)
