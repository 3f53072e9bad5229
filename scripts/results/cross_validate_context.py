"""Cross-validate the context step over all whole mounts: patch networks and steps that never saw the mount's patient.

Each mount is scored by the network of its patient's fold (scripts/results/cross_validate.py, whose OUT is given), and
calibrated on the other folds' patches; what it is given is kept in OUT/mounts. What is fitted of a step is fitted on
the mounts of other folds. Prints a table of what may be made of the scores: over all labelled cells, with the
differences to the plain mean of the neighbours, draw by draw over patients, and the mean by fold.

python -m scripts.results.cross_validate_context runs/folds/weaker_looks --slides runs/results/slides
python -m scripts.results.cross_validate_context runs/folds/weaker_looks --slides runs/results/slides \\
    --out docs/results.md
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label

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
    read_scored,
    score_slide,
)
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import draw_patients
from wsi_pipeline.learning.training.context import ContextTrainOptions, compare_held_out
from wsi_pipeline.models.context import (
    ContextCard,
    ContextStep,
    RingOptions,
    apply_context,
    base_log_odds,
    log_odds_of,
)
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.names import slide_name

Floats = NDArray[np.float64]
Slides = Sequence[LabelledSlide]

FINER_UM = 100.0
# A labelled focus of so many cells, 1.6 mm2, is a small one.
SMALL_FOCUS = 40
ABOUT = (
    "Maps of all whole mounts, each scored by the network of its patient's fold; what is fitted of a step is fitted "
    "on mounts of other folds, calibration and threshold of each patient on other patients. After the semicolon the "
    "difference to the first row, with 95 % intervals over patients; AUROC is of the calibrated probabilities. "
    "Widths are standard deviations. *Small foci*: the share that is found of labelled foci of at most 40 cells. "
    "*Mean*: Gaussian of so many patches, of the neighbours' probabilities or log odds. *Finer*: the same mean over "
    "patches half a patch apart, four times as many. *Map of 100 um cells*: what `infer-slide --cell-um 100` makes "
    "of those, at the patches. *Rings*: small perceptrons that correct the mean of one patch, fitted on other mounts"
    " in seven groups. *Random field*: two labels, coupled to the eight neighbours. *U-Net*: a small one over the "
    "grid. A step over the network's features: [below](#a-context-step-over-features). "
    "Written by `python -m scripts.results.cross_validate_context {run} --slides runs/results/slides --out "
    "docs/results.md`, after `python -m scripts.results.cross_validate`."
)

log = logging.getLogger("cross_validate_context")


def main() -> None:
    """Score the mounts, cross-validate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of fold_K.npz and fold_K.safetensors")
    parser.add_argument("--slides", type=Path, required=True, help="whole mounts, labels beside them")
    parser.add_argument("--score-only", action="store_true", help="score the mounts, and fit nothing")
    parser.add_argument("--out", type=Path, help="a page whose section on the context step is written anew")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    slides, close = scored_mounts(options.run, options.slides)
    if options.score_only:
        return
    text = table(slides, close)
    print(text)
    if options.out:
        about = ABOUT.format(run=options.run)
        put_section(options.out, "steps", f"## Context steps, by cross-validation\n\n{about}\n\n{text}")


def scored_mounts(run: Path, folder: Path) -> tuple[list[LabelledSlide], list[NDArray[np.float32]]]:
    """The mounts scored by networks that never saw them; and of each, [row, column], patches half a patch apart.

    Kept in run/mounts, so that another try does not score them again.
    """
    folds, views = read_folds(), ContextTrainOptions().views
    kept = run / "mounts"
    kept.mkdir(exist_ok=True)
    networks: dict[int, Model] = {}
    config = InferConfig()
    closer = replace(config, grid=replace(config.grid, cell_um=FINER_UM))
    slides, close = [], []
    for path, known in find_labelled_slides(folder):
        name = slide_name(path)
        place = kept / f"{name}.npz"
        fold = folds[name]
        networks.setdefault(fold, calibrated_network(run, fold))
        if not scored_by(place, networks[fold].card.weights_sha256):
            classifier = Classifier([networks[fold]], torch.device("cpu"), ClassifyOptions())
            slide = score_slide(path, known, classifier, config, AnnotationOptions(), views)
            _, _, scored = patch_scores(path, classifier, closer, 1)
            part = place.with_suffix(".part.npz")
            weights = networks[fold].card.weights_sha256
            np.savez(
                part,
                probability=slide.patch_probability,
                labels=slide.labels,
                close=scored[0],
                weights=weights,
            )
            part.replace(place)
            log.info("%s: %d labelled cells", name, slide.evaluated.sum())
        with np.load(place) as found:
            slides.append(read_scored(kept, name))
            close.append(found["close"])
    return slides, close


def scored_by(place: Path, weights: str) -> bool:
    """Whether a mount's scores lie there, and are of these weights."""
    if not place.exists():
        return False
    with np.load(place) as found:
        return "weights" in found and str(found["weights"]) == weights


