"""Write on a model's card what was measured after its training: robustness, and its training's cross-validation.

A last step of `make model`. The network and the context step stay as they are; the card gains `metrics.robustness`,
from what `evaluate-model --robustness` left, and `metrics.cross_validation`, from what
`python -m scripts.results.cross_validate` left of the same training (published validation patients left out).

python -m scripts.results.complete_card runs/model/with_context/idc_default.safetensors \\
    --evaluation runs/model/evaluation/metrics.json --folds runs/folds/weaker_looks \\
    --data ../shared/data/idc --out runs/model/idc_default
"""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.results.compare_folds import joined
from scripts.results.paired_rows import measured
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import draw_patients, interval
from wsi_pipeline.models.model import load_model, save_model

DIGITS = 4
SHOWN = {"patches": "plain", "patches_as_jpeg_quality_80": "jpeg80"}


def main() -> None:
    """Read, complete, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the model's weights, their card beside them")
    parser.add_argument("--evaluation", type=Path, required=True, help="metrics.json of evaluate-model")
    parser.add_argument("--folds", type=Path, required=True, help="folder of fold_K.npz of the training")
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDC set")
    parser.add_argument("--out", type=Path, required=True, help="the model and its longer card go here")
    options = parser.parse_args()
    model = load_model(options.model)
    found = json.loads(options.evaluation.read_text(encoding="utf-8"))
    if not found.get("robustness"):
        raise SystemExit(f"{options.evaluation}: found no robustness; run evaluate-model with --robustness")
    if found["model"]["sha256"] != model.sha256:
        raise SystemExit(f"{options.evaluation} is of another model than {options.model}: evaluate this one")
    with (options.data / "manifest.csv").open(newline="") as file:
        held_back = {row["patient"] for row in csv.DictReader(file) if row["split"] == "val"}
    added = {
        "robustness": robustness_of(found["robustness"]),
        "cross_validation": cross_validation_of(options.folds, held_back),
    }
    card = replace(model.card, metrics=model.card.metrics | added)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{card.name}.safetensors"
    save_model(path, model.network, card, model.context)
    print(f"written: {path}")


def robustness_of(found: dict[str, Any]) -> dict[str, Any]:
    """The table of evaluate-model, as a card gives it."""
    return {
        "note": "of the validation patients, at the card's threshold; flipped: on the other side of it than as it was",
        "patches": found["patches"],
        "rows": [_rounded(row) for row in found["rows"]],
    }


def cross_validation_of(run: Path, held_back: set[str]) -> dict[str, Any]:
    """What networks trained likewise say of patients that they never saw, each calibrated on other patients."""
    folds = sorted(path.stem for path in run.glob("fold_*.npz"))
    labels, patients = (joined(str(run), folds, name, held_back) for name in ("labels", "patients"))
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    resampled = draw_patients(patients)  # type: ignore[arg-type]
    sides = {}
    for name, key in SHOWN.items():
        logits = joined(str(run), folds, key, held_back)
        probability, called = metrics.crossfit(logits, labels, patients)  # type: ignore[arg-type]
        values = measured(probability, called, labels, resampled)  # type: ignore[arg-type]
        sides[name] = {
            measure: _rounded({"value": value, "interval_95": list(interval(values.drawn[measure]))})
            for measure, value in values.values.items()
        }
    return {
        "note": (
            f"networks of this kind trained from random weights for {recipe['epochs']} epochs, each asked about the "
            "patients of its fold, which it never saw; published validation patients left out; calibration and "
            "threshold of each patient from others; intervals over patients"
        ),
        "folds_of_5": [int(name.removeprefix("fold_")) for name in folds],
        "patients": len(set(patients.tolist())),
        "count": len(labels),
        **sides,
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, DIGITS)
        if isinstance(value, float)
        else [round(part, DIGITS) for part in value]
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }


if __name__ == "__main__":
    main()
