"""Train a model's context step on labelled slides, and evaluate it on patients kept apart.

Everything that is chosen (calibration, threshold) is chosen by cross-validation among the training patients;
the validation patients are evaluated and nothing else.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.base.errors import ConfigError, DataError
from wsi_pipeline.base.options import Field, options, options_to_dict
from wsi_pipeline.base.text import counted
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.learning.datasets import SplitOptions, check_no_leak
from wsi_pipeline.learning.datasets.labelled_slides import (
    LabelledSlide,
    find_labelled_slides,
    read_scored,
    score_slide,
)
from wsi_pipeline.learning.datasets.split import read_patients
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.models.context import (
    TRUNCATE,
    ContextCard,
    ContextStep,
    Floats,
    RingOptions,
    apply_context,
    log_odds_of,
    neighbour_mean,
    ring_features,
    step_log_odds,
    weight_shapes,
)
from wsi_pipeline.models.model import save_model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.slides.annotations.cell_labels import UNLABELLED
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.names import slide_name

log = logging.getLogger(__name__)


@options
class ContextTrainOptions:
    """All that decides what a training of the context step makes of its slides."""

    kind: Literal["rings", "gaussian"] = "gaussian"
    """gaussian: the mean of the neighbours, calibrated, which no training can spoil; rings: small perceptrons correct
    it. Over 29 whole mounts that no network was trained on, rings were no better (docs/results.md)."""

    widths: Literal["patches", "um"] = "patches"
    """In what the widths of `rings`, and `compared_sigma`, are given: patches of the model, or micrometres, so that a
    model of small patches looks as far as one of large ones. The card has them in patches."""

    rings: RingOptions = Field(default_factory=RingOptions)
    split: SplitOptions = Field(default_factory=SplitOptions)
    """Who is trained on: values of the manifest's column `split`, or val_patients by name."""

    annotations: AnnotationOptions = Field(default_factory=AnnotationOptions)
    """What outlines mean, of slides that are labelled by outlines."""

    views: Annotated[int, Field(ge=1, le=8)] = 8
    """Views of each training patch, turned and flipped, 1 to 8: how much the network's answers waver."""

    draws: Annotated[int, Field(ge=1)] = 6
    """Maps drawn of each slide, each of another view, its scores jittered as below; the first is the map itself."""

    temperature_jitter: Annotated[float, Field(ge=0)] = 0.04
    """Of each drawn map, the log odds are multiplied by exp of a normal value of this deviation."""

    shift_jitter: Annotated[float, Field(ge=0)] = 0.1
    """The log odds of a drawn map are also shifted by a normal value of this deviation. Little of both: how high a
    slide's log odds lie as a whole says how far to believe them, and four times as much blurs that
    (docs/training.md)."""

    dropped: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.0, 0.05, 0.15)
    """Shares of cells that are taken out of a drawn map; one of them is drawn: tissue has other holes elsewhere."""

    members: Annotated[int, Field(gt=0)] = 3
    """Perceptrons, each trained by itself; their log odds are averaged."""

    hidden: Annotated[int, Field(gt=0)] = 16
    """Hidden values in each of a perceptron's two layers."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of what a perceptron sees, and of its hidden values, that is left out at each step."""

    steps: Annotated[int, Field(gt=0)] = 300
    """Steps of the optimiser, AdamW."""

    batch_size: Annotated[int, Field(gt=0)] = 2048
    """Cells that each perceptron sees at a step."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    """The highest of the schedule, which rises to it and falls to nothing."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Of AdamW."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Outlines are coarse: no cell of a region's edge is certain."""

    mount_balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A slide of n cells weighs as if of n ** (1 - balance): 0 every cell alike, 1 every slide alike."""

    folds: Annotated[int, Field(ge=2)] = 7
    """Groups of the training patients, each scored by a step trained on the others."""

    compared_sigma: Annotated[float, Field(gt=0)] = 1.0
    """Deviation of the plain mean that the step is measured against."""

    seed: int = 0
    """Of the drawn maps, the folds and the first weights."""

    limits: str = ""
    """What the model's card says of its limits from now on; empty: what it says today."""


@dataclass(frozen=True, eq=False)
class _Examples:
    """Cells to train on: what the step sees [n, c], the base it corrects [n], labels [n], weights [n]."""

    rings: NDArray[np.float32]
    base: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Compared:
    """Labelled cells [n] of some slides: probabilities of each kind of map, labels, patients."""

    maps: dict[str, Floats]
    labels: NDArray[np.int_]
    patients: NDArray[np.str_]


