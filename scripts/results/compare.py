"""Train every network of configs/train within a budget, evaluate all on the same patients, and write it down.

    python -m scripts.results.compare ../shared/data/idc --minutes 60 --work runs/compare

The time that a network takes is measured first, on a few batches; then it is given as many of its config's epochs
as the budget holds, with a whole learning rate schedule, or, where not one fits, as many patches as do. A training
that takes longer all the same ends with the epoch that passes the budget. On processors their own time counts, for
each thread, so that it may be paused and other work may run beside. What is finished is kept: the same call
goes on. Then one network once more, with patches of the evaluated patients among those trained on: how far a split by
patch flatters.
"""

import argparse
import csv
import json
import logging
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.doc_sections import put_section
from scripts.results.compare_speed import speeds
from scripts.results.compare_table import Row, leak_text, table_text
from wsi_pipeline.base.errors import ConfigError, WsiError
from wsi_pipeline.inference.device import choose_device
from wsi_pipeline.learning.datasets import LabelledPatches, SplitOptions, load_side, load_split
from wsi_pipeline.learning.training.train import TrainOptions, load_train_options, train
from wsi_pipeline.models.logits import evaluate
from wsi_pipeline.models.model import Model, build_network, load_model
from wsi_pipeline.models.stain import as_the_card_wants

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
SHIPPED = "idc_default"
PATCH_PX = 50
PROBE_BATCHES = 4
# Of the evaluated patients' patches, this share is evaluated in the experiment of the two splits; the split by patch
# trains on the others.
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Allowance:
    """What a network was given of the budget."""

    epochs: int
    # Patches an epoch, where not all fit.
    limit_patches: int | None
    minutes: float


class OutOfTime(Exception):
    """The budget is spent."""


