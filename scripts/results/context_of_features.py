"""A context step over the network's features instead of its scores, cross-validated over the whole mounts.

Each fold's network has features of its own, so a step for its mounts can only be learned from other mounts as the same
network sees them, which it was trained on: that is what is measured here. Beside it, on the same cells, what ships
(the neighbours' mean log odds) and the same linear model given log odds alone.

python -m scripts.results.context_of_features runs/folds/weaker_looks --data ../shared/data/idc \\
    --slides runs/results/slides --out docs/results.md
"""

import argparse
import logging
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize

from scripts.doc_sections import put_section
from scripts.results.cross_validate import read_folds
from scripts.results.paired_rows import Measured, cells, heading, measured
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.labelled_slides import find_labelled_slides
from wsi_pipeline.learning.datasets.load import load_side
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import draw_patients
from wsi_pipeline.learning.training.train import load_train_options
from wsi_pipeline.models.logits import evaluate, logits_by_slide, slide_heads
from wsi_pipeline.models.model import load_model
from wsi_pipeline.models.stain import as_the_card_wants
from wsi_pipeline.slides.names import slide_name

Floats = NDArray[np.floating]
# What the shipped step takes its mean over, patches; of the features, so many principal components are taken.
SIGMA, COMPONENTS = 1.4, 16
# How hard the coefficients are held at none; what they multiply has a standard deviation of 1.
RIDGES = (0.01, 0.1, 1.0)
PLACE = re.compile(r"_x(\d+)_y(\d+)_class")
ABOUT = (
    "Labelled patches of all whole mounts, each by the network of its patient's fold. *Mean of log odds*: of the "
    "neighbours, Gaussian of {sigma:g} patches, over labelled patches alone (the shipped step is that of "
    "probabilities of 1 patch). The others are linear models of that and of each patch's log odds (*scores*), and of "
    "{components} principal components of its features and of the neighbours' mean features too (*scores and "
    "features*), learned on mounts of the other folds as the same network sees them, which it was trained on, and "
    "held at the mean by a ridge. In brackets 95 % intervals over patients, after the semicolon the difference to the "
    "first row. Written by `python -m scripts.results.context_of_features runs/folds/weaker_looks --data "
    "../shared/data/idc --slides runs/results/slides --out docs/results.md`."
)

log = logging.getLogger("context_of_features")


def main() -> None:
    """Ask all folds' networks, fit, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of fold_K.safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDC set")
    parser.add_argument("--slides", type=Path, required=True, help="whole mounts, labels beside them")
    parser.add_argument(
        "--config", default="default_model/weaker_looks", help="what the folds were trained by"
    )
    parser.add_argument("--out", type=Path, help="a page whose section is written anew")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe, folds = load_train_options(options.config), read_folds()
    everyone = load_side(options.data, recipe.patch_px, "all", recipe.split, mpp=recipe.mpp)
    names = [slide_name(path) for path, _ in find_labelled_slides(options.slides)]
    mounts = everyone.taken(np.flatnonzero(np.isin(everyone.patients, names)))
    of_patch = np.array([folds[patient] for patient in mounts.patients.tolist()])
    ways = {"mean of log odds": np.zeros(len(mounts))}
    for ridge in RIDGES:
        for given in ("scores", "scores and features"):
            ways[f"{given}, ridge {ridge:g}"] = np.zeros(len(mounts))
    for fold in range(len(set(folds.values()))):
        held = of_patch == fold
        alone, mean, features = seen_by(options.run / f"fold_{fold}.safetensors", mounts, ~held)
        ways["mean of log odds"][held] = mean[held]
        scores = (alone - mean)[:, None] / (alone - mean)[~held].std()
        for ridge in RIDGES:
            for given, values in (("scores", scores), ("scores and features", np.hstack([scores, features]))):
                learned = corrected(mean, values, mounts.labels, ~held, ridge)
                ways[f"{given}, ridge {ridge:g}"][held] = learned[held]
        log.info("fold %d: %d patches", fold, held.sum())
    text = table(ways, mounts)
    print(text)
    if options.out:
        about = ABOUT.format(sigma=SIGMA, components=COMPONENTS)
        put_section(options.out, "features", f"## A context step over features\n\n{about}\n\n{text}")


def seen_by(
    weights: Path, mounts: LabelledPatches, train: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """Of patches log odds [N], the mean of their neighbours' [N], components of own and their features [N, 2 C]."""
    model = load_model(weights)
    pixels = as_the_card_wants(mounts.pixels, mounts.patients, model.card)
    features = evaluate(model.network, model.card, pixels, torch.device("cpu"), features=True)
    heads = slide_heads(model.network, features, mounts.patients)  # type: ignore[arg-type]
    logits = logits_by_slide(features, mounts.patients, heads)
    alone = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    centred = features - features[train].mean(axis=0)
    _, _, axes = np.linalg.svd(centred[train], full_matrices=False)
    components = centred @ axes[:COMPONENTS].T
    around = means_around(np.column_stack([alone, components]), mounts)
    values = np.hstack([components, around[:, 1:]])
    return alone, around[:, 0], values / values[train].std(axis=0)


