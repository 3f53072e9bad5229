"""Cross-validate the context step over all whole mounts: patch networks and steps that never saw the mount's patient.

Each mount is scored by the network of its patient's fold (scripts/results/cross_validate.py, whose OUT is given), and
calibrated on the other folds' patches; what it is given is kept in OUT/mounts. What is fitted of a step is fitted on
the mounts of other folds. Prints a table of what may be made of the scores: over all labelled cells, with the
differences to the plain mean of the neighbours, draw by draw over patients, and the mean by fold.

python -m scripts.results.cross_validate_context runs/folds/conditioned --slides runs/results/slides
python -m scripts.results.cross_validate_context runs/folds/conditioned --slides runs/results/slides \\
    --out docs/results.md
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.doc_sections import put_section
from scripts.results.context_candidates import random_field, u_net
from scripts.results.cross_validate import read_folds
from scripts.results.paired_rows import MEASURES, Measured, cells, measured
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.learning.datasets.labelled_slides import (
    LabelledSlide,
    find_labelled_slides,
    patch_scores,
    score_slide,
)
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import draw_patients
from wsi_pipeline.learning.training.context import ContextTrainOptions, compare_held_out
from wsi_pipeline.models.context import RingOptions, base_log_odds, log_odds_of
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.names import slide_name

Floats = NDArray[np.float64]
Slides = Sequence[LabelledSlide]

FINER_UM = 100.0
# Deviations of the means over patches half a patch apart, in patches.
FINER_SIGMAS = (1.0, 1.4)
ABOUT = (
    "Maps of all whole mounts, each scored by the network of its patient's fold; what is fitted of a step is fitted on "
    "mounts of other folds, calibration and threshold of each patient on other patients. *Mean*: Gaussian of so many "
    "patches, of the neighbours' probabilities or log odds. *Finer*: the same mean over patches half a patch apart, "
    "four times as many. *Rings*: small perceptrons that correct the mean. *Random field*: two labels, coupled to the "
    "eight neighbours. *U-Net*: a small one over the grid. A step over the network's features cannot be judged so: "
    "each fold's network has features of its own. Written by `python -m scripts.results.cross_validate_context "
    "{run} --slides runs/results/slides --out docs/results.md`, after `python -m scripts.results.cross_validate`."
)

log = logging.getLogger("cross_validate_context")


def main() -> None:
    """Score the mounts, cross-validate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of fold_K.npz and fold_K.safetensors")
    parser.add_argument("--slides", type=Path, required=True, help="whole mounts, labels beside them")
    parser.add_argument("--out", type=Path, help="a page whose section on the context step is written anew")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    slides, finer = scored_mounts(options.run, options.slides)
    text = table(slides, finer)
    print(text)
    if options.out:
        about = ABOUT.format(run=options.run)
        put_section(options.out, "steps", f"## Context steps, by cross-validation\n\n{about}\n\n{text}")


def scored_mounts(run: Path, folder: Path) -> tuple[list[LabelledSlide], list[LabelledSlide]]:
    """The mounts scored by networks that never saw them; and with patches half a patch apart, means at the same cells.

    Kept in run/mounts, so that another try does not score them again.
    """
    folds, views = read_folds(), ContextTrainOptions().views
    kept = run / "mounts"
    kept.mkdir(exist_ok=True)
    networks: dict[int, Model] = {}
    config = InferConfig()
    closer = replace(config, grid=replace(config.grid, cell_um=FINER_UM))
    slides, finer = [], []
    for path, known in find_labelled_slides(folder):
        name = slide_name(path)
        place = kept / f"{name}.npz"
        if not place.exists():
            fold = folds[name]
            networks.setdefault(fold, calibrated_network(run, fold))
            classifier = Classifier([networks[fold]], torch.device("cpu"), ClassifyOptions())
            slide = score_slide(path, known, classifier, config, AnnotationOptions(), views)
            _, _, close = patch_scores(path, classifier, closer, 1)
            np.savez(place, probability=slide.patch_probability, labels=slide.labels, close=close[0])
            log.info("%s: %d labelled cells", name, slide.evaluated.sum())
        with np.load(place) as found:
            slides.append(LabelledSlide(name, found["probability"], found["labels"]))
            close = [at_patches(found["close"], sigma, found["labels"].shape) for sigma in FINER_SIGMAS]
            finer.append(LabelledSlide(name, np.stack(close), found["labels"]))
    return slides, finer


