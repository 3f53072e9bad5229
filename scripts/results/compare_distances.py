"""How far from training a slide lies, and what hearing of it brings there, on the folds of a cross-validation.

Each fold's network is asked about patients that it never saw, as they are and changed patient by patient far beyond
what it was trained on: hearing nothing of the slide; hearing of it however far it lies; and faded out with its distance
from the training slides, as each feature's own spread tells it, and as the features' covariance does, which is shipped.

python -m scripts.results.compare_distances runs/folds/weaker_looks --data ../shared/data --out docs/results.md
"""

import argparse
import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.doc_sections import put_section
from scripts.results.compare_models import FROZEN, STRANGE
from scripts.results.cross_validate import read_folds
from scripts.results.measure_stain import labelled_core, patches_of_picture
from scripts.results.paired_rows import Measured, measured
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.load import load_side
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import draw_patients, interval
from wsi_pipeline.learning.training.train import load_train_options, rows_to_know
from wsi_pipeline.models.architectures.slide_condition import (
    LEAST_PATCHES,
    USUAL_SHARE,
    SlideConditioned,
)
from wsi_pipeline.models.logits import evaluate, logits_by_slide, sampled_rows, slide_heads
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.models.stain import as_the_card_wants

Floats = NDArray[np.floating]
CPU = torch.device("cpu")
# Of the patients of a fold, so many patches are asked about.
ASKED = 4000
WAYS = ("unheard", "however far", "by spread", "by covariance")
ABOUT = (
    "Each fold's network asked about {asked:,} patches of patients that it never saw, the published validation "
    "patients left out, as they are and changed patient by patient. AUROC *unheard*, then what is added to "
    "it, with 95 % intervals over patients: when the network hears of each slide *however far* it lies; when that "
    "fades out with a distance *by spread* (each feature's own among the training slides, from 1 to 2), and *by "
    "covariance* of the features (Mahalanobis's distance, from 1 to 1.25), as shipped. *Far*: patients further than "
    "the farthest usual training slide by either. Written by `python -m scripts.results.compare_distances "
    "runs/folds/weaker_looks --data ../shared/data --out docs/results.md`."
)

log = logging.getLogger("compare_distances")


@dataclass
class Answers:
    """Of some patches: logits [N, classes] by way, labels, patients; patients' distances by way."""

    logits: dict[str, list[Floats]]
    labels: list[NDArray[np.integer]]
    patients: list[NDArray[np.str_]]
    distances: dict[str, list[float]]


