"""Everything that a machine with a GPU is to be asked, in one run of some minutes; what `scripts/bench/gpu.sh` starts.

    python -m scripts.bench.measure_gpu --slide breast_40x.svs --device cuda --out OUT [--docs docs/performance.md]
    python -m scripts.bench.measure_gpu --slide breast_40x.svs --device cpu --quick --out runs/gpu    # a proof

Sections come in the order of their weight, each is written to OUT/gpu.json, and as a page to OUT/gpu.md, once it is
there; one that fails, or for which no time is left, is named there. Ends with 1 where one failed.
"""

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench.gpu_commands import measure_training, measure_workers, run_tests
from scripts.bench.gpu_inputs import QUICK_SIDE, SMALLER, WHOLE, slide_of_size, untrained
from scripts.bench.gpu_page import page

BATCHES = (512, 1024, 2048, 4096, 8192)
THREADS = (1, 2, 4, 8, 16)

Found = dict[str, Any]


class TimeIsUpError(BaseException):
    """The run has to end: no section, and nothing that a section calls, takes it for a failure of its own."""


def main() -> int:
    """The exit code: 1 if a section failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--slide", type=Path, required=True, help="a real 40x slide, whose tissue others repeat"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="for slides and maps, gigabytes; default: --out")
    parser.add_argument("--docs", type=Path, help="the page whose section 'gpu' is written")
    parser.add_argument("--quick", action="store_true", help="as little of everything as shows that it runs")
    parser.add_argument("--seconds", type=float, default=500, help="begin no section later than this")
    parser.add_argument(
        "--limit", type=float, default=530, help="leave what is not done after so many seconds"
    )
    parser.add_argument(
        "--only", nargs="*", choices=list(SECTIONS), metavar="SECTION", help="these sections, in this order"
    )
    args = parser.parse_args()
    if args.docs and (args.quick or args.device == "cpu"):
        parser.error(
            f"--docs {args.docs}: found --quick or --device cpu, which prove that it runs; expected a whole run on a "
            "GPU; leave --docs out: the same page is written to OUT/gpu.md"
        )
    args.work = args.work or args.out
    for folder in (args.out, args.work):
        folder.mkdir(parents=True, exist_ok=True)
    found = run_sections(args)
    if args.docs and "cores" in found["machine"]:
        from scripts.doc_sections import put_section

        put_section(args.docs, "gpu", page(found))
    return int(any("failed" in section for section in found.values()))


def run_sections(args: argparse.Namespace) -> Found:
    """What each section found, or why it found nothing; the machine is always one of them."""
    chosen = dict.fromkeys(["machine", *(args.only or SECTIONS)])
    found: Found = {
        name: {"left out": "no time was left" if name in chosen else "not asked for"} for name in SECTIONS
    }
    began, before = time.monotonic(), signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, args.limit)
    try:
        for name in chosen:
            at = time.monotonic() - began
            if at > args.seconds:
                break
            print(f"[{at:6.1f} s] {name}", flush=True)
            try:
                found[name] = SECTIONS[name](args)
            except Exception:  # whatever a section meets, the others are still worth their time
                found[name] = {"failed": traceback.format_exc()[-3000:]}
            found[name]["seconds"] = round(time.monotonic() - began - at, 1)
            print(json.dumps(found[name], default=str)[:4000], flush=True)
            _keep(args, found)
    except TimeIsUpError:
        print(f"left after {args.limit:.0f} s", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    _keep(args, found)
    return found


def _keep(args: argparse.Namespace, found: Found) -> None:
    (args.out / "gpu.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    if "cores" in found["machine"]:
        (args.out / "gpu.md").write_text(page(found) + "\n")


def _end(*_: object) -> None:
    raise TimeIsUpError


def measure_machine(args: argparse.Namespace) -> Found:
    """What the figures belong to."""
    import torch

    from scripts.bench.benchmark import machine_facts
    from wsi_pipeline.slides.readers.jpeg_tiles import is_built

    found = machine_facts(torch.__version__) | {
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
        "jpeg tiles in C": is_built(),
        "quick": args.quick,
    }
    if (packed := Path("COMMIT")).exists():  # pack_wheels.py's
        found["commit"] = packed.read_text().strip()
    if args.device != "cpu":
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "capability": list(torch.cuda.get_device_capability()),
            "gpu_memory_gb": round(torch.cuda.mem_get_info()[1] / 1e9, 1),
        }
    return found


def measure_network(args: argparse.Namespace) -> Found:
    """Patches a second of the network alone, from pixels on the device: by precision and batch."""
    from wsi_pipeline.inference.engines.cuda_engine import batch_size_of
    from wsi_pipeline.models.model import load_model

    found: Found = {}
    for precision in _precisions(args):
        for batch in (32,) if args.quick else (4096,) if precision == "fp32" else BATCHES:
            row = found.setdefault(f"50 px, {precision}", {})
            try:
                row[batch] = _rate_of(_engine(args, load_model("idc_default"), precision, batch), 0.3)
            except ValueError as error:  # the engine does not trust it
                row[batch] = f"refused: {error}"
    resnet = untrained("resnet50", {}, 224, args.work)
    for precision in _precisions(args)[:1]:
        for batch in (2,) if args.quick else (128, batch_size_of(8200), 512):
            engine = _engine(args, resnet, precision, batch)
            found.setdefault(f"224 px ResNet-50, {precision}", {})[batch] = _rate_of(engine, 0.5)
    return found


def measure_lineup(args: argparse.Namespace) -> Found:
    """Patches a second of each network of configs/train, untrained, in the first precision that the engine trusts."""
    from wsi_pipeline.inference.engines.cuda_engine import batch_size_of
    from wsi_pipeline.learning.training.train import load_train_options
    from wsi_pipeline.models.cost import network_cost
    from wsi_pipeline.models.model import build_network

    found: Found = {}
    configs = sorted(Path("configs/train").glob("*.yaml"))
    for path in configs[:2] if args.quick else configs:
        options = load_train_options(path)
        mflop = network_cost(build_network(options.architecture, **options.architecture_options), 50).mflop
        model = untrained(options.architecture, options.architecture_options, options.patch_px, args.work)
        for precision in _precisions(args):
            try:
                engine = _engine(args, model, precision, 4 if args.quick else batch_size_of(mflop))
            except ValueError:  # the engine does not trust it
                continue
            found[path.stem] = {
                "per_s": _rate_of(engine, 0.3),
                "precision": precision,
                "batch": engine.batch_size,
            }
            break
    return found


def measure_end_to_end(args: argparse.Namespace) -> Found:
    """The classify stage on a whole slide at 40x: read, cut, classify, write."""
    from scripts.bench.bench_cases import make_case, model_at

    slide = slide_of_size(QUICK_SIDE if args.quick else WHOLE, args.slide, args.work)
    model, repeats = model_at(0.25, args.work / "models"), 1 if args.quick else 2
    case = make_case("whole slide at 40x", slide, model, 300 if args.quick else None)
    found = {"whole slide": _classified(args, case, repeats)}
    memory = Path("/dev/shm")
    if memory.is_dir():  # what a slow disk takes shows beside it
        found["whole slide, results in memory"] = _classified(
            args, case, repeats, memory / "wsi_pipeline_bench"
        )
    real = make_case("the real slide at 40x", args.slide, model, 300 if args.quick else None)
    return found | {"real slide": _classified(args, real, 1 if args.quick else 5)}


def measure_resampled(args: argparse.Namespace) -> Found:
    """The same where no level has the wanted scale, as in most real runs."""
    from scripts.bench.bench_cases import make_case, model_at

    slide, found = slide_of_size(QUICK_SIDE if args.quick else SMALLER, args.slide, args.work), {}
    for mpp in (0.26, 0.7):
        model = model_at(mpp, args.work / "models")
        found[f"{mpp} um/px"] = _classified(
            args, make_case(f"{mpp}", slide, model, 200 if args.quick else 200_000), 1 if args.quick else 3
        )
    return found


def measure_resnet(args: argparse.Namespace) -> Found:
    """224 px by a ResNet-50: end to end beside the network alone."""
    from scripts.bench.bench_cases import make_case

    model, slide = (
        untrained("resnet50", {}, 224, args.work),
        slide_of_size(QUICK_SIDE if args.quick else SMALLER, args.slide, args.work),
    )
    case = make_case("224 px", slide, model, 4 if args.quick else 20_000)
    return _classified(args, case, 1)


def measure_decode(args: argparse.Namespace) -> Found:
    """Blocks read into memory, without a network: patches a second by threads, in C and by simplejpeg."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from scripts.bench.bench_cases import looked_at, make_case, model_at
    from wsi_pipeline.inference import device_blocks
    from wsi_pipeline.slides.readers import jpeg_tiles

    slide = slide_of_size(QUICK_SIDE if args.quick else SMALLER, args.slide, args.work)
    case = make_case("decode", slide, model_at(0.25, args.work / "models"), 300 if args.quick else None)
    blocks, grid, found = list(case.plan.blocks()), case.plan.grid, {}
    built = jpeg_tiles._jpeg_tiles
    for name, function in (("C", built), ("simplejpeg", None)):
        if name == "C" and built is None:
            continue
        jpeg_tiles._jpeg_tiles = function
        jpeg_tiles.WHY_NOT = "left out by the benchmark"
        for threads in (2,) if args.quick else THREADS:
            opened = looked_at(case)
            size = max(device_blocks.bytes_of(block, grid.reader(opened))[0] for block in blocks)
            memory = [np.empty(size, np.uint8) for _ in range(threads)]
            part = blocks[: 2 if args.quick else 10 * threads]

            def work(task: tuple[Any, Any, list[Any]]) -> int:
                opened, memory, mine = task
                read = grid.reader(opened)
                return sum(len(device_blocks.load_block(block, grid, read, memory).corners) for block in mine)

            tasks = [(opened, memory[i], part[i::threads]) for i in range(threads)]
            with ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                patches = sum(pool.map(work, tasks))
                found.setdefault(name, {})[threads] = round(patches / (time.perf_counter() - start))
    jpeg_tiles._jpeg_tiles = built
    return found


