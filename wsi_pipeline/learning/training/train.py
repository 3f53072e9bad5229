"""Train a network on labelled patches, choose its best epoch on patients it has not seen, and save it."""

import copy
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from wsi_pipeline.base.errors import ConfigError, DataError, ModelError, TrainingError
from wsi_pipeline.base.files import clear_leftovers_of
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.datasets import LabelledPatches, load_split
from wsi_pipeline.learning.datasets.cache import cache_folder
from wsi_pipeline.learning.datasets.scale import check_scale
from wsi_pipeline.learning.datasets.sharing import Readers, shared_zeros
from wsi_pipeline.learning.datasets.slide_epochs import (
    batches_of,
    in_memory,
    limited,
    plan_epoch,
    sample_of,
    with_normalised_stain,
)
from wsi_pipeline.learning.datasets.tiled_slides import SlidePatches, split_slides
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.training.augment import augmented
from wsi_pipeline.learning.training.batches import Batch, batches_from_slides, blended, make_batches
from wsi_pipeline.learning.training.card import (
    BF16_STEP,
    CLASSES,
    blank_card,
    count,
    evaluated_card,
    mean_loss,
    stain_of,
)
from wsi_pipeline.learning.training.checkpoint import load_checkpoint, save_checkpoint
from wsi_pipeline.learning.training.coarse_labels import mean_of_trusted, without_doubted
from wsi_pipeline.learning.training.distillation import load_teachers, teachers_answer
from wsi_pipeline.learning.training.distributed import ProcessGroup
from wsi_pipeline.learning.training.history import HistoryFiles, Row, scores
from wsi_pipeline.learning.training.optimiser import (
    MovingAverage,
    epochs_since_best,
    half_precision,
    learning_rate,
    loss_scaler,
    make_optimiser,
    resume_optimiser,
)
from wsi_pipeline.learning.training.options import TrainOptions as TrainOptions
from wsi_pipeline.learning.training.options import load_train_options as load_train_options
from wsi_pipeline.learning.training.pretrained import load_average, pretrained_files
from wsi_pipeline.learning.training.sampling import class_weights, draw_weights, epoch_batches
from wsi_pipeline.models.architectures.slide_condition import LEAST_PATCHES, SlideConditioned
from wsi_pipeline.models.card import ModelCard, Stain
from wsi_pipeline.models.cost import Cost, network_cost
from wsi_pipeline.models.device_feed import copies_to, feed
from wsi_pipeline.models.logits import evaluate, logits_by_slide, slide_heads
from wsi_pipeline.models.model import Model, build_network, normalised, save_model
from wsi_pipeline.models.stain import normalise_stain_by_patient

log = logging.getLogger(__name__)

T = TypeVar("T")

SINGLE_PROCESS = ProcessGroup()
# Of each training slide so many patches tell what training slides look like.
PATCHES_A_TRAINING_SLIDE = 64


@dataclass(frozen=True)
class Run:
    """What one training works with, from its first epoch to its last."""

    options: TrainOptions
    card: ModelCard
    network: nn.Module
    # The network, as several processes train it together.
    learner: nn.Module
    average: MovingAverage
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    # float32 [classes], what each weighs in the loss; None: all the same.
    weights: torch.Tensor | None
    train: LabelledPatches | SlidePatches
    val: LabelledPatches
    device: torch.device
    group: ProcessGroup
    # What autocast computes in where the options want half precision.
    half: torch.dtype = torch.bfloat16
    teachers: tuple[Model, ...] = ()


def train(
    options: TrainOptions,
    data: Path,
    out: Path,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
    tensorboard: bool = False,
    after_epoch: Callable[[list[Row]], None] | None = None,
) -> Path:
    """The weights file of the best epoch, `out`/NAME.safetensors, its card beside it.

    Beside them lie epochs.csv, curves.png and last.pt, from which the same training goes on when it was
    stopped. `after_epoch` is called with all epochs so far; what it raises ends the training.
    """
    patches, held_out = _load(options, data, group.readers)
    _check_slides_heard(options, patches)
    run = set_up(options, patches, held_out, device, group)
    out.mkdir(parents=True, exist_ok=True)
    weights_path = out / f"{options.name}.safetensors"
    if group.is_first:
        written = ("last.pt", "epochs.csv", "curves.png", weights_path.name, f"{options.name}.json")
        clear_leftovers_of(*(out / name for name in written))
    history = _resume(run, out / "last.pt")
    files = (
        HistoryFiles(out, options.name, options.best_by, len(history), tensorboard)
        if group.is_first
        else None
    )
    while not (ending := _ending(options, history)):
        row, card, network = _one_epoch(run, history)
        history.append(row)
        reached = scores(history, options.best_by)
        if files:
            if network and card and reached[-1] == max(reached):
                save_model(weights_path, network, card)
            files.write(history, last=_ending(options, history) is not None)
            _save_checkpoint(run, out / "last.pt", history)
        if after_epoch:
            after_epoch(history)
    log.info(ending)
    return weights_path


