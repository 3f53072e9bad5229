"""Train a network on labelled patches, choose its best epoch on patients it has not seen, and save it."""

import csv
import logging
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from wsi_pipeline import evaluate as judging
from wsi_pipeline.data import LabelledPatches, SplitOptions, load_split
from wsi_pipeline.errors import ConfigError, RecipeError
from wsi_pipeline.model import ModelCard, Rgb, Stain, build_network, normalised, save_model
from wsi_pipeline.models.augment import AugmentOptions, augmented
from wsi_pipeline.options import Field, options, options_from_dict, options_to_dict

logger = logging.getLogger(__name__)

IDC = 1  # the label, and its place among the classes
CLASSES = ("not_idc", "idc")


@options
class TrainOptions:
    """All that decides what a training makes of its data."""

    # Name of the model and of its files.
    name: str
    # A network of the zoo and what it is built with.
    architecture: str = "residual_cnn"
    architecture_options: dict[str, Any] = Field(default_factory=dict)
    # What the patches are: pixels a side and um/px. Goes on the card; maps are made at this scale.
    patch_px: Annotated[int, Field(gt=0)] = 50
    mpp: Annotated[float, Field(gt=0)] = 4.0
    split: SplitOptions = Field(default_factory=SplitOptions)
    augment: AugmentOptions = Field(default_factory=AugmentOptions)
    epochs: Annotated[int, Field(gt=0)] = 30
    batch_size: Annotated[int, Field(gt=1)] = 128
    # Reached after the warm-up, then down to zero by a cosine.
    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    # After so many epochs the learning rate starts over, and falls to zero again: a way out of where it
    # settled. Those past the last epoch, of a shortened training say, have no effect.
    restarts: tuple[Annotated[int, Field(gt=0)], ...] = ()
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    # Outlines are coarse: no patch of a region's edge is certain.
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    # Above 0, each patch is blended with another, by shares from a beta distribution of this parameter.
    mixup: Annotated[float, Field(ge=0)] = 0.0
    # What is judged and saved is the moving average of the weights, which keeps this share a step.
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    # A patient of n patches is drawn as if of n ** (1 - balance): 0 every patch alike, 1 every patient alike.
    patient_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    # Train under bfloat16 autocast: about 1.7 times as fast on a CPU that has it.
    bf16: bool = True
    # The card allows bfloat16 if it moves no validation probability by more.
    bf16_tolerance: Annotated[float, Field(ge=0)] = 0.01
    seed: int = 0
    # Text for the card.
    data: str = ""
    licence: str = ""
    intended_use: str = ""
    limits: str = ""


@dataclass(frozen=True)
class _Run:
    """What one training works with, from its first epoch to its last."""

    options: TrainOptions
    card: ModelCard
    network: nn.Module
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    train: LabelledPatches
    val: LabelledPatches
    device: torch.device


