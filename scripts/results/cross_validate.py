"""Cross-validate a training by patient: a network a fold, each asked about the patients that it never saw.

Folds are those of folds.csv beside this file. What a network says of its fold's patches is kept in
OUT/fold_K.npz, so that a run that was broken off goes on with the next fold. The last epoch counts: nothing is chosen
on a fold. Several runs are compared by `python -m scripts.results.compare_folds`.

`{fold}` in the name of a teacher, or of what a training starts from, is the fold's number: so a network can learn from
others that never saw the fold's patients either.

python -m scripts.results.cross_validate ../shared/data/idc --config train/idc_default --out runs/folds/today
python -m scripts.results.cross_validate ../shared/data/idc --config default_model/conditioned \\
    --set 'teachers=["runs/folds/today/fold_{fold}.safetensors"]' --out runs/folds/taught
"""

import argparse
import csv
import hashlib
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.load import load_side
from wsi_pipeline.learning.datasets.scanner_effects import as_jpeg
from wsi_pipeline.learning.training.coarse_labels import without_doubted
from wsi_pipeline.learning.training.train import (
    SINGLE_PROCESS,
    TrainOptions,
    finished_network,
    load_train_options,
    set_up,
    train_one_epoch,
)
from wsi_pipeline.models.logits import evaluate, evaluate_by_slide
from wsi_pipeline.models.model import save_model

FOLDS = Path(__file__).with_name("folds.csv")

log = logging.getLogger("cross_validate")


def main() -> None:
    """Train and ask each fold's network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the IDC set with its manifest.csv")
    parser.add_argument("--config", required=True, help="a training config, by name or path")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a value in its place"
    )
    parser.add_argument("--folds", type=int, nargs="*", help="these folds alone (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="where the folds' answers go")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = load_train_options(options.config, options.set)
    folds = read_folds()
    options.out.mkdir(parents=True, exist_ok=True)
    named = (
        {"doubted_sha256": hashlib.sha256(Path(recipe.doubted).read_bytes()).hexdigest()}
        if recipe.doubted
        else {}
    )
    check_recipe(options_to_dict(recipe) | named, options.out)
    everyone = load_side(options.data, recipe.patch_px, "all", recipe.split, mpp=recipe.mpp)
    of_patch = np.array([folds[patient] for patient in everyone.patients.tolist()])
    trusted = np.ones(len(everyone), np.bool_)
    if recipe.doubted:
        trusted = np.isin(everyone.names, without_doubted(everyone, Path(recipe.doubted)).names)
    for fold in options.folds if options.folds is not None else sorted(set(folds.values())):
        place = options.out / f"fold_{fold}.npz"
        if place.exists():
            log.info("fold %d: done before", fold)
            continue
        began = time.monotonic()
        train_rows = np.flatnonzero((of_patch != fold) & trusted)
        held_rows = np.flatnonzero(of_patch == fold)
        answers = answers_of_fold(
            recipe_of_fold(recipe, fold),
            everyone.taken(train_rows),
            everyone.taken(held_rows),
            place.with_suffix(".safetensors"),
        )
        np.savez(place, **answers)
        log.info("fold %d: %.0f s", fold, time.monotonic() - began)


def check_recipe(recipe: dict[str, Any], out: Path) -> None:
    """Keep the options of a run beside its folds. Raises SystemExit where folds of other options lie there."""
    kept, said = out / "recipe.json", json.loads(json.dumps(recipe))
    if not kept.exists():
        kept.write_text(json.dumps(said, indent=1), encoding="utf-8")
        return
    before = json.loads(kept.read_text(encoding="utf-8"))
    if other := sorted(name for name in {*said, *before} if said.get(name) != before.get(name)):
        raise SystemExit(
            f"{out} holds folds of another {', '.join(other)}; take another --out, or the options of {kept}"
        )


def read_folds() -> dict[str, int]:
    """The fold of each patient."""
    with FOLDS.open(newline="") as file:
        return {row["patient"]: int(row["fold"]) for row in csv.DictReader(file)}


def recipe_of_fold(recipe: TrainOptions, fold: int) -> TrainOptions:
    """The training of a fold, with the files of that fold."""
    start = recipe.pretrained
    return replace(
        recipe,
        split=replace(recipe.split, val_patients=()),
        teachers=tuple(name.replace("{fold}", str(fold)) for name in recipe.teachers),
        pretrained=start.replace("{fold}", str(fold)) if isinstance(start, str) else start,
    )


def answers_of_fold(
    recipe: TrainOptions, train: LabelledPatches, held: LabelledPatches, weights: Path
) -> dict[str, NDArray[np.generic]]:
    """What a network trained on some patients says of the others: logits, plain and after JPEG of quality 80."""
    device = torch.device("cpu")
    scanned = held
    run = set_up(recipe, train, held, device, SINGLE_PROCESS)
    for epoch in range(recipe.epochs):
        loss, _, _ = train_one_epoch(run, epoch, [])
        log.info("epoch %d of %d: loss %.4f", epoch + 1, recipe.epochs, loss)
    network, card = finished_network(run), run.card
    save_model(weights, network, card)
    stored = replace(scanned, pixels=as_jpeg(scanned.pixels, 80))
    compressed = set_up(recipe, train, stored, device, SINGLE_PROCESS).val
    answers: dict[str, NDArray[np.generic]] = {
        "labels": held.labels,
        "patients": held.patients,
        "names": held.names,
        "alone": evaluate(network, card, run.val.pixels, device),
    }
    for name, side in (("plain", run.val), ("jpeg80", compressed)):
        answers[name] = evaluate_by_slide(network, card, side.pixels, side.patients, device)
    return answers


if __name__ == "__main__":
    main()