def _cost(network: nn.Module, options: TrainOptions) -> Cost:
    """What a patch costs; the first that the network sees. Raises ModelError where it takes none of that size."""
    try:
        return network_cost(network, options.patch_px)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"architecture '{options.architecture}' takes no patches of {options.patch_px} px: "
            f"{' '.join(str(error).split())[:200]}; set architecture_options.input_px to the side that it was made for"
        ) from error


def _check_slides_heard(options: TrainOptions, patches: LabelledPatches | SlidePatches) -> None:
    """Raises DataError where a network would hear of fewer than two training slides that tell anything."""
    if not options.architecture_options.get("slide_condition"):
        return
    _, counts = np.unique(patches.patients, return_counts=True)
    telling = int((counts >= LEAST_PATCHES).sum())
    if telling < 2:
        raise DataError(
            f"found {counted(telling, patches.by)} with {LEAST_PATCHES} training patches or more, expected two at the "
            "least: a network with 'slide_condition' learns how far slides lie from one another; add slides or "
            "patches, or set val_share lower or limit_patches higher"
        )


def _load(
    options: TrainOptions, data: Path, readers: Readers
) -> tuple[LabelledPatches | SlidePatches, LabelledPatches]:
    """The patches to train on, and those to evaluate on."""
    count, seed = options.limit_patches, options.seed
    if options.patches_from == "files":
        train, val = load_split(data, options.patch_px, options.split, readers=readers, mpp=options.mpp)
        if options.doubted:
            train = without_doubted(train, Path(options.doubted))
        return limited(train, count, seed), limited(val, count, seed)
    slides, held_out = split_slides(data, options.split, options.reading)
    check_scale(slides.scale, data, options.patch_px, options.mpp, squeeze=False, whose="config")
    most = min(count or options.reading.val_patches, options.reading.val_patches)
    if len(held_out) > most:
        log.info("evaluated on %d of %s of the slides kept for it", most, counted(len(held_out), "patch"))
    return limited(slides, count, seed), in_memory(limited(held_out, most, seed), readers)


def _one_epoch(run: Run, history: list[Row]) -> tuple[Row, ModelCard | None, nn.Module | None]:
    """Train for one epoch and evaluate the network: its row of the history, its card, and itself.

    Where the epoch is not one to be evaluated after, the row has no validation measures, and there is nothing else.
    """
    epoch, options, val = len(history), run.options, run.val
    began, worked = time.monotonic(), time.process_time()
    loss, rate, patches = train_one_epoch(run, epoch, scores(history, options.best_by))
    trained = time.monotonic()
    if not math.isfinite(loss):
        raise TrainingError(
            f"epoch {epoch + 1}: the loss is {loss}: the training diverged; lower learning_rate in the config "
            "and start again in another --out"
        )
    run.group.settle(run.network, run.average.module)
    times = {
        "learning_rate": rate,
        "patches_per_s": patches / max(trained - began, 1e-9),
    }
    if (epoch + 1) % options.evaluate_every and epoch + 1 < options.epochs:
        log.info("epoch %d: loss %.4f, %.0f patches/s", epoch + 1, loss, times["patches_per_s"])
        none = dict.fromkeys(("val_loss", *metrics.MEASURES), math.nan)
        spent = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time() - worked}
        return {"epoch": epoch + 1, "loss": loss, **none, **times, **spent}, None, None
    network = finished_network(run)
    logits, in_bf16 = _evaluated(run, network)
    card = evaluated_card(run.card, logits, in_bf16, val, options, epoch)
    row: Row = {
        "epoch": epoch + 1,
        "loss": loss,
        "val_loss": mean_loss(logits, val.labels),
        **card.metrics["val"],
        **times,
        "seconds": time.monotonic() - began,
        "processor_seconds": time.process_time() - worked,
    }
    log.info(
        "epoch %(epoch)d: loss %(loss).4f, val AUROC %(auroc).4f, F1 %(f1).3f, "
        "balanced accuracy %(balanced_accuracy).3f, ECE %(ece).3f, %(patches_per_s).0f patches/s, %(seconds).0f s",
        row,
    )
    return row, card, network