def at_patches(close: NDArray[np.float32], sigma: float, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The mean over patches half a patch apart at those that lie side by side, `shape` of them; NaN without."""
    options = RingOptions(base_of="probability", base_sigma=2 * sigma)
    odds = log_odds_of(close, options)
    mean = np.full(close.shape, np.nan, np.float32)
    mean[~np.isnan(close)] = 1 / (1 + np.exp(-base_log_odds(odds, options)))
    there = mean[::2, ::2][: shape[0], : shape[1]]
    result = np.full(shape, np.nan, np.float32)
    result[: there.shape[0], : there.shape[1]] = there
    return result


def table(slides: Slides, finer: Slides) -> str:
    """A row a way; the first is what the others are compared with."""
    folds = read_folds()
    groups = np.array([folds[slide.patient] for slide in slides])
    counted = [
        slide.evaluated & ~np.isnan(close.patch_probability[0])
        for slide, close in zip(slides, finer, strict=True)
    ]
    left_out = sum(int(s.evaluated.sum() - c.sum()) for s, c in zip(slides, counted, strict=True))
    within = np.concatenate([c[s.evaluated] for s, c in zip(slides, counted, strict=True)])
    labels = np.concatenate([s.labels[c] == 1 for s, c in zip(slides, counted, strict=True)]).astype(int)
    patients = np.repeat([s.patient for s in slides], [c.sum() for c in counted])
    of_cell = np.repeat(groups, [c.sum() for c in counted])
    ways: dict[str, Callable[[], Floats]] = {
        "mean of probability, 1 patch": lambda: mean_odds(slides, 1.0, "probability"),
        "mean of probability, 0.7 patches": lambda: mean_odds(slides, 0.7, "probability"),
        "mean of probability, 1.4 patches": lambda: mean_odds(slides, 1.4, "probability"),
        "mean of probability, 2 patches": lambda: mean_odds(slides, 2.0, "probability"),
        "mean of log odds, 1.4 patches": lambda: mean_odds(slides, 1.4, "log_odds"),
        "mean of log odds, 1 patch": lambda: mean_odds(slides, 1.0, "log_odds"),
        "each patch alone": lambda: own_odds(slides),
        "finer: mean of probability, 1 patch": lambda: finer_odds(slides, finer, 0),
        "finer: mean of probability, 1.4 patches": lambda: finer_odds(slides, finer, 1),
        "rings on log odds": lambda: ring_odds(slides, "log_odds"),
        "rings on probability": lambda: ring_odds(slides, "probability"),
        "random field": lambda: random_field(slides, groups),
        "U-Net": lambda: u_net(slides, groups),
    }
    resampled = draw_patients(patients)
    lines: list[str] = []
    first: Measured | None = None
    for way, answer in ways.items():
        odds = answer()[within]
        logits = np.stack([np.zeros_like(odds), odds], axis=1)
        probability, called = metrics.crossfit(logits, labels, patients)
        found = measured(probability, called, labels, resampled)
        by_fold = [
            metrics.decide(called[of_cell == k].astype(float), labels[of_cell == k], 0.5).f1
            for k in sorted(set(groups.tolist()))
        ]
        lines.append(
            f"| {way} | {' | '.join(cells(found, first))} | "
            + ", ".join(f"{value:.3f}" for value in by_fold)
            + " |"
        )
        first = first or found
    return "\n".join(
        [
            f"{len(labels):,} labelled cells of {len(slides)} whole mounts ({left_out} left out, which have no "
            "patches half a patch away).",
            "",
            "| map | " + " | ".join(MEASURES.values()) + " | F1 by fold |",
            "| --- | " + " | ".join("---" for _ in MEASURES) + " | --- |",
            *lines,
        ]
    )


def mean_odds(slides: Slides, sigma: float, base_of: str) -> Floats:
    """Log odds of the neighbours' mean at all evaluated cells."""
    options = RingOptions(base_sigma=sigma, base_of=base_of)  # type: ignore[arg-type]
    parts = []
    for slide in slides:
        probability = slide.patch_probability[0]
        odds = np.full(probability.shape, np.nan)
        odds[~np.isnan(probability)] = base_log_odds(log_odds_of(probability, options), options)
        parts.append(odds[slide.evaluated])
    return np.concatenate(parts)


def own_odds(slides: Slides) -> Floats:
    """Log odds of each evaluated cell by itself."""
    return np.concatenate([odds_of(slide.patch_probability[0][slide.evaluated]) for slide in slides])


def finer_odds(slides: Slides, finer: Slides, which: int) -> Floats:
    """Log odds of that of FINER_SIGMAS at all evaluated cells, NaN where no patch lies half a patch away."""
    return np.concatenate(
        [odds_of(c.patch_probability[which][s.evaluated]) for s, c in zip(slides, finer, strict=True)]
    )


def odds_of(probability: NDArray[np.float32]) -> Floats:
    """Log odds, NaN where not scored."""
    return log_odds_of(probability, RingOptions(most_log_odds=12.0))


def ring_odds(slides: Slides, base_of: str) -> Floats:
    """Log odds after small perceptrons, each mount's trained on others."""
    options = ContextTrainOptions(rings=RingOptions(base_of=base_of))  # type: ignore[arg-type]
    return odds_of(compare_held_out(options, slides).maps["context"].astype(np.float32))


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