def load_train_options(path: Path, **overrides: Any) -> TrainOptions:
    """The options of a YAML file, those of `overrides` that are not None in their place."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a training config") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: expected YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    values |= {key: value for key, value in overrides.items() if value is not None}
    return options_from_dict(TrainOptions, values, str(path))


def train(options: TrainOptions, data: Path, out: Path, device: torch.device) -> Path:
    """The weights file of the best epoch, `out`/NAME.safetensors, its card beside it.

    Beside them lie epochs.csv and last.pt, from which the same training goes on when it was stopped.
    """
    train_side, val_side = load_split(data, options.patch_px, options.split)
    run = _set_up(options, train_side, val_side, device)
    out.mkdir(parents=True, exist_ok=True)
    history = _resume(run, out / "last.pt")
    if not history:
        logger.info(
            "training '%s' on %d patches of %d patients, judged on %d of %d, on %s",
            *(options.name, len(train_side), len(set(train_side.patients))),
            *(len(val_side), len(set(val_side.patients)), device),
        )
    for epoch in range(len(history), options.epochs):
        began = time.monotonic()
        loss = train_one_epoch(run, epoch)
        logits = evaluate(run.average, run.card, val_side.pixels, device)
        card = _judged_card(run, logits, epoch)
        row = {"epoch": epoch + 1, "loss": loss, **card.metrics["val"], "seconds": time.monotonic() - began}
        history.append(row)
        logger.info(
            "epoch %(epoch)d: loss %(loss).4f, val AUROC %(auroc).4f, F1 %(f1).3f, "
            "balanced accuracy %(balanced_accuracy).3f, ECE %(ece).3f, %(seconds).0f s",
            row,
        )
        if row["auroc"] >= max(earlier["auroc"] for earlier in history):
            save_model(_weights_path(run, out), run.average.module, card)
        _write_history(out / "epochs.csv", history)
        _save_checkpoint(run, out / "last.pt", history)
    return _weights_path(run, out)


def train_one_epoch(run: _Run, epoch: int) -> float:
    """Mean loss over one pass; moves the network, its average and the optimiser on.

    All that is random follows from the seed and the epoch: a resumed training equals one never stopped.
    """
    options, device = run.options, run.device
    generator = torch.Generator().manual_seed(options.seed * 100_003 + epoch)
    torch.manual_seed(options.seed * 100_003 + epoch)  # dropout
    batches = list(_batches(run.train, options, generator))
    run.network.train()
    total = torch.zeros((), device=device)
    for step, indices in enumerate(tqdm(batches, desc=f"epoch {epoch + 1}", leave=False, disable=None)):
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(epoch + step / len(batches), options)
        patches = torch.from_numpy(run.train.pixels[indices]).to(device)  # [N, S, S, 3] uint8
        labels = torch.from_numpy(run.train.labels[indices]).long().to(device)  # [N]
        patches = augmented(patches, options.augment, generator)
        targets = F.one_hot(labels, len(CLASSES)).float()  # [N, classes]
        if options.mixup:
            patches, targets = _mixed(patches, targets, options.mixup)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            logits = run.network(normalised(patches, run.card.mean, run.card.std))  # [N, classes]
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=options.label_smoothing)
        run.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        run.optimiser.step()
        run.average.update_parameters(run.network)
        total += loss.detach()
    return float(total / len(batches))


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    card: ModelCard,
    pixels: NDArray[np.uint8],
    device: torch.device,
    bf16: bool = False,
    batch_size: int = 512,
) -> NDArray[np.float32]:
    """Logits, float32 [N, classes], of patches [N, S, S, 3]; the network is left in eval mode."""
    network.eval()
    logits = []
    for start in range(0, len(pixels), batch_size):
        patches = torch.from_numpy(pixels[start : start + batch_size]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits.append(network(normalised(patches, card.mean, card.std)).float().cpu())
    return torch.cat(logits).numpy()


def _mixed(patches: torch.Tensor, targets: torch.Tensor, mixup: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each patch and its target blended with another's of the batch (mixup; Zhang et al., ICLR 2018).

    The larger share is its own; `mixup` is both parameters of the beta distribution it is drawn from.
    """
    share = torch.distributions.Beta(mixup, mixup).sample((len(patches),)).to(patches.device)
    share = torch.maximum(share, 1 - share)
    other = torch.randperm(len(patches)).to(patches.device)
    patches = torch.lerp(patches[other], patches, share[:, None, None, None])
    return patches, torch.lerp(targets[other], targets, share[:, None])


def learning_rate(epoch: float, options: TrainOptions) -> float:
    """The learning rate at a moment, in epochs since the start: warm-up, cosine to zero, in each cycle."""
    edges = [0, *(restart for restart in options.restarts if restart < options.epochs), options.epochs]
    start = max(edge for edge in edges[:-1] if edge <= epoch)
    length = min(edge for edge in edges[1:] if edge > start) - start
    if epoch - start < options.warmup_epochs:
        return options.learning_rate * (epoch - start + 0.01) / (options.warmup_epochs + 0.01)
    done = (epoch - start - options.warmup_epochs) / max(length - options.warmup_epochs, 1e-9)
    return options.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _set_up(
    options: TrainOptions, train_side: LabelledPatches, val_side: LabelledPatches, device: torch.device
) -> _Run:
    torch.manual_seed(options.seed)
    network = build_network(options.architecture, classes=len(CLASSES), **options.architecture_options)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(network, multi_avg_fn=_averaging(options.average_decay), use_buffers=True)
    # Decay pulls on the kernels; pulling on norms and biases would only blur them.
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": kernels, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
    )
    return _Run(
        options,
        _blank_card(options, train_side, val_side),
        network,
        average,
        optimiser,
        train_side,
        val_side,
        device,
    )


def _averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """How the moving average takes in new weights; it keeps less at first, when they are far from good."""

    @torch.no_grad()
    def update(averages: list[torch.Tensor], currents: list[torch.Tensor], count: torch.Tensor) -> None:
        steps = int(count)
        keep = min(decay, (1 + steps) / (10 + steps))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - keep)
            else:
                average.copy_(current)  # counters of batches

    return update


def _blank_card(options: TrainOptions, train_side: LabelledPatches, val_side: LabelledPatches) -> ModelCard:
    """The card as far as it is known before the first epoch."""
    mean, std = _channel_statistics(train_side.pixels)
    config = options_to_dict(options)
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
        stain=_stain_of(train_side),
        training={
            "data": options.data,
            "train": _count(train_side),
            "val": _count(val_side),
            "commit": _commit(),
            "torch": torch.__version__,
            "config": config,
        },
        licence=options.licence,
        intended_use=options.intended_use,
        limits=options.limits,
    )