def train_context(
    options: ContextTrainOptions,
    classifier: Classifier,
    slides: Path,
    manifest: Path | None,
    out: Path,
    unseen: Path | None = None,
) -> Path:
    """The weights file, `out`/NAME.safetensors, of the classifier's model with a new context step.

    slides: a folder of slides with labels (datasets/labelled_slides.py). manifest: a CSV with the columns
    patient and split; none: the config's split names the validation patients. unseen: a folder of scores of the
    training slides, by networks that had not seen them (`read_scored`), to choose calibration and threshold on. Raises
    DataError when they do not fit, ConfigError for `unseen` with another kind than gaussian.
    """
    model = classifier.models[0]
    patch_um = model.card.patch_px * model.card.mpp
    in_patches(options, patch_um)  # before minutes of scoring
    if unseen and options.kind != "gaussian":
        raise ConfigError(
            f"found scores of networks that had not seen the slides, and kind {options.kind}; expected kind gaussian: "
            "small perceptrons are calibrated by their own cross-validation"
        )
    found = {slide_name(path): (path, known) for path, known in find_labelled_slides(slides)}
    train_names, val_names = split_slides(list(found), options.split, manifest)
    held_out = [read_scored(unseen, name) for name in train_names] if unseen else None
    config = InferConfig()

    def scored(names: Sequence[str], views: int) -> list[LabelledSlide]:
        labelled = []
        for name in names:
            labelled.append(score_slide(*found[name], classifier, config, options.annotations, views))
            log.info("%s: %s scored", name, counted(int(labelled[-1].evaluated.sum()), "labelled patch"))
        return labelled

    train, val = scored(train_names, options.views), scored(val_names, 1)
    for slide, scored_before in zip(train, held_out or [], strict=False):
        if not np.array_equal(slide.labels, scored_before.labels):
            raise DataError(
                f"{unseen}/{slide.patient}.npz: found {_cells_of(scored_before)}, expected {_cells_of(slide)} as the "
                "slide has here; score it anew, at this model's patches and scale"
            )
    step, measured = fit_and_evaluate(options, train, val, model.card.threshold, patch_um, held_out)
    card = replace(
        step.card,
        training={
            "base": model.sha256,
            "train": _count(train),
            "val": _count(val),
            "calibrated_on": UNSEEN if held_out else TRAINED_ON,
            "config": options_to_dict(options),
        },
        metrics=measured,
    )
    for side in ("crossfitted", "val"):
        for kind, numbers in measured[side].items():
            log.info(
                "%s, %s: F1 %.3f, balanced accuracy %.3f, AUROC %.4f, ECE %.3f",
                *(side, kind, numbers["f1"], numbers["balanced_accuracy"], numbers["auroc"], numbers["ece"]),
            )
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{model.card.name}.safetensors"
    base = replace(model.card, limits=options.limits or model.card.limits)
    save_model(path, model.network, base, ContextStep(card, step.weights))
    return path


def _cells_of(slide: LabelledSlide) -> str:
    rows, columns = slide.labels.shape
    return f"a grid of {rows} x {columns}, {counted(int((slide.labels == 1).sum()), 'cell')} of IDC"


# A slide with less labelled IDC says nothing of areas.
LEAST_UM2 = 1e6
# What the card says of the scores that calibration and threshold were chosen on.
UNSEEN = "the training slides as scored by networks that had not seen their patients"
TRAINED_ON = "the training slides as scored by this network"
MEASURED_NOTE = (
    "crossfitted: the training mounts, each judged by a step that did not learn from it; calibration and "
    "threshold of the step, and the threshold of the Gaussian, were chosen there. val: nothing was chosen on it "
    "but the threshold of each patch alone, with the model's"
)


