"""How fast training is: the loader alone, the step alone, and both together, in patches a second.

    python -m scripts.bench.measure_training                                     # on the GPU, where there is one
    python -m scripts.bench.measure_training --device cpu --quick --json training.json    # that it runs: half a minute

The loader draws views, gathers patches into page-locked memory and copies them to the device; the step is
augmentation, forward and backward pass, optimiser and moving average of one batch that lies there already. Patches are
noise in memory: decoding is measured by measure_loading. On a GPU, `waits` counts what made the host wait for it
in ten steps (torch's sync debug mode; 0 is right), `memory_gb` is the highest that torch held there.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.bench.bench_gpu import busy_share
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.training.batches import Batch, make_batches
from wsi_pipeline.learning.training.device import training_device
from wsi_pipeline.learning.training.distributed import ProcessGroup
from wsi_pipeline.learning.training.options import load_train_options
from wsi_pipeline.learning.training.train import Run, set_up, take_step
from wsi_pipeline.models.device_feed import copies_to, feed

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
WARM_UP, WATCHED = 10, 10  # steps


@dataclass(frozen=True)
class Case:
    """A network and the batches that it is given."""

    config: str
    patch_px: int
    batch_size: int


CASES = (
    Case("idc_default", 50, 128),
    Case("idc_default", 50, 1024),
    Case("idc_default", 50, 4096),
    Case("resnet18", 224, 256),
)
QUICK = (Case("idc_default", 50, 32), Case("resnet18", 64, 8))


@dataclass(frozen=True)
class Row:
    """What was measured of a case; speeds in patches a second."""

    config: str
    patch_px: int
    batch_size: int
    loader: float
    step: float
    both: float
    # Of what the slower of loader and step does alone, the share that both together reach.
    share_of_slower: float
    # Mean busy share of the GPU while both ran, 0 to 1; None without one.
    busy: float | None
    # None without a GPU.
    waits: int | None
    memory_gb: float | None


def main() -> int:
    """Measure, print a table, write JSON where asked; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:1")
    parser.add_argument("--quick", action="store_true", help="small batches, half a second each")
    parser.add_argument("--seconds", type=float, help="of each of the three; default 5, or 0.5 if quick")
    parser.add_argument("--json", type=Path, help="write what was measured there")
    args = parser.parse_args()
    device = training_device(args.device)
    seconds = args.seconds or (0.5 if args.quick else 5.0)
    rows = [measure(case, device, seconds) for case in (QUICK if args.quick else CASES)]
    print(f"{device_name(device)}, torch {torch.__version__}, patches/s")
    print(table(rows))
    if args.json:
        found = {
            "device": device_name(device),
            "torch": torch.__version__,
            "seconds": seconds,
            "quick": args.quick,
            "rows": [asdict(row) for row in rows],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def measure(case: Case, device: torch.device, seconds: float) -> Row:
    """The three speeds of a case, each over at least so many seconds."""
    run = make_run(case, device)
    batches = feed(host_batches(run, pinned=device.type == "cuda"), copies_to(device))
    first = next(batches)
    warm_up = WARM_UP if device.type == "cuda" else 1
    for batch in islice(batches, warm_up):
        take_step(run, batch, 1e-4)
    waits = count_waits(run, batches) if device.type == "cuda" else None
    size = case.batch_size
    loader = size * per_second(lambda: next(batches), device, seconds)
    step = size * per_second(lambda: take_step(run, first, 1e-4), device, seconds)
    with busy_share(device) as busy:
        both = size * per_second(lambda: take_step(run, next(batches), 1e-4), device, seconds)
    batches.close()  # type: ignore[attr-defined]
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return Row(
        **asdict(case),
        loader=loader,
        step=step,
        both=both,
        share_of_slower=both / min(loader, step),
        busy=float(np.mean(busy)) if busy else None,
        waits=waits,
        memory_gb=memory,
    )


def make_run(case: Case, device: torch.device) -> Run:
    """A training of noise, set up as train-model does it."""
    options = load_train_options(
        CONFIGS / f"{case.config}.yaml", patch_px=case.patch_px, batch_size=case.batch_size
    )
    options = replace(options, normalisation="imagenet")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return set_up(
        options, noise(4 * case.batch_size, case.patch_px), noise(8, case.patch_px), device, ProcessGroup()
    )


def noise(count: int, patch_px: int) -> LabelledPatches:
    """Patches of noise, of two patients who have both labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, patch_px, patch_px, 3), np.uint8)
    numbers = np.arange(count)
    return LabelledPatches(pixels, (numbers % 2).astype(np.uint8), np.array(["a", "b"])[numbers // 2 % 2])


def host_batches(run: Run, pinned: bool) -> Iterator[Batch]:
    """Batches without end."""
    generator = torch.Generator().manual_seed(0)

    def rows() -> Iterator[NDArray[np.int64]]:
        while True:
            order = torch.randperm(len(run.train), generator=generator).numpy()
            for start in range(0, len(order), run.options.batch_size):
                yield order[start : start + run.options.batch_size]

    return make_batches(run.train, rows(), run.options, generator, pinned)


def per_second(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """How often a second `work` is done, once it is done on the device as well."""
    finish(device)
    began, times = time.perf_counter(), 0
    while True:
        work()
        times += 1
        # Not asked at each: the host would wait for the device.
        if times % 10 == 0 or device.type == "cpu":
            finish(device)
            if (spent := time.perf_counter() - began) >= seconds:
                return times / spent


def count_waits(run: Run, batches: Iterator[Batch]) -> int:
    """How often the host waited for the GPU in some steps."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for batch in islice(batches, WATCHED):
                take_step(run, batch, 1e-4)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() or "cpu"


def table(rows: list[Row]) -> str:
    """The rows in columns."""
    names = list(asdict(rows[0]))
    lines = [names] + [[shown(value) for value in asdict(row).values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines
    )


def shown(value: object) -> str:
    """A number as a person reads it; a dash for what there is not."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
