"""Cross-validate the context step over all whole mounts: patch networks and steps that never saw the mount's patient.

Each mount is scored by the network of its patient's fold (scripts/results/cross_validate.py, whose OUT is given), and
calibrated on the other folds' patches. The step is trained on the mounts of other groups. Prints a table of each patch
alone, the calibrated Gaussian and the step: over all cells, and the mean by fold.

python -m scripts.results.cross_validate_context runs/folds/conditioned --slides runs/results/slides
"""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scripts.results.cross_validate import read_folds
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.learning.datasets.labelled_slides import LabelledSlide, find_labelled_slides, score_slide
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.training.context import ContextTrainOptions, compare_held_out
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.names import slide_name

NAMES = {"alone": "each patch alone", "gaussian": "Gaussian of one patch", "context": "`rings`"}

log = logging.getLogger("cross_validate_context")


def main() -> None:
    """Score the mounts, cross-validate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of fold_K.npz and fold_K.safetensors")
    parser.add_argument("--slides", type=Path, required=True, help="whole mounts, labels beside them")
    parser.add_argument("--json", type=Path, help="the numbers go here too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folds = read_folds()
    networks = {k: calibrated_network(options.run, k) for k in sorted(set(folds.values()))}
    slides: list[LabelledSlide] = []
    for path, known in find_labelled_slides(options.slides):
        model = networks[folds[slide_name(path)]]
        classifier = Classifier([model], torch.device("cpu"), ClassifyOptions())
        slides.append(
            score_slide(
                path, known, classifier, InferConfig(), AnnotationOptions(), ContextTrainOptions().views
            )
        )
        log.info("%s: %d labelled cells", slides[-1].patient, slides[-1].evaluated.sum())
    compared = compare_held_out(ContextTrainOptions(), slides)
    of_cell = np.array([folds[patient] for patient in compared.patients.tolist()])
    print(
        "| map | F1 | balanced accuracy | AUROC | ECE | F1 by fold |\n| --- | --- | --- | --- | --- | --- |"
    )
    found = {}
    for kind, values in compared.maps.items():
        logits = np.stack(
            [np.zeros_like(values), np.log(values.clip(1e-6)) - np.log1p(-values.clip(0, 1 - 1e-6))], 1
        )
        probability, called = metrics.crossfit(logits, compared.labels, compared.patients)
        decisions = metrics.decide(called.astype(float), compared.labels, 0.5)
        each = [
            metrics.decide(called[of_cell == k].astype(float), compared.labels[of_cell == k], 0.5).f1
            for k in sorted(set(of_cell.tolist()))
        ]
        found[kind] = {
            "f1": decisions.f1,
            "balanced_accuracy": decisions.balanced_accuracy,
            "auroc": metrics.auroc(values, compared.labels),
            "ece": metrics.calibration_error(probability, compared.labels),
            "f1_by_fold": each,
        }
        row = found[kind]
        print(
            f"| {NAMES[kind]} | {row['f1']:.3f} | {row['balanced_accuracy']:.3f} | {row['auroc']:.3f} | "
            f"{row['ece']:.3f} | " + ", ".join(f"{value:.3f}" for value in each) + " |"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def calibrated_network(run: Path, fold: int) -> Model:
    """The fold's network, calibrated on the patches of the other folds, each of which its own network scored."""
    model = load_model(run / f"fold_{fold}.safetensors")
    parts = [np.load(path) for path in sorted(run.glob("fold_*.npz")) if path.stem != f"fold_{fold}"]
    logits, labels = (np.concatenate([part[name] for part in parts]) for name in ("plain", "labels"))
    fitted = metrics.fit_calibration(logits, labels)
    card = replace(model.card, temperature=fitted.temperature, log_odds_shift=fitted.log_odds_shift)
    return replace(model, card=card)


if __name__ == "__main__":
    main()
