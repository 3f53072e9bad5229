"""What a training says of its network: the card before the first epoch, and after each."""

import hashlib
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.scale import scale_in_words
from wsi_pipeline.learning.datasets.sharing import ONE_READER, Readers, share_of
from wsi_pipeline.learning.datasets.tiled_slides import SlidePatches
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.training.distillation import describe_teachers
from wsi_pipeline.learning.training.options import TrainOptions
from wsi_pipeline.learning.training.pretrained import card_beside, pretrained_files, pretrained_names
from wsi_pipeline.models.architectures.inputs import IMAGENET_MEAN, IMAGENET_STD
from wsi_pipeline.models.card import ModelCard, Rgb, Stain
from wsi_pipeline.models.cost import Cost
from wsi_pipeline.models.registered import is_registered_name
from wsi_pipeline.models.stain import patch_densities
from wsi_pipeline.models.stain_methods import StainMethod, as_numbers, find_stains

CLASSES = ("not_idc", "idc")
IDC = CLASSES.index("idc")  # the label, and its place among the classes
# Of so many validation patches one is put through the network in bfloat16 as well.
BF16_STEP = 8
# Of so many training patches the reference of Macenko's or Reinhard's method is measured.
REFERENCE_PATCHES = 2048


def blank_card(
    options: TrainOptions,
    train: LabelledPatches | SlidePatches,
    val: LabelledPatches,
    cost: Cost,
    stain: Stain,
    readers: Readers = ONE_READER,
    sample: LabelledPatches | None = None,
) -> ModelCard:
    """The card as far as it is known before the first epoch; `stain` is that of the patches as scanned.

    `sample`: those in memory, where the patches to train on are read from slides.
    """
    measured = train if isinstance(train, LabelledPatches) else sample
    assert measured is not None
    mean, std = _normalisation(options, measured, readers)
    config, began = options_to_dict(options), _began_from(options)
    for text in ("data", "licence", "intended_use", "limits"):  # these have their own place on the card
        del config[text]
    return ModelCard(
        name=options.name,
        architecture=options.architecture,
        architecture_options=options.architecture_options,
        patch_px=options.patch_px,
        mpp=options.mpp,
        classes=CLASSES,
        mean=mean,
        std=std,
        stain=stain,
        stain_normalisation=options.stain_normalisation,
        stain_method=options.stain_method,
        training={
            "data": options.data,
            # What the split keeps apart: patient, or slide or image where the set knows no patients.
            "by": train.by,
            "data_scale": scale_in_words(train.scale, "config"),
            "train": count(train),
            "val": count(val),
            "parameters": cost.parameters,
            "mflop_per_patch": round(cost.mflop, 1),
            "commit": _commit(),
            "torch": torch.__version__,
            "config": config,
        }
        | ({"measured_on": len(sample)} if sample else {})
        | ({"teachers": describe_teachers(options)} if options.teachers else {})
        | ({"pretrained": began} if began else {}),
        licence=options.licence,
        intended_use=options.intended_use,
        limits=options.limits,
    )


def evaluated_card(
    blank: ModelCard,
    logits: NDArray[np.float32],
    in_bf16: NDArray[np.float32],
    val: LabelledPatches,
    options: TrainOptions,
    epoch: int,
) -> ModelCard:
    """The card after an epoch: calibrated, with its threshold and what it reached.

    `logits` [N, classes] are of the validation patches, `in_bf16` of every BF16_STEP-th of them.
    """
    calibration = metrics.fit_calibration(logits, val.labels, IDC)
    probability = metrics.calibrated(logits, calibration, IDC)
    threshold = metrics.choose_threshold(probability, val.labels)
    moved = float(np.abs(metrics.calibrated(in_bf16, calibration, IDC) - probability[::BF16_STEP]).max())
    # Where each image is its own patient, there is nothing to measure within one.
    by_patient = (
        {}
        if val.by == "image"
        else metrics.measures_by_patient(probability, val.labels, val.patients, threshold)
    )
    impossible = metrics.no_crossfit(val.labels, val.patients, val.by)
    chosen = "calibration" if options.best_by == "epoch" else "epoch, calibration"
    note = f"{chosen} and threshold were chosen on these same validation {val.by}s; " + (
        f"nothing is cross-fitted: {impossible}"
        if impossible
        else f"in 'crossfitted', each {val.by}'s calibration and threshold come from others"
    )
    crossfitted = (
        {} if impossible else {"crossfitted": metrics.crossfitted(logits, val.labels, val.patients, IDC)}
    )
    if val.by != "patient":
        note = (
            f"by {val.by}: the data names no patients, one may stand on both sides of the split, and these "
            f"numbers flatter; {note}"
        )
    return replace(
        blank,
        temperature=calibration.temperature,
        log_odds_shift=calibration.log_odds_shift,
        threshold=threshold,
        bf16=moved <= options.bf16_tolerance,
        training=blank.training | {"epoch": epoch + 1},
        metrics={
            "note": note,
            "val": metrics.measures(probability, val.labels, threshold),
            **crossfitted,
            "patients": metrics.spread(by_patient),
            "reliability": metrics.reliability(probability, val.labels),
            "bf16_moves_by_at_most": moved,
        },
    )