def measure_decoders(args: argparse.Namespace) -> Found:
    """JPEG tiles from memory by each decoder there is, those on the GPU among them."""
    from scripts.bench.bench_decoders import measure_decoders

    return dict(measure_decoders(args.slide, _device(args), 1 if args.quick else 3))


def measure_copies(args: argparse.Namespace) -> Found:
    """Gigabytes a second from the host's memory to the device's."""
    import torch

    device, count = _device(args), 2**20 if args.quick else 100 * 2**20
    target, found = torch.empty(count, dtype=torch.uint8, device=device), {}
    for name in ("page-locked", "plain"):
        pinned = name == "page-locked" and device.type == "cuda"
        source = torch.zeros(count, dtype=torch.uint8, pin_memory=pinned)
        start, times = 0.0, 2 if args.quick else 20
        for i in range(-2, times):
            if i == 0:
                _finish(device)
                start = time.perf_counter()
            target.copy_(source, non_blocking=True)
        _finish(device)
        found[f"{name}, GB/s"] = round(times * count / (time.perf_counter() - start) / 1e9, 1)
    return found


def _device(args: argparse.Namespace) -> Any:
    from wsi_pipeline.inference.device import choose_device

    return choose_device(args.device)


def _precisions(args: argparse.Namespace) -> list[Any]:
    from wsi_pipeline.inference.engines.pixel_ring import ring_of

    return [*ring_of(_device(args)).accelerator.halves, "fp32"]