def _judged_card(run: _Run, logits: NDArray[np.float32], epoch: int) -> ModelCard:
    """The card of the averaged network after an epoch: calibrated, with its threshold and what it reached."""
    labels, patients = run.val.labels, run.val.patients
    calibration = judging.fit_calibration(logits, labels, IDC)
    probability = judging.calibrated(logits, calibration, IDC)
    threshold = judging.choose_threshold(probability, labels)
    in_bf16 = evaluate(run.average, run.card, run.val.pixels[::8], run.device, bf16=True)
    moved = float(np.abs(judging.calibrated(in_bf16, calibration, IDC) - probability[::8]).max())
    by_patient = judging.measures_by_patient(probability, labels, patients, threshold)
    return replace(
        run.card,
        temperature=calibration.temperature,
        log_odds_shift=calibration.log_odds_shift,
        threshold=threshold,
        bf16=moved <= run.options.bf16_tolerance,
        training=run.card.training | {"epoch": epoch + 1},
        metrics={
            "note": "epoch, calibration and threshold were chosen on these same validation patients; in "
            "'crossfitted', each patient's calibration and threshold come from others",
            "val": judging.measures(probability, labels, threshold),
            "crossfitted": judging.crossfitted(logits, labels, patients, IDC),
            "patients": judging.spread(by_patient),
            "bf16_moves_by_at_most": moved,
        },
    )


def _batches(
    side: LabelledPatches, options: TrainOptions, generator: torch.Generator
) -> Iterator[NDArray[np.int64]]:
    """Indices of each batch of an epoch; a last batch that is not full is left out."""
    _, which, counts = np.unique(side.patients, return_inverse=True, return_counts=True)
    if options.patient_balance:
        weights = torch.from_numpy(counts[which] ** -options.patient_balance)
        order = torch.multinomial(weights, len(side), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(side), generator=generator)
    size = min(options.batch_size, len(side))
    for start in range(0, len(side) - size + 1, size):
        yield order[start : start + size].numpy()


def _channel_statistics(pixels: NDArray[np.uint8]) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of R, G, B on the scale 0 to 1."""
    means, stds = [], []
    for channel in range(3):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256) / pixels[..., channel].size
        levels = np.arange(256) / 255
        mean = float(counts @ levels)
        means.append(mean)
        stds.append(math.sqrt(max(float(counts @ (levels - mean) ** 2), 1e-6)))
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def _stain_of(side: LabelledPatches) -> Stain:
    density = -np.log10((np.arange(256) + 1) / 256).astype(np.float32)
    means = np.stack([density[p].mean(axis=(0, 1), dtype=float) for p in side.pixels])  # [N, 3]
    patients = np.stack([means[side.patients == p].mean(axis=0) for p in np.unique(side.patients)])
    return Stain(
        od_mean=_rgb(means.mean(axis=0)),
        od_std=_rgb(means.std(axis=0)),
        od_patient_std=_rgb(patients.std(axis=0)),
    )


def _rgb(values: NDArray[np.floating[Any]]) -> Rgb:
    return float(values[0]), float(values[1]), float(values[2])


def _count(side: LabelledPatches) -> dict[str, int]:
    return {"patients": len(set(side.patients)), "patches": len(side), "idc": int(side.labels.sum())}


def _commit() -> str:
    """The commit of this package's source, '-dirty' where changed since; empty outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _weights_path(run: _Run, out: Path) -> Path:
    return out / f"{run.options.name}.safetensors"


def _resume(run: _Run, path: Path) -> list[dict[str, float]]:
    """The epochs done so far, their state put back into the run; empty where nothing was begun."""
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location=run.device, weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise RecipeError(f"{path}: expected a checkpoint of train-model; remove it to start anew") from error
    if state["options"] != options_to_dict(run.options):
        raise RecipeError(f"{path}: found a training with other options; give another --out, or remove it")
    run.network.load_state_dict(state["network"])
    run.average.load_state_dict(state["average"])
    run.optimiser.load_state_dict(state["optimiser"])
    logger.info("going on after epoch %d of %d", len(state["history"]), run.options.epochs)
    return list(state["history"])


def _save_checkpoint(run: _Run, path: Path, history: list[dict[str, float]]) -> None:
    beside = path.with_suffix(".partial")
    torch.save(
        {
            "options": options_to_dict(run.options),
            "network": run.network.state_dict(),
            "average": run.average.state_dict(),
            "optimiser": run.optimiser.state_dict(),
            "history": history,
        },
        beside,
    )
    beside.replace(path)


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    beside = path.with_suffix(".partial")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    beside.replace(path)