def main() -> None:
    """Ask all folds' networks, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of fold_K.safetensors")
    parser.add_argument("--data", type=Path, required=True, help="the folder with idc/, slides/ and frozen/")
    parser.add_argument(
        "--config", default="default_model/weaker_looks", help="what the folds were trained by"
    )
    parser.add_argument("--out", type=Path, help="a page whose section on distances is written anew")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe, folds = load_train_options(options.config), read_folds()
    everyone = load_side(options.data / "idc", recipe.patch_px, "all", recipe.split, mpp=recipe.mpp)
    with (options.data / "idc/manifest.csv").open(newline="") as file:
        val = sorted({row["patient"] for row in csv.DictReader(file) if row["split"] == "val"})
    of_patch = np.array([folds[patient] for patient in everyone.patients.tolist()])
    kept = ~np.isin(everyone.patients, val)
    answers: dict[str, Answers] = {}
    elsewhere: list[str] = []
    if not (paths := sorted(options.run.glob("fold_*.safetensors"))):
        raise SystemExit(f"{options.run}: found no fold_K.safetensors; cross-validate first")
    for path in paths:
        fold, model = int(path.stem.removeprefix("fold_")), load_model(path)
        means = training_means(model, everyone.taken(np.flatnonzero(of_patch != fold)))
        held = everyone.taken(np.flatnonzero((of_patch == fold) & kept))
        ask(model, means, held, answers)
        elsewhere.append(f"| {fold} | {' | '.join(cells_elsewhere(model, means, options.data))} |")
        log.info("fold %d: %d patches", fold, len(held))
    text = "\n".join(
        [
            f"{sum(map(len, answers['as they are'].labels)):,} patches of {len(paths)} folds of 5.",
            "",
            "| patients changed | unheard | however far | by spread | by covariance | far: by spread | by covariance |",
            "| --- | ---: | --- | --- | --- | ---: | ---: |",
            *(row_of(what, answer) for what, answer in answers.items()),
            "",
            "Slides of other laboratories, by fold: the distance of each by spread, and by covariance; and AUROC on "
            "the core biopsy unheard and heard as shipped (one slide, outlines drawn by eye).",
            "",
            "| fold | core biopsy | " + " | ".join(FROZEN) + " | core biopsy, AUROC |",
            "| ---: | --- | --- | --- | --- |",
            *elsewhere,
        ]
    )
    print(text)
    if options.out:
        about = ABOUT.format(asked=ASKED)
        put_section(options.out, "distances", f"## Slides far from training\n\n{about}\n\n{text}")


def features_of(model: Model, side: LabelledPatches) -> NDArray[np.float32]:
    """What the last layer is given of patches, [N, C]."""
    pixels = as_the_card_wants(side.pixels, side.patients, model.card)
    return evaluate(model.network, model.card, pixels, CPU, features=True)


def training_means(model: Model, train: LabelledPatches) -> torch.Tensor:
    """The mean features [slides, C] of the patients that the network was trained on, as it learned to know them."""
    rows = [part for part in rows_to_know(train.patients) if len(part) >= LEAST_PATCHES]
    features = features_of(model, train.taken(np.concatenate(rows)))
    parts = np.split(features, np.cumsum([len(part) for part in rows])[:-1])
    return torch.from_numpy(np.stack([part.mean(axis=0) for part in parts]))


def ask(model: Model, means: torch.Tensor, held: LabelledPatches, answers: dict[str, Answers]) -> None:
    """Add what the network says of these patients, as they are and changed, in each way."""
    random = np.random.default_rng(0)
    some = held.taken(np.sort(random.permutation(len(held))[:ASKED]))
    for what, change in STRANGE.items():
        pixels = np.empty_like(some.pixels)
        for number, name in enumerate(np.unique(some.patients)):
            rows = np.flatnonzero(some.patients == name)
            pixels[rows] = change(some.pixels[rows], np.random.default_rng(number))
        side = replace(some, pixels=pixels)
        found = answers.setdefault(
            what, Answers({way: [] for way in WAYS}, [], [], {way: [] for way in WAYS})
        )
        features = features_of(model, side)
        for way, logits, distances in answered(model, means, features, side.patients):
            found.logits[way].append(logits)
            found.distances[way] += distances
        found.labels.append(side.labels)
        found.patients.append(side.patients)


def answered(
    model: Model, means: torch.Tensor, features: NDArray[np.float32], patients: NDArray[np.str_]
) -> Iterator[tuple[str, Floats, list[float]]]:
    """Of features of patients: logits in each way, and how far each patient lies."""
    network = model.network
    assert isinstance(network, SlideConditioned)
    own = network.own_head()
    yield WAYS[0], features @ own.weight.T + own.bias, []
    for way in WAYS[1:]:
        set_distance(network, means, way)
        heads = slide_heads(network, features, patients)
        distances = [
            network.distance_of(features[sampled_rows(name, np.flatnonzero(patients == name))])
            for name in heads
        ]
        known = [distance for distance in distances if distance is not None]
        yield way, logits_by_slide(features, patients, heads), known


def set_distance(network: SlideConditioned, means: torch.Tensor, way: str) -> None:
    """Let the network tell distances from the training slides, of these mean features, in this way."""
    network.know_slides(means)
    known = network.known
    if way == "however far":
        known.far.fill_(1e9)
    elif way == "by spread":
        known.unheard_from.fill_(2)
        known.whitening.copy_(torch.diag(1 / means.std(dim=0).clamp_min(1e-3)))
        known.far.fill_(1)
        known.far.copy_(known.distance(means).quantile(USUAL_SHARE))


def row_of(what: str, answer: Answers) -> str:
    """The table's row: AUROC, and differences to that of hearing nothing."""
    labels, patients = np.concatenate(answer.labels), np.concatenate(answer.patients)
    resampled = draw_patients(patients)
    found: dict[str, Measured] = {}
    for way, logits in answer.logits.items():
        probability, called = metrics.crossfit(np.concatenate(logits), labels, patients)
        found[way] = measured(probability, called, labels, resampled)
    first = found["unheard"]
    cells = [f"{first.values['auroc']:.3f}"]
    for way in WAYS[1:]:
        low, high = interval(found[way].drawn["auroc"] - first.drawn["auroc"])
        cells.append(f"{found[way].values['auroc'] - first.values['auroc']:+.3f} ({low:+.3f} to {high:+.3f})")
    for way in ("by spread", "by covariance"):
        cells.append(f"{np.mean(np.array(answer.distances[way]) > 1):.0%}")
    return f"| {what} | {' | '.join(cells)} |"


def cells_elsewhere(model: Model, means: torch.Tensor, data: Path) -> list[str]:
    """Distances of slides from elsewhere, and AUROC of the one with labels."""
    core, _ = labelled_core(data / "slides", model)
    sides = [core]
    for picture in FROZEN.values():
        pixels = patches_of_picture(data / "frozen" / picture, model)
        nobody = np.zeros(len(pixels), np.uint8)
        sides.append(LabelledPatches(pixels, nobody, np.full(len(pixels), "a"), "slide"))
    cells, areas = [], []
    for side in sides:
        found = list(answered(model, means, features_of(model, side), side.patients))
        logits = {way: given for way, given, _ in found}
        far = {way: distances[0] for way, _, distances in found[1:]}
        cells.append(f"{far['by spread']:.2f}, {far['by covariance']:.2f}")
        if side is core:
            areas = [metrics.auroc(odds(logits[way]), core.labels) for way in ("unheard", "by covariance")]
    return [*cells, ", ".join(f"{area:.3f}" for area in areas)]


def odds(logits: Floats) -> Floats:
    """Log odds of IDC."""
    return np.asarray(logits[:, 1] - logits[:, 0])


if __name__ == "__main__":
    main()
