"""How much a slide's own level costs, and what ways of adapting to it bring back, on the folds of a cross-validation.

Each fold's network is asked about patients that it never saw (scripts/results/cross_validate.py, whose OUT is given):
hearing nothing of the slide; with batch-norm statistics of the slide's own patches; with the share of IDC of each
patient estimated by EM (Saerens 2002, Neural Computation 14: 21); with a shift and a temperature that a linear model
reads from the spread of the slide's own log odds; hearing of the slide in the shipped way; and, as a ceiling that
nobody can reach, each patient's log odds shifted so that its mean probability is its true share.

python -m scripts.results.compare_adaptations runs/folds/weaker_looks --data ../shared/data/idc
"""

import argparse
import csv
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import nn

from scripts.doc_sections import put_section
from scripts.results.cross_validate import read_folds
from scripts.results.paired_rows import Measured, cells, heading, measured
from wsi_pipeline.learning.datasets.load import load_side
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import draw_patients
from wsi_pipeline.learning.training.train import load_train_options
from wsi_pipeline.models.logits import evaluate
from wsi_pipeline.models.model import Model, load_model, normalised
from wsi_pipeline.models.stain import normalise_stain_by_patient

Floats = NDArray[np.floating]

# A patient of fewer patches has no batch-norm statistics of its own.
LEAST_PATCHES = 32
# What the learned shift reads of a patient: these quantiles of its log odds, and the share above zero.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# How hard its coefficients are held at none, and by which power of its patches a patient counts.
RIDGE, PATIENT_POWER = 0.1, 0.5
GROUPS = 5
ABOUT = (
    "The same folds and patients. *Alone*: the network hears nothing of the slide. *Batch-norm statistics*: as "
    "alone, with those of each patient's own patches. *EM*: as alone, each patient's share of IDC estimated "
    "from its answers (Saerens 2002) after calibration on others. *Learned shift*: as alone, each patient's log "
    "odds shifted and stretched by what a linear model, fitted on other patients, reads from them. *Hears of "
    "its slide*: in the shipped way. *Oracle*: as alone, each patient's log odds shifted to its true share of "
    "IDC, the ceiling for any shift. After the semicolon the difference to alone, draw by draw over patients. "
    "Written by `python -m scripts.results.compare_adaptations runs/folds/weaker_looks --data ../shared/data/idc "
    "--out docs/results.md`, after `python -m scripts.results.cross_validate ../shared/data/idc --config "
    "default_model/weaker_looks --set bf16=false --out runs/folds/weaker_looks`."
)

log = logging.getLogger("compare_adaptations")


def main() -> None:
    """Ask, adapt, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of fold_K.npz and fold_K.safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDC set")
    parser.add_argument(
        "--config", default="default_model/weaker_looks", help="what the folds were trained by"
    )
    parser.add_argument("--out", type=Path, help="a page whose section on adaptation is written anew")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with (options.data / "manifest.csv").open(newline="") as file:
        val = {row["patient"] for row in csv.DictReader(file) if row["split"] == "val"}
    answers = gathered(options.run, options.data, options.config)
    kept = ~np.isin(answers["patients"], sorted(val))
    answers = {name: values[kept] for name, values in answers.items()}
    folds = len(list(options.run.glob("fold_*.npz")))
    text = table(answers, folds)
    print(text)
    if options.out:
        put_section(options.out, "adaptation", f"## Ways to adapt to a slide\n\n{ABOUT}\n\n{text}")


def gathered(run: Path, data: Path, config: str) -> dict[str, NDArray[np.generic]]:
    """All folds' labels, patients and logits: alone, with batch-norm statistics of the slide, hearing of it."""
    recipe, folds = load_train_options(config), read_folds()
    everyone = load_side(data, recipe.patch_px, "all", recipe.split, mpp=recipe.mpp)
    of_patch = np.array([folds[patient] for patient in everyone.patients.tolist()])
    parts: list[dict[str, NDArray[np.generic]]] = []
    for path in sorted(run.glob("fold_*.npz")):
        with np.load(path) as kept:
            part = {name: kept[name] for name in ("labels", "patients", "alone", "plain")}
        held = everyone.taken(np.flatnonzero(of_patch == int(path.stem.removeprefix("fold_"))))
        if not np.array_equal(held.names, np.load(path)["names"]):
            raise SystemExit(f"{path}: other patches than those of {data}; cross-validate again")
        model = load_model(path.with_suffix(".safetensors"))
        part["slide statistics"] = with_slide_statistics(
            model, held.pixels, held.patients, recipe.stain_normalisation
        )
        parts.append(part)
        log.info("%s: %d patches", path.stem, len(held))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_slide_statistics(
    model: Model, pixels: NDArray[np.uint8], patients: NDArray[np.str_], strength: float
) -> NDArray[np.float32]:
    """Logits [N, classes], batch-norm layers using the mean and deviation over each patient's own patches."""
    card = model.card
    if card.stain is not None:
        pixels = normalise_stain_by_patient(pixels, patients, card.stain, strength)
    device = torch.device("cpu")
    logits = np.empty((len(pixels), len(card.classes)), np.float32)
    layers = [layer for layer in model.network.modules() if isinstance(layer, nn.BatchNorm2d)]
    learned = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]  # type: ignore[union-attr]
    for patient in np.unique(patients):
        rows = np.flatnonzero(patients == patient)
        if len(rows) >= LEAST_PATCHES:
            _measure_statistics(model.network, layers, model, pixels[rows])
        logits[rows] = evaluate(model.network, card, pixels[rows], device)
        for layer, (mean, variance) in zip(layers, learned, strict=True):
            layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return logits