def means_around(values: Floats, mounts: LabelledPatches) -> Floats:
    """The Gaussian mean of each patch's neighbours on its mount, itself among them, of values [N, K]."""
    places = np.array([[int(number) for number in PLACE.search(name).groups()] for name in mounts.names])  # type: ignore[union-attr]
    cell = places // mounts.pixels.shape[1]
    means = np.empty_like(values, dtype=np.float64)
    for patient in np.unique(mounts.patients):
        rows = np.flatnonzero(mounts.patients == patient)
        x, y = (cell[rows] - cell[rows].min(axis=0)).T
        grid = np.zeros((y.max() + 1, x.max() + 1, values.shape[1] + 1))
        grid[y, x, :-1], grid[y, x, -1] = values[rows], 1
        grid = gaussian_filter(grid, (SIGMA, SIGMA, 0), mode="constant")
        means[rows] = (grid[..., :-1] / np.maximum(grid[..., -1:], 1e-9))[y, x]
    return means


def corrected(
    mean: Floats, values: Floats, labels: NDArray[np.integer], train: NDArray[np.bool_], ridge: float
) -> Floats:
    """Log odds [N]: the mean, stretched and shifted, and a linear model of `values` [N, K], all fitted on `train`."""
    width = values.shape[1]
    known, odds, given = labels[train], mean[train], values[train]

    def loss(at: Floats) -> tuple[float, Floats]:
        said = at[0] + at[1] * odds + given @ at[2:]
        wrong = 1 / (1 + np.exp(-said)) - known
        entropy = (np.logaddexp(0, said) - known * said).mean()
        slope = np.concatenate([[wrong.mean(), (wrong * odds).mean()], given.T @ wrong / len(known)])
        slope[2:] += 2 * ridge * at[2:]
        return float(entropy + ridge * (at[2:] ** 2).sum()), slope

    at = minimize(loss, np.concatenate([[0, 1], np.zeros(width)]), jac=True, method="L-BFGS-B").x
    return np.asarray(at[0] + at[1] * mean + values @ at[2:])


def table(ways: dict[str, Floats], mounts: LabelledPatches) -> str:
    """A row a way; the first is what the others are compared with."""
    resampled = draw_patients(mounts.patients)
    lines: list[str] = []
    first: Measured | None = None
    for way, odds in ways.items():
        logits = np.stack([np.zeros_like(odds), odds], axis=1)
        probability, called = metrics.crossfit(logits, mounts.labels, mounts.patients)
        found = measured(probability, called, mounts.labels, resampled)
        lines.append(f"| {way} | " + " | ".join(cells(found, first, intervals=first is None)) + " |")
        first = first or found
    count = len(np.unique(mounts.patients))
    return "\n".join([f"{len(mounts):,} patches of {count} whole mounts.", "", *heading("map"), *lines])


if __name__ == "__main__":
    main()