def _engine(args: argparse.Namespace, model: Any, precision: str, batch: int) -> Any:
    from wsi_pipeline.inference.engines.cuda_engine import CudaEngine
    from wsi_pipeline.inference.engines.pixel_ring import ring_of

    return CudaEngine(model, ring_of(_device(args)), precision, batch)  # type: ignore[arg-type]


def _rate_of(engine: Any, seconds: float) -> int:
    """Patches a second of batches launched one after another, a few in flight, as the blocks' queue does it."""
    import torch

    accelerator, b = engine.accelerator, engine.batch_size
    engine.make_room(0, 2**24)
    side = engine._card.patch_px
    places = accelerator.pinned(2 * b, torch.int64).view(2, b)
    places[0] = torch.randint(0, 2**24 - side * side * 3, (b,))
    places[1] = side * 3
    scores, events, done = accelerator.pinned(b, torch.float32), [], 0
    start, warm = 0.0, 3
    with accelerator.computing():
        while True:
            if done == warm:
                for event in events:
                    event.synchronize()
                start = time.perf_counter()
            elif done > warm and time.perf_counter() - start > seconds:
                break
            engine.launch(places, scores)
            events.append(accelerator.mark())
            done += 1
            if len(events) > 3:
                events.pop(0).synchronize()
        for event in events:
            event.synchronize()
    return round((done - warm) * b / (time.perf_counter() - start))