def fit_and_evaluate(
    options: ContextTrainOptions,
    train: Sequence[LabelledSlide],
    val: Sequence[LabelledSlide],
    patch_threshold: float,
    patch_um: float,
    held_out: Sequence[LabelledSlide] | None = None,
) -> tuple[ContextStep, dict[str, Any]]:
    """The step of all training slides, calibrated, and its measures beside those of the maps without it.

    Calibration and threshold are of the training slides, each scored by a step that was trained on others; or of
    `held_out`, the same slides as scored by networks that had not seen them, where these are given.
    patch_threshold: the model's, for each patch alone. patch_um: side of its patches, micrometres.
    """
    options = in_patches(options, patch_um)
    judged = train if held_out is None else held_out
    odds = _crossfitted_log_odds(options, judged)
    logits = np.stack([np.zeros_like(odds), odds], axis=1)
    labels = _cells(judged, lambda slide: slide.labels).astype(int)
    calibration = metrics.fit_calibration(logits, labels)
    probability = metrics.calibrated(logits, calibration).astype(np.float64)
    learned = options.kind == "rings"
    examples = [_examples(slide, options, i) for i, slide in enumerate(train)] if learned else []
    weights = _fit(examples, options, options.seed) if learned else {}
    card = ContextCard(
        kind=options.kind,
        options=options.rings,
        temperature=calibration.temperature,
        log_odds_shift=calibration.log_odds_shift,
        threshold=metrics.choose_threshold(probability, labels),
    )
    step = ContextStep(card, weights)
    sides = {
        "crossfitted": _compared(judged, options.compared_sigma, probability),
        "val": _compared(
            val,
            options.compared_sigma,
            _cells(val, lambda slide: apply_context(slide.patch_probability[0], step)),
        ),
    }
    chosen = sides["crossfitted"]
    thresholds = {
        "alone": patch_threshold,
        "gaussian": metrics.choose_threshold(chosen.maps["gaussian"], chosen.labels),
        "context": card.threshold,
    }
    measured = {
        "note": MEASURED_NOTE,
        "thresholds": thresholds,
        **{
            name: {
                kind: metrics.measures(values, side.labels, thresholds[kind])
                for kind, values in side.maps.items()
            }
            for name, side in sides.items()
        },
        "dice_by_slide": {
            str(patient): {
                kind: metrics.decide(values[here], side.labels[here], thresholds[kind]).f1
                for kind, values in side.maps.items()
            }
            for side in [sides["val"]]
            for patient in np.unique(side.patients)
            for here in [side.patients == patient]
        },
        "areas": area_ratios(sides["val"], thresholds["context"], LEAST_UM2 / patch_um**2),
    }
    return step, measured