def table(slides: Slides, close: Sequence[NDArray[np.float32]]) -> str:
    """A row a way; the first is what the others are compared with."""
    folds = read_folds()
    groups = np.array([folds[slide.patient] for slide in slides])
    labels = np.concatenate([s.labels[s.evaluated] == 1 for s in slides]).astype(int)
    patients = np.repeat([s.patient for s in slides], [s.evaluated.sum() for s in slides])
    of_cell = np.repeat(groups, [s.evaluated.sum() for s in slides])
    ways: dict[str, Callable[[], Floats]] = {
        "mean of probability, 1 patch": lambda: mean_odds(slides, 1.0, "probability"),
        "mean of probability, 0.7 patches": lambda: mean_odds(slides, 0.7, "probability"),
        "mean of probability, 1.4 patches": lambda: mean_odds(slides, 1.4, "probability"),
        "mean of probability, 2 patches": lambda: mean_odds(slides, 2.0, "probability"),
        "mean of log odds, 1 patch": lambda: mean_odds(slides, 1.0, "log_odds"),
        "mean of log odds, 1.4 patches": lambda: mean_odds(slides, 1.4, "log_odds"),
        "mean of log odds, 2 patches": lambda: mean_odds(slides, 2.0, "log_odds"),
        "each patch alone": lambda: own_odds(slides),
        **{
            f"finer: mean of {base_of.replace('_', ' ')}, {wide}": partial(
                finer_odds, slides, close, sigma, base_of
            )
            for base_of in ("probability", "log_odds")
            for sigma, wide in ((1.0, "1 patch"), (1.4, "1.4 patches"))
        },
        "map of 100 um cells, mean of log odds, 1.4 patches": lambda: odds_of_fine_map(slides, close, 1.4),
        "rings on log odds": lambda: ring_odds(slides, "log_odds"),
        "rings on probability": lambda: ring_odds(slides, "probability"),
        "random field": lambda: random_field(slides, groups),
        "U-Net": lambda: u_net(slides, groups),
    }
    in_small_focus = np.concatenate([focus_cells(s)[s.evaluated] for s in slides])
    in_small_focus = (in_small_focus > 0) & (in_small_focus <= SMALL_FOCUS)
    resampled = draw_patients(patients)
    lines: list[str] = []
    first: Measured | None = None
    for way, answer in ways.items():
        odds = answer()
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
            + f" | {called[in_small_focus].mean():.3f} |"
        )
        first = first or found
    return "\n".join(
        [
            f"{len(labels):,} labelled cells of {len(slides)} whole mounts.",
            "",
            "| map | " + " | ".join(MEASURES.values()) + " | F1 by fold | small foci |",
            "| --- | " + " | ".join("---" for _ in MEASURES) + " | --- | ---: |",
            *lines,
        ]
    )


def focus_cells(slide: LabelledSlide) -> NDArray[np.int_]:
    """Of how many cells the labelled focus is that each cell [row, column] lies in; 0 outside."""
    focus, _ = label(slide.labels == 1, np.ones((3, 3)))
    counts = np.bincount(focus.ravel())
    counts[0] = 0
    return np.asarray(counts[focus])


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


def finer_odds(slides: Slides, close: Sequence[NDArray[np.float32]], sigma: float, base_of: str) -> Floats:
    """As mean_odds, over patches half a patch apart; those side by side are every other one of these."""
    options = RingOptions(base_sigma=2 * sigma, base_of=base_of)  # type: ignore[arg-type]
    parts = []
    for slide, scores in zip(slides, close, strict=True):
        odds = np.full(scores.shape, np.nan)
        odds[~np.isnan(scores)] = base_log_odds(log_odds_of(scores, options), options)
        parts.append(_at_patches(odds, slide))
    return np.concatenate(parts)


def odds_of_fine_map(slides: Slides, close: Sequence[NDArray[np.float32]], sigma: float) -> Floats:
    """Log odds of each patch's mean on the map that `infer-slide --cell-um 100` makes of these scores.

    Its cells are the mean of the four patches that cover them; the step looks at cells a patch apart.
    """
    step = ContextStep(ContextCard(kind="gaussian", options=RingOptions(base_sigma=sigma)), {})
    parts = []
    for slide, scores in zip(slides, close, strict=True):
        rows, columns = scores.shape
        covering = np.full((4, rows + 1, columns + 1), np.nan, np.float32)
        for k, (y, x) in enumerate(np.ndindex(2, 2)):
            covering[k, y : y + rows, x : x + columns] = scores
        counts = (~np.isnan(covering)).sum(axis=0)
        mean = np.where(counts, np.nansum(covering, axis=0) / np.maximum(counts, 1), np.nan)
        after = apply_context(mean.astype(np.float32), step, patch_cells=2)
        of_patch = np.stack([after[y : y + rows, x : x + columns] for y, x in np.ndindex(2, 2)])
        parts.append(odds_of(_at_patches(of_patch.mean(axis=0), slide).astype(np.float32)))
    return np.concatenate(parts)


def _at_patches(values: NDArray[np.floating], slide: LabelledSlide) -> Floats:
    """Of values [row, column] at patches half a patch apart, those at the slide's evaluated ones."""
    rows, columns = np.nonzero(slide.evaluated)
    return np.asarray(values[2 * rows, 2 * columns], np.float64)


def odds_of(probability: NDArray[np.float32]) -> Floats:
    """Log odds, NaN where not scored."""
    return log_odds_of(probability, RingOptions(most_log_odds=12.0))


def ring_odds(slides: Slides, base_of: str) -> Floats:
    """Log odds after small perceptrons, each mount's trained on others."""
    options = ContextTrainOptions(kind="rings", rings=RingOptions(base_sigma=1.0, base_of=base_of))  # type: ignore[arg-type]
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