def _classified(args: argparse.Namespace, case: Any, repeats: int, work: Path | None = None) -> Found:
    """End to end beside the network alone; how busy the GPU is, and the most memory on both sides."""
    import statistics

    import torch

    from scripts.bench.bench_cases import Setting, _adapted, end_to_end, looked_at, new_store
    from scripts.bench.bench_gpu import busy_share
    from scripts.bench.bench_memory import resident_mb
    from wsi_pipeline.inference.classifier import Classifier
    from wsi_pipeline.inference.engines.batching import BatchRunner
    from wsi_pipeline.inference.engines.choice import Chosen

    device = _device(args)
    before = resident_mb("VmRSS")
    classifier = _adapted(Classifier([case.model], device, case.config.classify), case)
    if device.type == "cpu":  # the engine for GPUs in its stand-in
        engine = _engine(args, case.model, "fp32", 16)
        classifier.members[0]._chosen = Chosen(BatchRunner(engine), 0.0, 0)
    engine = classifier.members[0].chosen.runner.engine
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, busy = [], []
    for _ in range(repeats):
        store, slide = new_store(case, work or args.work), looked_at(case)
        with busy_share(device) as samples:
            start = time.perf_counter()
            end_to_end(case, slide, Setting("auto", classifier), store)
            seconds.append(time.perf_counter() - start)
        busy += samples[1:-1]  # the first and the last one reach beyond
    found = {
        "patches": case.patches,
        "engine": classifier.engine_info[0],
        "seconds each": [round(s, 2) for s in seconds],
        "patches_per_s": round(case.patches / statistics.median(seconds)),
        "busy samples": busy,
        "host_mb": round(resident_mb("VmHWM")),
        "host_mb_before": round(before),
    }
    if device.type == "cuda":
        found |= {
            "gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20),
            "gpu_reserved_mb": round(torch.cuda.max_memory_reserved() / 2**20),
        }
    found["network_per_s"] = _rate_of(engine, 0.5) if hasattr(engine, "launch") else None
    if found["network_per_s"]:
        found["share of the network alone"] = round(found["patches_per_s"] / found["network_per_s"], 3)
    return found


def _finish(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


SECTIONS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "machine": measure_machine,
    "tests": run_tests,
    "end to end": measure_end_to_end,
    "network": measure_network,
    "resnet": measure_resnet,
    "lineup": measure_lineup,
    "decode": measure_decode,
    "copies": measure_copies,
    "resampled": measure_resampled,
    "workers": measure_workers,
    "decoders": measure_decoders,
    "training": measure_training,
}

if __name__ == "__main__":
    sys.exit(main())