def main() -> int:
    """Run the comparison; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="labelled patches, sheets with their manifest")
    parser.add_argument("--minutes", type=float, required=True, help="budget of training, for each network")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="trainings are kept here")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--configs", type=Path, default=CONFIGS)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks alone")
    parser.add_argument(
        "--leak", default=SHIPPED, metavar="NAME", help="the network of the two splits; '' for none"
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = choose_device(args.device)

    rows, models, failures = [], {}, {}
    val = load_side(args.data, PATCH_PX, "val", SplitOptions())
    for path in sorted(args.configs.glob("*.yaml")):
        if path.stem.endswith("_context") or (args.only and path.stem not in args.only):
            continue  # what train-context takes is no network
        try:
            options = load_train_options(path)
            if options.patch_px != PATCH_PX:
                raise ConfigError(f"found patch_px {options.patch_px}, expected {PATCH_PX} as the data's")
            folder = args.work / f"{options.name}_{args.minutes:g}"
            model, allowance, history = trained(options, args.data, folder, args.minutes, device)
        except (WsiError, RuntimeError) as error:  # RuntimeError: of memory, for one
            failures[path.stem] = " ".join(str(error).split())[:200]
            logging.warning("%s: %s", path.stem, failures[path.stem])
            continue
        models[options.name] = model
        logits = kept_logits(model, val, folder / "logits.npz", device)
        rows.append(Row(options.name, model, logits, in_words(allowance, history, options, device)))
    shipped = load_model(SHIPPED)
    models["as shipped"] = shipped
    logits = kept_logits(shipped, val, args.work / "shipped_logits.npz", device)
    rows.append(
        Row(
            f"{SHIPPED}, as shipped",
            shipped,
            logits,
            f"epoch {shipped.card.training['epoch']} of its own training",
        )
    )

    text = table_text(rows, val, speeds(models, device), failures, args.minutes)
    put_section(args.out, "comparison", text)
    if args.leak and (config := args.configs / f"{args.leak}.yaml").exists():
        options = load_train_options(config)
        text = leak_text(*split_experiment(options, args.data, args.work, args.minutes, device))
        put_section(args.out, "splits", text)
    print(f"written: {args.out}")
    return 0


def trained(
    options: TrainOptions, data: Path, folder: Path, minutes: float, device: torch.device
) -> tuple[Model, Allowance, list[dict[str, Any]]]:
    """The network after at most so many minutes of training, what it was allowed, and its epochs."""
    build_network(
        options.architecture, classes=2, **options.architecture_options
    )  # or say so before anything else
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "allowance.json"
    if not plan.exists():
        plan.write_text(json.dumps(asdict(allowed(options, data, folder / "probe", minutes, device))))
    allowance = Allowance(**json.loads(plan.read_text()))
    options = replace(options, epochs=allowance.epochs, limit_patches=allowance.limit_patches)
    options = replace(options, warmup_epochs=min(options.warmup_epochs, allowance.epochs / 10))

    def stop_when_spent(history: list[dict[str, Any]]) -> None:
        if spent_s(history, device) >= minutes * 60:
            raise OutOfTime

    history = folder / "epochs.csv"
    epochs = _epochs(history) if history.exists() else []
    if len(epochs) < allowance.epochs and spent_s(epochs, device) < minutes * 60:
        try:
            train(options, data, folder, device, after_epoch=stop_when_spent)
        except OutOfTime:
            logging.info("%s: %g minutes are spent", options.name, minutes)
    return load_model(folder / f"{options.name}.safetensors"), allowance, _epochs(history)


def allowed(
    options: TrainOptions, data: Path, folder: Path, minutes: float, device: torch.device
) -> Allowance:
    """What fits into the budget, by the time that a few batches take."""
    probe = replace(options, epochs=1, limit_patches=PROBE_BATCHES * options.batch_size)
    train(probe, data, folder, device)
    [row] = _epochs(folder / "epochs.csv")
    patches = PROBE_BATCHES * options.batch_size
    slowed = row["seconds"] / spent_s([row], device)
    train_s = 1 / row["patches_per_s"] / slowed
    val_s = max(row["seconds"] / slowed - patches * train_s, 0) / patches
    train_side, val_side = load_split(data, options.patch_px, options.split)
    epoch_s = len(train_side) * train_s + len(val_side) * val_s
    logging.info("%s: an epoch takes about %.1f minutes", options.name, epoch_s / 60)
    if epoch_s <= minutes * 60:
        return Allowance(min(options.epochs, int(minutes * 60 / epoch_s)), None, minutes)
    # As many are then evaluated in training; at the end all are.
    fitting = int(minutes * 60 / (train_s + val_s))
    return Allowance(1, max(fitting, 2 * options.batch_size), minutes)


def spent_s(epochs: list[dict[str, Any]], device: torch.device) -> float:
    """Seconds that epochs took; on processors those they worked, whatever else ran beside."""
    if device.type == "cpu":
        return sum(row["processor_seconds"] for row in epochs) / torch.get_num_threads()
    return sum(row["seconds"] for row in epochs)


def in_words(
    allowance: Allowance, history: list[dict[str, Any]], options: TrainOptions, device: torch.device
) -> str:
    """What the network got, in words."""
    spent = spent_s(history, device) / 60
    done = len(history)
    took = f"{spent:.0f} min" if spent >= 10 else f"{spent:.1f} min"
    if allowance.limit_patches:
        return f"{allowance.limit_patches:,} patches once, {took}"
    of = f" of {options.epochs}" if done < options.epochs else ""
    return f"{done}{of} epochs, {took}"


def kept_logits(model: Model, side: LabelledPatches, path: Path, device: torch.device) -> NDArray[np.float32]:
    """Logits of the patches in float32, computed once for each model."""
    if path.exists():
        kept = np.load(path)
        if str(kept["sha256"]) == model.sha256 and len(kept["logits"]) == len(side):
            return np.asarray(kept["logits"])
    logits = evaluate(
        model.network.to(device),
        model.card,
        as_the_card_wants(side.pixels, side.patients, model.card),
        device,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, logits=logits, sha256=model.sha256)
    return logits


def split_experiment(
    options: TrainOptions, data: Path, work: Path, minutes: float, device: torch.device
) -> tuple[LabelledPatches, dict[str, NDArray[np.float32]], dict[str, str], str]:
    """The patches evaluated, logits of them after either split, what each training got, and of which network.

    Both trainings have as many patches and are evaluated on the very same ones.
    """
    logits, got, test = {}, {}, None
    rng = np.random.default_rng(0)
    with (data / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    evaluated = np.array([row["split"] == "val" for row in rows])
    test_rows = evaluated & (rng.random(len(rows)) < TEST_SHARE)
    others = np.flatnonzero([row["split"] in ("train", "extra") for row in rows])
    neighbours = np.flatnonzero(evaluated & ~test_rows)
    fewer_others = rng.permutation(others)[: len(others) - len(neighbours)]
    sides = {"by patient": others, "by patch": np.concatenate([neighbours, fewer_others])}
    first: Allowance | None = None
    for name, train_rows in sides.items():
        folder = work / f"split_{name.replace(' ', '_')}_{options.name}_{minutes:g}"
        write_split(data, folder / "data", rows, train_rows, np.flatnonzero(test_rows))
        if first:  # the same for both
            (folder / "allowance.json").write_text(json.dumps(asdict(first)))
        own = replace(options, split=SplitOptions(train=("train",), val=("val",)))
        model, first, history = trained(own, folder / "data", folder, minutes, device)
        test = load_side(folder / "data", options.patch_px, "val", own.split)
        logits[name] = kept_logits(model, test, folder / "logits.npz", device)
        got[name] = in_words(first, history, options, device)
    assert test is not None
    return test, logits, got, options.name


def write_split(
    data: Path,
    folder: Path,
    rows: list[dict[str, str]],
    train_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
) -> None:
    """A folder of the same sheets, whose manifest says another split.

    Patches trained on of a patient who is evaluated as well get another patient's name: training refuses such a split,
    and rightly so.
    """
    tested = set(test_rows.tolist())
    patients = {rows[i]["patient"] for i in tested}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sheets").exists():
        (folder / "sheets").symlink_to((data / "sheets").resolve())
    chosen = []
    for i in sorted(tested | set(train_rows.tolist())):
        side, leaks = ("val", "") if i in tested else ("train", " (leaked)")
        patient = rows[i]["patient"] + (leaks if rows[i]["patient"] in patients else "")
        chosen.append(rows[i] | {"split": side, "patient": patient})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)


def _epochs(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


if __name__ == "__main__":
    sys.exit(main())
