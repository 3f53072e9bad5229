"""How fast and how true each way of computing a network is.

    python -m scripts.bench.measure_engines ../shared/data                           # prints
    python -m scripts.bench.measure_engines ../shared/data --docs docs/performance.md

Truth: every validation patch of the IDC set against eager float32, each patient like a slide of its own, of which 64
patches tell the stain and are what int8 is calibrated on. Speed: the network alone on patches in memory, stain
normalisation included, counted in processor time, as other work may share the machine; rounds interleaved.
"""

import argparse
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.doc_sections import put_section
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.inference.stain_check import SAMPLED_PATCHES
from wsi_pipeline.learning.datasets import LabelledPatches, SplitOptions, load_side
from wsi_pipeline.learning.evaluation.metrics import auroc, decide
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.models.stain import patch_densities

CPU = torch.device("cpu")
WAYS = {
    "torch fp32": ClassifyOptions(engine="torch", precision="fp32"),
    "torch bf16": ClassifyOptions(engine="torch", precision="bf16"),
    "OpenVINO fp32": ClassifyOptions(engine="openvino", precision="fp32"),
    "OpenVINO bf16": ClassifyOptions(engine="openvino", precision="bf16"),
    "OpenVINO int8": ClassifyOptions(engine="openvino", precision="int8"),
}
SPEED_PATCHES = 2560


def main() -> int:
    """Print what was measured, and write it into a page if one is named; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with idc/")
    parser.add_argument("--model", default="idc_default", help="a shipped model, or a .safetensors file")
    parser.add_argument("--rounds", type=int, default=5, help="of speed")
    parser.add_argument("--docs", type=Path, help="a page to write the table into")
    args = parser.parse_args()
    model = load_model(args.model)
    val = load_side(args.data / "idc", model.card.patch_px, "val", SplitOptions())
    text = "\n".join(table(model, val, args.rounds))
    print(text)
    if args.docs:
        put_section(args.docs, "scripts/bench/measure_engines.py", text)
    return 0


def table(model: Model, val: LabelledPatches, rounds: int) -> list[str]:
    """A row a way."""
    ways = {name: Classifier([model], CPU, options) for name, options in WAYS.items()}
    speed = speeds(ways, val, rounds)
    scored = {name: by_patient(classifier, val, WAYS[name]) for name, classifier in ways.items()}
    eager, threshold = scored["torch fp32"], model.card.threshold
    lines = [
        f"Model `{model.card.name}`, {model.sha256[:12]}; {len(val):,} validation patches of "
        f"{len(np.unique(val.patients))} patients, threshold {threshold:.3f}; {platform.machine()}, "
        f"torch {torch.__version__}. Speed: median of {rounds} rounds.",
        "",
        "| | patches a second and core | times torch fp32 | moved, furthest | moved, mean | crossing the threshold "
        "| AUROC | F1 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, scores in scored.items():
        moved = np.abs(scores - eager)
        crossing = ((scores >= threshold) != (eager >= threshold)).mean()
        f1 = decide(scores, val.labels, threshold).f1
        times = np.median(np.array(speed[name]) / speed["torch fp32"])
        lines.append(
            f"| {name} | {np.median(speed[name]):,.0f} | {times:.2f} | {moved.max():.2g} | {moved.mean():.2g} | "
            f"{crossing:.2%} | {auroc(scores, val.labels):.4f} | {f1:.4f} |"
        )
    return lines


def speeds(ways: dict[str, Classifier], val: LabelledPatches, rounds: int) -> dict[str, list[float]]:
    """Patches a second of processor time in each round."""
    sample = val.pixels[: len(val) : len(val) // SAMPLED_PATCHES][:SAMPLED_PATCHES]
    many = np.resize(val.pixels, (SPEED_PATCHES, *sample.shape[1:]))
    adapted = {name: way.adapted(patch_densities(sample), sample) for name, way in ways.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in adapted.items():
            began = time.process_time()
            way.scores(many)
            if round_:  # the first one warms up
                found[name].append(len(many) / (time.process_time() - began))
    return found


def by_patient(classifier: Classifier, val: LabelledPatches, options: ClassifyOptions) -> NDArray[np.float32]:
    """Probabilities, float32 [n], each patient as if it were a slide."""
    scores = np.empty(len(val), np.float32)
    for patient in np.unique(val.patients):
        rows = np.flatnonzero(val.patients == patient)
        sample = val.pixels[rows[np.linspace(0, len(rows) - 1, min(SAMPLED_PATCHES, len(rows))).astype(int)]]
        adapted = classifier.adapted(patch_densities(sample), sample)
        info = adapted.engine_info[0]
        if (info["engine"], info["precision"]) != (options.engine, options.precision):
            print(f"patient {patient}: {info}", file=sys.stderr)  # the row is not what it says
        scores[rows] = adapted.scores(val.pixels[rows])
    return scores


if __name__ == "__main__":
    sys.exit(main())