def train_one_epoch(run: Run, epoch: int, reached: list[float]) -> tuple[float, float, int]:
    """Mean loss, last learning rate and patches of one pass; moves the network, its average and the optimiser on.

    `reached` are the scores of the epochs before. All that is random follows from the seed, the epoch and the
    rank: a resumed training equals one never stopped.
    """
    options, device, group = run.options, run.device, run.group
    seed = options.seed * 100_003 + epoch
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed + group.rank * 10_007)  # dropout, mixup
    steps, patches, made = _batches_of(run, epoch, generator)
    run.network.train()
    copies = copies_to(device)
    total = torch.zeros((), device=device)
    # Before the first passes are done a network knows nothing to doubt a label by.
    trusted = options.trusted if epoch >= options.warmup_epochs else 1.0
    for step, batch in enumerate(feed(made, copies)):
        rate = learning_rate(epoch + step / steps, options, reached)
        total += take_step(run, batch, rate, trusted)
    # Here, and nowhere before, the host waits for the device.
    return float(group.mean(total / steps)), rate, patches


def _batches_of(run: Run, epoch: int, generator: torch.Generator) -> tuple[int, int, Iterator[Batch]]:
    """How many steps an epoch has, of how many patches in all processes, and this one's batches."""
    options, group, train, pinned = run.options, run.group, run.train, run.device.type == "cuda"
    if isinstance(train, SlidePatches):
        share, seed = min(options.batch_size, len(train)) // group.count, (options.seed, epoch)
        plan = plan_epoch(train, seed, share, draw_weights(train, options), group.rank, group.count)
        if not epoch and plan.waiting:
            waiting = plan.waiting / len(train)
            log.info(
                "%.0f %% of the patches lie between what is read at once, others each epoch", 100 * waiting
            )
        generator.manual_seed(options.seed * 100_003 + epoch + group.rank * 10_007)
        read = batches_of(train, plan, share, seed, group.readers, group.rank)
        made = batches_from_slides(
            train, _with_progress(read, plan.steps, share, epoch, group), options, generator
        )
        return plan.steps, plan.steps * share * group.count, made
    batches = list(epoch_batches(train, options, generator))  # the same in all processes
    if group.rank:
        generator.manual_seed(options.seed * 100_003 + epoch + group.rank * 10_007)
    patches = sum(map(len, batches))
    rows = (group.share(batch) for batch in batches)
    shown = _with_progress(rows, len(batches), patches // max(len(batches), 1), epoch, group)
    return len(batches), patches, make_batches(train, shown, options, generator, pinned)


def take_step(run: Run, batch: Batch, rate: float, trusted: float = 1.0) -> torch.Tensor:
    """The loss of a batch, on the device, after one step of that learning rate; nothing is read from the device.

    Of the batch the `trusted` share is learned, those of the smallest losses.
    """
    options, device = run.options, run.device
    for parameters in run.optimiser.param_groups:
        parameters["lr"] = rate
    patches = augmented(batch.patches, batch.views)  # [N, S, S, 3]
    targets = _targets(run, patches, batch)  # [N, classes]
    if batch.blend:
        patches, targets = blended(patches, targets, batch.blend)
    with torch.autocast(device.type, run.half, enabled=options.bf16):
        images = normalised(patches, run.card.mean, run.card.std)
        conditioned = isinstance(run.network, SlideConditioned)
        logits = run.learner(images, batch.slides) if conditioned else run.learner(images)  # [N, classes]
    entropy = partial(F.cross_entropy, weight=run.weights, label_smoothing=options.label_smoothing)
    if trusted < 1:
        loss = mean_of_trusted(entropy(logits.float(), targets, reduction="none"), trusted)
    else:
        loss = entropy(logits.float(), targets)
    run.optimiser.zero_grad()
    run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    run.scaler.step(run.optimiser)
    run.scaler.update()
    run.average.update()
    return loss.detach()


def _targets(run: Run, patches: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What the network should say, shares of the classes [N, classes], of a batch's augmented patches.

    With teachers: their calibrated answers to the very same view, mixed with the label (a consistent
    teacher; Beyer et al., Knowledge distillation: a good teacher is patient and consistent, CVPR 2022).
    """
    if not run.teachers:
        return batch.targets
    with torch.inference_mode(), torch.autocast(patches.device.type, run.half, enabled=run.options.bf16):
        idc = teachers_answer(run.teachers, patches, run.options.teacher_views, batch.slides)
    answers = torch.stack([1 - idc, idc], dim=1)  # [N, classes]: IDC is the last of them
    return torch.lerp(batch.targets, answers, run.options.teacher_share)


def finished_network(run: Run) -> nn.Module:
    """The averaged network as it is evaluated and saved; one that hears of its slide knows the training slides."""
    network = run.average.module
    if not isinstance(network, SlideConditioned):
        return network
    network, train = copy.deepcopy(network), run.train
    assert isinstance(train, LabelledPatches)  # such a network is trained by slide, of patches in memory
    rows = rows_to_know(train.patients)
    some = train.pixels[np.concatenate(rows)]
    features = _in_shares(run, network, some, features=True)
    parts = np.split(features, np.cumsum([len(part) for part in rows])[:-1])
    means = torch.from_numpy(np.stack([part.mean(axis=0) for part in parts if len(part) >= LEAST_PATCHES]))
    network.know_slides(means.to(run.device))
    return network


def rows_to_know(patients: NDArray[np.str_]) -> list[NDArray[np.int64]]:
    """Of each training patient the rows by which a network knows it: spread evenly over all of `patients` [N]'s."""
    found = []
    for patient in np.unique(patients).tolist():
        rows = np.flatnonzero(patients == patient)
        even = np.linspace(0, len(rows) - 1, min(PATCHES_A_TRAINING_SLIDE, len(rows))).round().astype(int)
        found.append(rows[even])
    return found


def _evaluated(run: Run, network: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of the validation patches, and of every BF16_STEP-th of them in bfloat16."""
    val, few = run.val, slice(None, None, BF16_STEP)
    if not isinstance(network, SlideConditioned):
        return _in_shares(run, network, val.pixels), _in_shares(run, network, val.pixels[few], bf16=True)
    features = _in_shares(run, network, val.pixels, features=True)
    in_bf16 = _in_shares(run, network, val.pixels[few], bf16=True, features=True)
    heads = slide_heads(network, features, val.patients)
    heads_of_few = {name: heads[name] for name in np.unique(val.patients[few]).tolist()}
    return (
        logits_by_slide(features, val.patients, heads),
        logits_by_slide(in_bf16, val.patients[few], heads_of_few),
    )


def _in_shares(
    run: Run, network: nn.Module, pixels: NDArray[np.uint8], bf16: bool = False, features: bool = False
) -> NDArray[np.float32]:
    """As `evaluate`, each process doing its share."""
    mine = run.group.share(np.arange(len(pixels)))
    part = pixels if run.group.count == 1 else pixels[mine]
    values = evaluate(network, run.card, part, run.device, bf16, features=features)
    return run.group.gather(values, len(pixels))


def set_up(
    options: TrainOptions,
    train_side: LabelledPatches | SlidePatches,
    val_side: LabelledPatches,
    device: torch.device,
    group: ProcessGroup,
) -> Run:
    """All that a training of these patches begins with. Raises ConfigError, ModelError where it cannot."""
    group.check_batch(min(options.batch_size, len(train_side)))
    sample = None
    if isinstance(train_side, SlidePatches):
        sample = in_memory(sample_of(train_side, options.seed), group.readers)
        stain = stain_of(sample, group.readers, options.stain_method)
        train_side = with_normalised_stain(
            train_side, sample, stain, options.stain_normalisation, options.stain_method
        )
        sample = _normalise_stain(sample, stain, options, group.readers)
    else:
        stain = stain_of(train_side, group.readers, options.stain_method)
        train_side = _normalise_stain(train_side, stain, options, group.readers)
    val_side = _normalise_stain(val_side, stain, options, group.readers)
    torch.manual_seed(options.seed)
    network = build_network(options.architecture, classes=len(CLASSES), **options.architecture_options)
    if files := pretrained_files(options.pretrained):
        with_head = load_average(network, options.architecture, files)
        names = " and ".join(map(str, files))
        log.info("starting from %s%s", names, "" if with_head else ", with a new last layer")
    cost = _cost(network, options)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    log.info(
        "training '%s' (%s, %s parameters, %.1f MFLOP a patch) on %s of %s, evaluated on %d of %d, on %s",
        *(options.name, options.architecture, f"{cost.parameters:,}", cost.mflop),
        *(counted(len(train_side), "patch"), counted(len(set(train_side.patients)), "patient")),
        *(len(val_side), len(set(val_side.patients))),
        device if group.count == 1 else f"{group.count} x {device.type}",
    )
    if impossible := metrics.no_crossfit(val_side.labels, val_side.patients, val_side.by):
        log.warning(
            "nothing will be cross-fitted: %s; how far calibration and threshold flatter stays unknown",
            impossible,
        )
    weighted = options.class_balance == "weights"
    half = half_precision(device)
    average = MovingAverage(
        network, options.average_decay
    )  # before what several processes hang on the weights
    return Run(
        options=options,
        card=blank_card(options, train_side, val_side, cost, stain, group.readers, sample),
        network=network,
        learner=group.wrap(network),
        average=average,
        optimiser=make_optimiser(network, options),
        scaler=loss_scaler(device, options),
        weights=class_weights(train_side.labels, len(CLASSES)).to(device) if weighted else None,
        train=train_side,
        val=val_side,
        device=device,
        group=group,
        half=half,
        teachers=load_teachers(options, device, half),
    )


def _normalise_stain(
    side: LabelledPatches, stain: Stain, options: TrainOptions, readers: Readers
) -> LabelledPatches:
    """The side with each patient's stain brought towards the training mean, as far as the options say."""
    strength = options.stain_normalisation
    if not strength:
        return side
    if side.by == "image":
        raise ConfigError(
            f"stain_normalisation {strength:g}: the data names no patients or slides whose stain could be "
            "measured; set it to 0, or find patients with split.patient_pattern"
        )
    pixels = shared_zeros(side.pixels.shape, cache_folder(), readers)
    for patient in np.unique(side.patients)[readers.rank :: readers.count]:
        rows = np.flatnonzero(side.patients == patient)
        pixels[rows] = normalise_stain_by_patient(
            side.pixels[rows], side.patients[rows], stain, strength, options.stain_method
        )
    readers.all_say(None)
    return replace(side, pixels=pixels)


def _ending(options: TrainOptions, history: list[Row]) -> str | None:
    """Why the training is over after these epochs; None while it is not."""
    waited = epochs_since_best(scores(history, options.best_by))
    if options.early_stopping and waited >= options.early_stopping:
        return (
            f"stopped after epoch {len(history)}: no better {options.best_by} for {counted(waited, 'epoch')}"
        )
    if len(history) >= options.epochs:
        return f"done, {counted(len(history), 'epoch')}"
    return None


def _with_progress(
    batches: Iterator[T], steps: int, size: int, epoch: int, group: ProcessGroup
) -> Iterator[T]:
    """The batches, of about `size` patches each, with a bar of patches and patches a second on a terminal."""
    bar = tqdm(
        total=steps * size,
        desc=f"epoch {epoch + 1}",
        unit=" patches",
        leave=False,
        disable=None if group.is_first else True,
    )
    with bar:
        for batch in batches:
            yield batch
            bar.update(size)


def _recipe(run: Run) -> dict[str, Any]:
    return {
        "options": options_to_dict(run.options),
        "data": {"train": count(run.train), "val": count(run.val)},
        "labels": {"train": _digest(run.train), "val": _digest(run.val)},
    }


def _digest(side: LabelledPatches | SlidePatches) -> str:
    """What changes when a patch has another label or is another patient's, though all counts stay."""
    where = (side.names,) if isinstance(side, LabelledPatches) else (side.slide, side.places)
    digest = hashlib.sha256()
    for values in (side.labels, side.patients, *where):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def _resume(run: Run, path: Path) -> list[Row]:
    """The epochs done so far, their state put back into the run; empty where nothing was begun."""
    # On the CPU first: the count of steps stays there for optimisers that read it at each step.
    state = load_checkpoint(path, _recipe(run), torch.device("cpu"))
    if state is None:
        return []
    run.network.load_state_dict(state["network"])
    run.average.load_state_dict(state["average"])
    resume_optimiser(run.optimiser, state["optimiser"])
    run.scaler.load_state_dict(state["scaler"])
    log.info("going on after epoch %d of %d", len(state["history"]), run.options.epochs)
    return list(state["history"])


def _save_checkpoint(run: Run, path: Path, history: list[Row]) -> None:
    state = {
        "network": run.network.state_dict(),
        "average": run.average.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "scaler": run.scaler.state_dict(),
        "history": history,
    }
    save_checkpoint(path, _recipe(run), state)