@torch.inference_mode()
def _measure_statistics(
    network: nn.Module, layers: list[nn.BatchNorm2d], model: Model, pixels: NDArray[np.uint8]
) -> None:
    """Set each layer's mean and variance to those over these patches (at most 512), all layers at once."""
    some = pixels[:: max(len(pixels) // 512, 1)][:512]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    network(normalised(torch.from_numpy(some), model.card.mean, model.card.std))
    network.eval()


def table(answers: dict[str, NDArray[np.generic]], folds: int) -> str:
    """A row a way, with 95 % intervals over patients and the differences to the first."""
    labels, patients = answers["labels"], answers["patients"]
    ways: dict[str, Callable[[], tuple[Floats, NDArray[np.bool_]]]] = {
        "alone": lambda: metrics.crossfit(answers["alone"], labels, patients),
        "batch-norm statistics": lambda: metrics.crossfit(answers["slide statistics"], labels, patients),
        "EM": lambda: adapted_crossfit(answers["alone"], labels, patients, shift_by_em),
        "learned shift": lambda: metrics.crossfit(
            with_learned_shift(answers["alone"], labels, patients), labels, patients
        ),
        "hears of its slide": lambda: metrics.crossfit(answers["plain"], labels, patients),
        "oracle": lambda: adapted_crossfit(answers["alone"], labels, patients, shift_to_share),
    }
    resampled = draw_patients(patients)
    lines: list[str] = []
    first: Measured | None = None
    for way, answer in ways.items():
        probability, called = answer()
        found = measured(probability, called, labels, resampled)
        row = cells(found, first)
        first = first or found
        lines.append(f"| {way} | " + " | ".join(row) + " |")
    return "\n".join(
        [
            f"{len(labels):,} patches of {len(np.unique(patients))} patients, {folds} folds of 5.",
            "",
            *heading("adapted"),
            *lines,
            "",
            needed_shifts(answers["alone"], labels, patients),
        ]
    )


def needed_shifts(logits: Floats, labels: NDArray[np.integer], patients: NDArray[np.str_]) -> str:
    """In words: what the oracle's shift of a patient goes with."""
    probability, _ = metrics.crossfit(logits, labels, patients)
    shifts, shares, expected = [], [], []
    for patient in np.unique(patients):
        rows = np.flatnonzero(patients == patient)
        if len(rows) >= LEAST_PATCHES:
            shifted = log_odds(shift_to_share(probability[rows], labels[rows], 0))
            shifts.append(float(np.median(shifted - log_odds(probability[rows]))))
            shares.append(float(np.clip(labels[rows].mean(), 0.01, 0.99)))
            expected.append(float(probability[rows].mean()))
    of_shares, of_expected = (
        np.corrcoef(shifts, log_odds(np.array(values)))[0, 1] for values in (shares, expected)
    )
    return (
        f"The oracle's shift of a patient ({len(shifts)} with {LEAST_PATCHES} patches or more; spread "
        f"{np.std(shifts):.1f} of log odds) has a correlation of {of_shares:.2f} with the log odds of the share of "
        f"its patches inside the outlines, and of {of_expected:.2f} with those of the share that the network expects."
    )


def adapted_crossfit(
    logits: Floats,
    labels: NDArray[np.integer],
    patients: NDArray[np.str_],
    adapt: Callable[[Floats, NDArray[np.integer], float], Floats],
) -> tuple[Floats, NDArray[np.bool_]]:
    """As metrics.crossfit, each patient's calibrated probabilities adapted before the threshold is chosen."""
    probability, _ = metrics.crossfit(logits, labels, patients)
    adapted = np.empty_like(probability)
    share = float(labels.mean())
    for patient in np.unique(patients):
        rows = np.flatnonzero(patients == patient)
        adapted[rows] = adapt(probability[rows], labels[rows], share)
    as_logits = np.stack([np.zeros_like(adapted), log_odds(adapted)], axis=1)
    return metrics.crossfit(as_logits, labels, patients)


def with_learned_shift(logits: Floats, labels: NDArray[np.integer], patients: NDArray[np.str_]) -> Floats:
    """Logits [N, 2], each patient's log odds stretched and shifted by a model fitted on patients of other groups.

    logits: float [N, 2], those of IDC second. labels: [N], 1 is IDC. patients: [N], GROUPS of them at the least.
    """
    odds = logits[:, 1] - logits[:, 0]
    names, which, counts = np.unique(patients, return_inverse=True, return_counts=True)
    looks = np.stack([_spread(odds[which == patient]) for patient in range(len(names))])
    looks = (looks - looks.mean(axis=0)) / looks.std(axis=0)
    weights = counts[which] ** (PATIENT_POWER - 1)
    group = np.arange(len(names)) % GROUPS
    adapted = np.empty_like(odds)
    for held in range(GROUPS):
        rest, mine = group[which] != held, group[which] == held
        stretch, shift = _fitted_shift(odds[rest], labels[rest], weights[rest], looks[which[rest]])
        adapted[mine] = odds[mine] * np.exp(looks[which[mine]] @ stretch) + looks[which[mine]] @ shift
    return np.stack([np.zeros_like(adapted), adapted], axis=1)


def _spread(odds: Floats) -> Floats:
    return np.append(np.quantile(odds, QUANTILES), (odds > 0).mean())


def _fitted_shift(
    odds: Floats, labels: NDArray[np.integer], weights: Floats, looks: Floats
) -> tuple[Floats, Floats]:
    """Coefficients [looks] of the logarithm of the factor and of the shift, of the least cross-entropy."""
    width, share = looks.shape[1], weights / weights.sum()

    def loss(values: Floats) -> tuple[float, Floats]:
        stretched = odds * np.exp(looks @ values[:width])
        adapted = stretched + looks @ values[width:]
        entropy = share @ (np.logaddexp(0, adapted) - labels * adapted)
        slope = share * (_logistic(adapted) - labels)
        gradient = np.concatenate([(slope * stretched) @ looks, slope @ looks])
        return entropy + RIDGE * values @ values, gradient + 2 * RIDGE * values

    found = minimize(loss, np.zeros(2 * width), jac=True, method="L-BFGS-B").x
    return found[:width], found[width:]


def shift_by_em(probability: Floats, labels: NDArray[np.integer], share: float) -> Floats:
    """Posteriors after the patient's share of IDC was estimated by EM from the share `share` of training."""
    del labels
    prior = share
    for _ in range(200):
        odds = probability / (1 - probability) * (prior / (1 - prior)) / (share / (1 - share))
        adapted = odds / (1 + odds)
        new = float(np.clip(adapted.mean(), 1e-4, 1 - 1e-4))
        if abs(new - prior) < 1e-6:
            break
        prior = new
    return adapted


def shift_to_share(probability: Floats, labels: NDArray[np.integer], share: float) -> Floats:
    """Posteriors whose log odds are shifted so that they are on average the patient's true share."""
    del share
    wanted, odds = float(np.clip(labels.mean(), 1e-3, 1 - 1e-3)), log_odds(probability)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _logistic(odds + middle).mean() < wanted else (low, middle)
    return _logistic(odds + (low + high) / 2)


def log_odds(probability: Floats) -> Floats:
    """Log odds of probabilities, kept finite."""
    kept = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.log(kept / (1 - kept))


def _logistic(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


if __name__ == "__main__":
    main()