def in_patches(options: ContextTrainOptions, patch_um: float) -> ContextTrainOptions:
    """The same options with all widths in patches, of `patch_um` micrometres a side.

    Raises ConfigError for a width that reaches no neighbour, or beyond a slide: it is in the other unit.
    """
    _check_widths(options, patch_um)
    if options.widths == "patches":
        return options

    def each(widths: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(width / patch_um for width in widths)

    rings = replace(
        options.rings,
        sigmas=each(options.rings.sigmas),
        spread_sigmas=each(options.rings.spread_sigmas),
        base_sigma=options.rings.base_sigma / patch_um,
    )
    return replace(options, widths="patches", rings=rings, compared_sigma=options.compared_sigma / patch_um)


# What is narrower sees no neighbour; what is wider sees the whole slide alike.
LEAST_PATCHES, MOST_UM = 0.5 / TRUNCATE, 10_000.0


def _check_widths(options: ContextTrainOptions, patch_um: float) -> None:
    rings, unit = options.rings, 1.0 if options.widths == "um" else patch_um
    widths = [("rings.base_sigma", rings.base_sigma), ("compared_sigma", options.compared_sigma)]
    if options.kind == "rings":  # the widest of each: narrower ones than a patch see the patch itself
        widths += [("rings.sigmas", max(rings.sigmas, default=rings.base_sigma))]
        widths += [("rings.spread_sigmas", max(rings.spread_sigmas, default=rings.base_sigma))]
    for name, width in widths:
        um = width * unit
        if not um / patch_um >= LEAST_PATCHES or not um <= MOST_UM:
            other = "um" if options.widths == "patches" else "patches"
            raise ConfigError(
                f"{name}: found {width:g} {options.widths}, {um:g} um, for patches of {patch_um:g} um; expected "
                f"{LEAST_PATCHES * patch_um:.3g} to {MOST_UM:,.0f} um: narrower reaches no neighbour, wider no slide "
                f"is; set it, or if it is meant in {other}, widths: {other}"
            )


def area_ratios(side: "Compared", threshold: float, least_cells: float) -> dict[str, float] | None:
    """How many times the labelled area of IDC the map calls IDC, over the slides with so many labelled cells of it.

    None where there are none.
    """
    found = []
    for patient in np.unique(side.patients):
        here = side.patients == patient
        if (labelled := int(side.labels[here].sum())) >= least_cells:
            found.append(float((side.maps["context"][here] >= threshold).sum() / labelled))
    if not found:
        return None
    return {
        "slides": len(found),
        "median": float(np.median(found)),
        "lowest": min(found),
        "highest": max(found),
    }


def compare_held_out(options: ContextTrainOptions, slides: Sequence[LabelledSlide]) -> Compared:
    """Each kind of map over all labelled cells of the slides, each slide's step trained on other patients."""
    odds = _crossfitted_log_odds(options, slides)
    return _compared(slides, options.compared_sigma, 1 / (1 + np.exp(-odds.astype(np.float64))))


def split_slides(
    names: Sequence[str], split: SplitOptions, manifest: Path | None
) -> tuple[list[str], list[str]]:
    """The names of the slides to train on and of those to evaluate on.

    Raises DataError when the manifest, or patients_csv of the split, cannot be read or does not know a slide, or a
    side is empty.
    """
    if split.patients_csv and (split.val_patients or manifest):
        raise DataError(
            f"split: found patients_csv ({split.patients_csv}) beside val_patients or --manifest, expected one of "
            "them; leave the others out"
        )
    known = Path(split.patients_csv) if split.patients_csv else manifest
    if known is None or split.val_patients:
        train = [name for name in names if name not in split.val_patients]
        val = [name for name in names if name in split.val_patients]
    else:
        sides = read_patients(known)
        if unknown := [name for name in names if name not in sides]:
            raise DataError(
                f"{known}: found no patient {', '.join(unknown[:5])}; name slides by their patient"
            )
        train = [name for name in names if sides[name] in split.train]
        val = [name for name in names if sides[name] in split.val]
    check_no_leak(set(train), set(val))
    if len(train) < 2 or not val:
        raise DataError(
            f"found {counted(len(train), 'slide')} to train on and {len(val)} to evaluate on, expected 2 and 1 at "
            f"least; give --manifest, or split.val_patients or split.patients_csv in the config"
        )
    return train, val


def _cells(slides: Sequence[LabelledSlide], values: Callable[[LabelledSlide], NDArray[Any]]) -> NDArray[Any]:
    """The values [row, column] of the evaluated cells of all slides, one after another."""
    return np.concatenate([values(slide)[slide.evaluated] for slide in slides])


def _crossfitted_log_odds(options: ContextTrainOptions, slides: Sequence[LabelledSlide]) -> Floats:
    """Log odds after the step of all evaluated cells, each slide's by a step that was trained on other patients."""
    if options.kind == "gaussian":  # nothing is fitted
        return _cells(slides, lambda slide: _spread_out(slide, _gaussian(options)))
    examples = [_examples(slide, options, i) for i, slide in enumerate(slides)]
    folds = min(options.folds, len(slides))
    fold_of = np.random.default_rng(options.seed).permutation(len(slides)) % folds
    odds: dict[int, Floats] = {}
    for fold in range(folds):
        weights = _fit([e for e, f in zip(examples, fold_of, strict=True) if f != fold], options, fold)
        step = ContextStep(ContextCard(options=options.rings), weights)
        for i in np.flatnonzero(fold_of == fold).tolist():
            slide = slides[i]
            scored = ~np.isnan(slide.patch_probability[0])
            odds[i] = step_log_odds(log_odds_of(slide.patch_probability[0], options.rings), step)[
                slide.evaluated[scored]
            ]
        log.info("cross-validation: fold %d of %d", fold + 1, folds)
    return np.concatenate([odds[i] for i in range(len(slides))])


def _gaussian(options: ContextTrainOptions) -> ContextStep:
    return ContextStep(ContextCard(kind="gaussian", options=options.rings), {})


def _spread_out(slide: LabelledSlide, step: ContextStep) -> Floats:
    """Log odds [row, column] after the step, NaN where not scored."""
    probability = slide.patch_probability[0]
    odds = np.full(probability.shape, np.nan)
    odds[~np.isnan(probability)] = step_log_odds(log_odds_of(probability, step.card.options), step)
    return odds


def _compared(slides: Sequence[LabelledSlide], sigma: float, context: Floats) -> Compared:
    def smoothed(slide: LabelledSlide) -> Floats:
        probability = slide.patch_probability[0]
        return neighbour_mean(np.nan_to_num(probability).astype(np.float64), ~np.isnan(probability), sigma)

    return Compared(
        {
            "alone": _cells(slides, lambda slide: slide.patch_probability[0]).astype(np.float64),
            "gaussian": _cells(slides, smoothed),
            "context": context.astype(np.float64),
        },
        _cells(slides, lambda slide: slide.labels).astype(int),
        np.concatenate([np.full(slide.evaluated.sum(), slide.patient) for slide in slides]),
    )


def _examples(slide: LabelledSlide, options: ContextTrainOptions, index: int) -> _Examples:
    """The labelled cells of the slide's drawn maps."""
    random = np.random.default_rng((options.seed, index))
    seen, bases, labels = [], [], []
    for draw in range(options.draws):
        odds = log_odds_of(slide.patch_probability[draw % len(slide.patch_probability)], options.rings)
        if draw:
            scale = np.exp(random.normal(0, options.temperature_jitter))
            odds = odds * scale + random.normal(0, options.shift_jitter)
            most = options.rings.most_log_odds
            odds = np.clip(odds, -most, most)
            odds[random.random(odds.shape) < random.choice(options.dropped or (0.0,))] = np.nan
        base, rings = ring_features(odds, options.rings)
        of_scored = slide.labels[~np.isnan(odds)]
        seen.append(rings[of_scored != UNLABELLED])
        bases.append(base[of_scored != UNLABELLED])
        labels.append(of_scored[of_scored != UNLABELLED] == 1)
    count = max(1, sum(len(part) for part in labels))
    return _Examples(
        np.concatenate(seen).astype(np.float32),
        np.concatenate(bases).astype(np.float32),
        np.concatenate(labels).astype(np.float32),
        np.full(count, count**-options.mount_balance, np.float32),
    )


class _Perceptrons(nn.Module):
    """Several small perceptrons trained side by side, each on batches of its own."""

    def __init__(self, members: int, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        shapes = weight_shapes(channels, hidden, members)
        self.arrays = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shapes[name])) for name in shapes if name not in ("mean", "std")}
        )
        for name, fan_in in (
            ("weight1", channels),
            ("bias1", channels),
            ("weight2", hidden),
            ("bias2", hidden),
        ):
            nn.init.uniform_(self.arrays[name], -(fan_in**-0.5), fan_in**-0.5)
        # weight3 stays at zero: the step starts as the plain mean, and learns what to correct.
        self.dropout = nn.Dropout(dropout)

    def forward(self, rings: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Log odds [m, n] of rings [m, n, c] and base [m, n]."""
        w = self.arrays
        x = torch.relu(torch.baddbmm(w["bias1"][:, None], self.dropout(rings), w["weight1"]))  # [m, n, h]
        x = self.dropout(torch.relu(torch.baddbmm(w["bias2"][:, None], x, w["weight2"])))  # [m, n, h]
        odds: torch.Tensor = base + (x @ w["weight3"][:, :, None])[..., 0] + w["bias3"][:, None]
        return odds


def _fit(
    slides: Sequence[_Examples], options: ContextTrainOptions, seed: int
) -> dict[str, NDArray[np.float32]]:
    """The weights of a step (context.py, ContextStep) trained on the examples of these slides."""
    rings, base, labels, weights = (
        np.concatenate([getattr(slide, name) for slide in slides])
        for name in ("rings", "base", "labels", "weights")
    )
    if len(np.unique(labels)) < 2:
        raise DataError("the slides to train on hold labels of one class alone, expected both")
    mean, std = rings.mean(axis=0), rings.std(axis=0) + 1e-6
    seen = torch.from_numpy((rings - mean) / std)  # [n, c]
    known = [torch.from_numpy(values) for values in (base, labels, weights / weights.mean())]  # [n] each
    torch.manual_seed(seed)
    network = _Perceptrons(options.members, rings.shape[1], options.hidden, options.dropout)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, options.steps)
    for _ in range(options.steps):
        picked = torch.randint(len(seen), (options.members, options.batch_size))
        start, label, weight = (values[picked] for values in known)  # [m, n] each
        target = label * (1 - options.label_smoothing) + options.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(network(seen[picked], start), target, reduction="none")
        optimiser.zero_grad()
        # A mean a member, summed: each learns as if it were alone.
        (losses * weight).mean(dim=1).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    arrays = {name: values.detach().numpy().copy() for name, values in network.arrays.items()}
    return {"mean": mean, "std": std, **arrays}


def _count(slides: Sequence[LabelledSlide]) -> dict[str, Any]:
    return {
        "slides": [slide.patient for slide in slides],
        "patches": int(sum(slide.evaluated.sum() for slide in slides)),
        "idc": int(sum((slide.labels[slide.evaluated] == 1).sum() for slide in slides)),
    }
