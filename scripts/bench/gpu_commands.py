"""Sections of measure_gpu.py that start commands: the tests, infer-slide and train-model from the shell."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.bench.gpu_inputs import QUICK_SIDE, SMALLER, WHOLE, slide_of_size, write_patches

WORKERS = (1, 2, 4)
# A test that takes longer hangs, and says where; all of them together may take no longer than this.
TEST_S, TESTS_S = 40, 120

Found = dict[str, Any]


def run_tests(args: argparse.Namespace) -> Found:
    """Every test marked `gpu`."""
    report = args.out / "tests.xml"
    report.unlink(missing_ok=True)
    # By file: what other tests import need not be there.
    files = [str(path) for path in sorted(Path("tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    command += ["-o", f"faulthandler_timeout={TEST_S}", "--durations=12", *files]
    with (args.out / "tests.log").open("w") as log:
        run = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=TESTS_S,
            check=False,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # the machine's own plugins
        )
    if not report.exists():
        raise RuntimeError(f"no test ran: {(args.out / 'tests.log').read_text()[-2000:]}")
    import xml.etree.ElementTree as Xml

    suite = next(Xml.parse(report).getroot().iter("testsuite")).attrib
    counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
    if run.returncode not in (0, 5):
        raise RuntimeError(f"tests failed: {counts}; see {args.out / 'tests.log'}")
    return counts


def measure_workers(args: argparse.Namespace) -> Found:
    """infer-slide from the shell: a whole slide, and several slides by 1, 2 and 4 processes on one GPU."""
    whole = slide_of_size(QUICK_SIDE if args.quick else WHOLE, args.slide, args.work)
    slide = slide_of_size(QUICK_SIDE if args.quick else SMALLER, args.slide, args.work)
    models = args.work / "models"
    from scripts.bench.bench_cases import model_at

    model_at(0.25, models)
    found: Found = {"whole slide": _from_the_shell(args, [whole], [])}
    slides = []
    for i in range(2 if args.quick else 4):
        copy = args.work / "slides" / f"slide_{i}.tiff"
        copy.parent.mkdir(exist_ok=True)
        if not copy.exists():
            os.link(slide, copy)
        slides.append(copy)
    for workers in (1,) if args.quick else WORKERS:
        found[f"{workers} workers"] = _from_the_shell(args, slides, ["--workers", str(workers)])
    return found


def _from_the_shell(args: argparse.Namespace, slides: list[Path], options: list[str]) -> Found:
    out = args.work / "maps"
    shutil.rmtree(out, ignore_errors=True)
    model = args.work / "models" / "idc_default_at_0.25.safetensors"
    command = [sys.executable, "-m", "wsi_pipeline.cli.infer_slide", *map(str, slides), "--out", str(out)]
    command += ["--model", str(model), "--device", args.device, *options]
    start = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    seconds = time.perf_counter() - start
    if run.returncode:
        raise RuntimeError((run.stdout + run.stderr)[-2000:])
    print(f"{len(slides)} slides {' '.join(options)}: {seconds:.1f} s", flush=True)
    summaries = [json.loads((out / slide.stem / "summary.json").read_text()) for slide in slides]
    patches = sum(summary["counts"]["patches"] for summary in summaries)
    return {
        "slides": len(slides),
        "patches": patches,
        "seconds": round(seconds, 1),
        "patches_per_s": round(patches / seconds),
        "stages": summaries[0]["seconds"],
        "engine": summaries[0]["device"]["engines"][0],
    }


def measure_training(args: argparse.Namespace) -> Found:
    """A short training on patches of the slide, and loader, step and both by themselves: patches a second."""
    import csv

    data, config = args.work / "patches", args.work / "train.yaml"
    count = 64 if args.quick else 6000
    patches = write_patches(args.slide, data, count)
    text = (
        Path("configs/train/idc_default.yaml")
        .read_text()
        .replace("  train: [train, extra]\n  val: [val]\n", "  val_share: 0.2\n")
    )
    config.write_text(text.replace("restarts: [26]\n", ""))
    runs = args.work / "training"
    shutil.rmtree(runs, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "wsi_pipeline.cli.train_model",
        "--config",
        str(config),
        "--data",
        str(data),
    ]
    command += ["--out", str(runs), "--device", args.device, "--epochs", "1" if args.quick else "4"]
    start = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    with (runs / "epochs.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    found = {
        "patches": patches,
        "command_s": round(time.perf_counter() - start, 1),
        "patches_per_s": [round(row["patches_per_s"]) for row in rows],
        "epoch_s": [round(row["seconds"], 2) for row in rows],
    }
    return found | {"alone": _training_alone(args)}


def _training_alone(args: argparse.Namespace) -> list[Found]:
    """A row each of measure_training.py's cases."""
    report = args.work / "training.json"
    command = [sys.executable, "-m", "scripts.bench.measure_training", "--device", args.device]
    command += [
        "--json",
        str(report),
        *(["--quick", "--seconds", "0.1"] if args.quick else ["--seconds", "1"]),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    rows: list[Found] = json.loads(report.read_text())["rows"]
    return rows
