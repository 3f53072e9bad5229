"""How fast infer-slide is, and how much memory it takes, beside a plain loop; writes docs/performance.md.

    python -m scripts.bench.benchmark --slide ../shared/data/slides/breast_40x.svs   # two cores: a quarter of an hour
    python -m scripts.bench.benchmark --slide ... --patches 2000 --loop-patches 500 --repeats 1 --no-docs     # a try
    python -m scripts.bench.benchmark --slide ... --device cuda --cores 0                   # with the GPU, on all cores

All is measured in one run, in turns, so that what else the machine does slows every row alike. Figures also go to
runs/bench/bench.json; generated slides stay in runs/bench.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS = ("torch:fp32", "torch:bf16", "openvino:fp32", "openvino:bf16", "openvino:int8")
# The network alone is timed on so many patches: its rate does not depend on how many more there are.
NETWORK_PATCHES = 10_000
LEAST_PATCHES = 2_000
SIDES = (10_000, 100_000)
WHOLE = (117_000, 55_000)


def main() -> int:
    """Measure and write; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--slide", type=Path, required=True, help="a real 40x slide, also the others' texture"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores to use, 0 for all (default: 2)")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, help="precision, or engine:precision")
    parser.add_argument(
        "--patches", type=int, default=40_000, help="of a slide at 40x (default: its first 40,000)"
    )
    parser.add_argument("--loop-patches", type=int, default=3000, help="that the loop is timed on")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md as it is")
    args = parser.parse_args()
    if args.cores:
        # Before torch counts them; processes that are started inherit it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    found = measure(args)
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "bench.json").write_text(json.dumps(found, indent=2) + "\n")

    from scripts.bench.bench_page import page
    from scripts.doc_sections import put_section

    print(page(found))
    if not args.no_docs:
        put_section(args.out, "benchmark", page(found))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it goes into bench.json."""
    import torch

    from scripts.bench.bench_cases import make_case, model_at
    from scripts.bench.bench_decoders import measure_decoders
    from scripts.bench.tiled_slide import densest_square
    from wsi_pipeline.inference.device import choose_device

    device = choose_device(args.device)
    try:
        decoders = measure_decoders(args.slide, device, args.repeats)
    except ValueError as error:
        print(f"left out, decoders of JPEG: {error}", flush=True)
        decoders = {}
    square = densest_square(args.slide)
    slides = {side: generated(args.work, side, side, square) for side in SIDES}
    whole = generated(args.work, *WHOLE, square)
    fine, coarse = model_at(0.25, args.work), model_at(4.0, args.work)
    cases = [
        make_case(f"{args.slide.name} at 40x (0.25 um/px)", args.slide, fine, args.patches),
        make_case(f"{args.slide.name} at 4 um/px", args.slide, coarse, None),
        make_case("generated slide of 100,000 x 100,000 px at 40x", slides[SIDES[-1]], fine, args.patches),
        make_case("generated slide of 117,000 x 55,000 px at 4 um/px", whole, coarse, None),
    ]
    return {
        "device": str(device),
        "repeats": args.repeats,
        "machine": machine_facts(torch.__version__),
        "cases": [measure_case(case, args, device) for case in cases],
        "memory": measure_memory(slides, args),
        "shell": measure_shell(whole, args),
        "decoders": decoders,
    }


def measure_case(case: Any, args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Patches a second of the loop, of decode alone, and of each setting, and how its map differs from the loop's."""
    import numpy as np

    from scripts.bench.bench_cases import (
        Setting,
        decode,
        end_to_end,
        looked_at,
        map_of,
        new_store,
        patches_in_memory,
        settings_of,
        without_network,
    )
    from scripts.bench.bench_gpu import busy_share
    from scripts.bench.bench_loop import corners_of, plain_loop

    settings = []
    for setting in settings_of(args.settings, case, device):
        if isinstance(setting, Setting):
            settings.append(setting)
        else:
            print(f"left out: {setting}", flush=True)
    places, corners, level = corners_of(case, args.loop_patches)
    in_memory = patches_in_memory(case, NETWORK_PATCHES)
    seconds: dict[str, list[float]] = {}
    maps: dict[str, Any] = {}
    busy: dict[str, list[float]] = {setting.name: [] for setting in settings}

    # Of a few patches one pass would be over before a clock says much.
    passes = -(-LEAST_PATCHES // case.patches)

    def timed(name: str, work: Callable[..., Any], prepare: Callable[[], tuple[Any, ...]] = tuple) -> Any:
        """Seconds of one pass, without what prepares it; gives the last one's result."""
        total = 0.0
        for _ in range(passes):
            prepared = prepare()
            start = time.perf_counter()
            result = work(*prepared)
            total += time.perf_counter() - start
        seconds.setdefault(name, []).append(total / passes)
        return result

    def timed_end_to_end(setting: Any) -> None:
        stores = []

        def prepare() -> tuple[Any, ...]:
            stores.append(new_store(case, args.work))
            return case, looked_at(case), setting, stores[-1]

        timed(f"end to end {setting.name}", end_to_end, prepare)
        maps[setting.name] = map_of(stores[-1])

    nothing = without_network(case)
    for repeat in range(args.repeats):
        print(f"{case.name}: {case.patches:,} patches, repeat {repeat + 1} of {args.repeats}", flush=True)
        loop = timed("loop", lambda: plain_loop(case, corners, level, device))
        timed("decode", decode, lambda: (case, looked_at(case), device))
        timed_end_to_end(nothing)
        for setting in settings:
            timed(f"network {setting.name}", lambda s=setting: s.classifier.scores_and_spread(in_memory))
            with busy_share(device) as samples:
                timed_end_to_end(setting)
            busy[setting.name] += samples

    def rates(name: str, patches: int) -> list[float]:
        return [patches / each for each in seconds[name]]

    def share(name: str, *parts: list[float]) -> float:
        """Of the slowest part's rate, each repeat by itself: what else the machine did then slowed them alike."""
        whole = rates(f"end to end {name}", case.patches)
        return statistics.median(a / min(b) for a, b in zip(whole, zip(*parts, strict=True), strict=True))

    threshold, decoded = case.model.card.threshold, rates("decode", case.patches)
    rows = {}
    for setting in settings:
        ours = maps[setting.name][places[:, 1], places[:, 0]]
        network = rates(f"network {setting.name}", len(in_memory))
        rows[setting.name] = {
            "end_to_end": statistics.median(rates(f"end to end {setting.name}", case.patches)),
            "network": statistics.median(network),
            "share": share(setting.name, decoded, network),
            "largest_difference": float(np.abs(ours - loop).max()),
            "across": float(((ours >= threshold) != (loop >= threshold)).mean()),
            "gpu_busy": statistics.mean(busy[setting.name]) if busy[setting.name] else None,
        }
    return {
        "name": case.name,
        "patches": case.patches,
        "loop_patches": len(places),
        "loop": statistics.median(rates("loop", len(places))),
        "decode": statistics.median(decoded),
        "without_network": statistics.median(rates(f"end to end {nothing.name}", case.patches)),
        "settings": rows,
        "seconds": seconds,
    }


def measure_memory(slides: dict[int, Path], args: argparse.Namespace) -> dict[str, Any]:
    """Peaks by what is classified and side of the slide; all of a large slide at 40x without a network only."""
    from scripts.bench.bench_memory import measure_peak

    found: dict[str, Any] = {}
    for scale, mpp, patches, network in (
        ("4 um/px, all patches", 4.0, None, True),
        ("40x, the first patches", 0.25, args.patches, True),
        ("40x, all patches, no network", 0.25, None, False),
    ):
        for side, slide in slides.items():
            peak = measure_peak(slide, mpp, patches, args.device, args.work, network)
            print(f"memory, {scale}, {side:,}: {peak}", flush=True)
            row = {"model_mb": peak.model_mb, "peak_mb": peak.peak_mb, "beyond_mb": peak.beyond_mb}
            found.setdefault(scale, {})[f"{side:,}"] = row
    return found


def measure_shell(slide: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the command infer-slide on a whole slide, from the shell, as a user starts it."""
    out, seconds = args.work / "maps", []
    command = [sys.executable, "-m", "wsi_pipeline.cli.infer_slide", str(slide), "--out", str(out)]
    for _ in range(args.repeats):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        subprocess.run([*command, "--device", args.device], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    summary = json.loads((out / slide.stem / "summary.json").read_text())
    return {
        "slide": slide.name,
        "seconds": statistics.median(seconds),
        "patches": summary["counts"]["patches"],
        "stages": summary["seconds"],
    }


def generated(work: Path, width: int, height: int, square: Any) -> Path:
    """The generated slide of that size, made by an earlier run or now."""
    from scripts.bench.tiled_slide import write_tiled_slide

    path = work / f"generated_{width}_{height}.tiff"
    if not path.exists():
        write_tiled_slide(path, width, height, square)
    return path


def machine_facts(torch_version: str) -> dict[str, Any]:
    """What the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout
    except OSError:  # no git here
        commit = ""
    return {
        "processor": names[0] if names and names[0] else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch_version,
        "commit": commit.strip() or "unknown",
    }


if __name__ == "__main__":
    sys.exit(main())