def mean_loss(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Cross-entropy of logits [N, classes], as they come out of the network, with the labels."""
    values = logits.astype(float)
    return float((logsumexp(values, axis=1) - values[np.arange(len(labels)), labels]).mean())


def count(side: LabelledPatches | SlidePatches) -> dict[str, int]:
    """How much a side of the split holds."""
    return {"patients": len(set(side.patients)), "patches": len(side), "idc": int(side.labels.sum())}


def _normalisation(options: TrainOptions, train: LabelledPatches, readers: Readers) -> tuple[Rgb, Rgb]:
    if options.normalisation == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    if options.normalisation == "none":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if options.normalisation == "pretrained":
        card = card_beside(pretrained_files(options.pretrained)[0])
        return card.mean, card.std
    return _channel_statistics(train.pixels, readers)


def _channel_statistics(pixels: NDArray[np.uint8], readers: Readers) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of R, G, B on the scale 0 to 1; each reader counts its share."""
    means, stds = [], []
    mine = pixels[share_of(len(pixels), readers)]
    for channel in range(3):
        # In pieces: counting makes 8 bytes of each of up to 700 million values.
        counted = np.zeros(256, np.int64)
        for start in range(0, len(mine), 4096):
            counted += np.bincount(mine[start : start + 4096, ..., channel].ravel(), minlength=256)
        counts = np.sum(readers.all_say(counted), axis=0) / (pixels.size // 3)
        levels = np.arange(256) / 255
        mean = float(counts @ levels)
        means.append(mean)
        stds.append(math.sqrt(max(float(counts @ (levels - mean) ** 2), 1e-6)))
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def stain_of(side: LabelledPatches, readers: Readers = ONE_READER, method: StainMethod = "gain") -> Stain:
    """What the patches look like, for the card; each reader measures its share.

    Macenko's and Reinhard's methods are asked of REFERENCE_PATCHES of them at most, by all readers alike. Raises
    DataError where these hold too little tissue.
    """
    mine = patch_densities(side.pixels[share_of(len(side), readers)])
    means = np.concatenate(readers.all_say(mine))  # [N, 3]
    patients = np.stack([means[side.patients == p].mean(axis=0) for p in np.unique(side.patients)])
    return Stain(
        od_mean=_rgb(means.mean(axis=0)),
        od_std=_rgb(means.std(axis=0)),
        od_patient_std=_rgb(patients.std(axis=0)),
        reference=() if method == "gain" else as_numbers(find_stains(method, _spread_over(side))),
    )


def _spread_over(side: LabelledPatches) -> NDArray[np.uint8]:
    """As many patches of each patient, evenly taken, REFERENCE_PATCHES together at most."""
    names = np.unique(side.patients)
    each = max(1, REFERENCE_PATCHES // len(names))
    of_patients = [np.flatnonzero(side.patients == name) for name in names]
    rows = [own[np.linspace(0, len(own) - 1, min(each, len(own))).astype(int)] for own in of_patients]
    chosen: NDArray[np.uint8] = side.pixels[np.concatenate(rows)]
    return chosen


def _rgb(values: NDArray[np.floating[Any]]) -> Rgb:
    return float(values[0]), float(values[1]), float(values[2])


def _began_from(options: TrainOptions) -> list[dict[str, Any]]:
    """The weights that training began from, each described; of a model of the registry NAME@VERSION too."""
    names, files = pretrained_names(options.pretrained), pretrained_files(options.pretrained)
    return [
        _described(file) | ({"registered": name} if is_registered_name(name) else {})
        for name, file in zip(names, files, strict=True)
    ]


def _described(weights: Path) -> dict[str, Any]:
    """What training began from; of a model of ours its name, data, sides and what it began from itself, if anything."""
    described = {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    if weights.suffix != ".safetensors" or not weights.with_suffix(".json").is_file():
        return described
    card = card_beside(weights)
    came = {key: card.training[key] for key in ("data", "train", "val", "pretrained") if key in card.training}
    return described | {"name": card.name} | came


def _commit() -> str:
    """The commit of this package's source, '-dirty' where changed since; empty outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
