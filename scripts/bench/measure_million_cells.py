"""What follows the network on a map of a million cells: outlines, fields, numbers, pictures, files; time and memory.

    python -m scripts.bench.measure_million_cells --slide ../shared/data/slides/breast_40x.svs --work runs/bench \
        --docs docs/performance.md

The map is of a slide of 117,000 x 55,000 px at 40x (scripts/bench/tiled_slide.py), a cell a patch of 12.5 um. For a
network stands a number that falls with the patch's brightness and waves across the slide, so that there are some
hundred regions of all sizes: what follows does not ask where a map comes from.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = (117_000, 55_000)
EXPORTS = ("ometiff", "asap", "pdf")
# Wanted of a large map: all of it within so many seconds and so much memory, its outlines in so many bytes.
WANTED_S, WANTED_MB, WANTED_GEOJSON_MB = 10.0, 1000.0, 1.0


class Waves:
    """For a network: the darker a patch and the nearer to the crest of a wave, the likelier."""

    name, precision, parallel_batches, batch_sizes = "waves", "fp32", 2, (2048,)

    def probabilities(self, batch: NDArray[np.uint8], _: Any) -> NDArray[np.float32]:
        """float32 [n] of patches [n, S, S, 3]."""
        dark = 1 - batch[:, ::7, ::7, 1].mean(axis=(1, 2)) / 255
        return np.clip(2.2 * dark - 0.35, 0, 1).astype(np.float32)


def main() -> int:
    """The exit code: 1 where a target was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--slide", type=Path, required=True, help="a real 40x slide, whose tissue is repeated"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--docs", type=Path, help="the page whose section 'million cells' is written")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.once:
        print(json.dumps(_finish(args.once, args.work)))
        return 0
    from scripts.bench.benchmark import generated
    from scripts.bench.tiled_slide import densest_square

    slide = args.work / f"generated_{args.size[0]}_{args.size[1]}.tiff"
    if not slide.exists():
        generated(args.work, *args.size, densest_square(args.slide))
    shutil.rmtree(args.work / "cells", ignore_errors=True)
    _finish(slide, args.work)  # the map, in this process
    # And what follows again, in a process of its own: its memory is its own, too.
    command = [sys.executable, "-m", "scripts.bench.measure_million_cells", "--slide", str(args.slide)]
    command += ["--work", str(args.work), "--once", str(slide)]
    found = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
    )
    for name, value in found.items():
        print(f"{name}: {value}")
    met = _targets(found)
    if args.docs:
        from scripts.doc_sections import put_section

        put_section(args.docs, "million cells", _page(found, met))
    return int(not all(is_met for _, _, is_met in met))


def _finish(slide: Path, work: Path) -> dict[str, Any]:
    """Map the slide, or, where the map is there, make again what follows it: seconds by stage, memory, sizes."""
    import torch

    from scripts.bench.bench_cases import MPP0, model_at
    from scripts.bench.bench_memory import resident_mb
    from wsi_pipeline.inference.classifier import Classifier
    from wsi_pipeline.inference.engines.batching import BatchRunner
    from wsi_pipeline.inference.engines.choice import Chosen
    from wsi_pipeline.pipeline.config import InferConfig
    from wsi_pipeline.pipeline.infer import infer_slide
    from wsi_pipeline.slides.catalog import SlideEntry

    logging.basicConfig(level=logging.WARNING)
    config = InferConfig()
    config = replace(config, exports=EXPORTS, grid=replace(config.grid, read_level="coarsest"))
    classifier = Classifier([model_at(MPP0, work / "models")], torch.device("cpu"), config.classify)
    for member in classifier.members:
        member._engines.choose = lambda *_: Chosen(BatchRunner(Waves()), 0.0, 0)  # type: ignore[method-assign]
    entry, before = SlideEntry(slide, slide.stem, mpp=MPP0), resident_mb("VmRSS")
    folder = work / "cells" / slide.stem
    if folder.exists():  # what is missing is drawn again
        (folder / "report.png").unlink()
    began = time.perf_counter()
    infer_slide(entry, work / "cells", config, classifier)
    seconds = time.perf_counter() - began
    summary = json.loads((folder / "summary.json").read_text())
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    return {
        "cells": summary["counts"]["cells"]["scored"],
        "regions": len(summary["regions"]),
        "seconds": {name: round(value, 2) for name, value in summary["seconds"].items()},
        "all_s": round(seconds, 1),
        "before_mb": round(before),
        "peak_mb": round(resident_mb("VmHWM")),
        "bytes": dict(sorted(sizes.items())),
    }


def _targets(found: dict[str, Any]) -> list[tuple[str, str, bool]]:
    own = found["peak_mb"] - found["before_mb"]
    geojson = found["bytes"]["regions.geojson"] / 1e6
    drawn = sum(found["seconds"][stage] for stage in ("delineate", "render", "export"))
    return [
        (f"delineated, rendered and exported in {WANTED_S:g} s", f"{drawn:.1f} s", drawn <= WANTED_S),
        (
            f"with overview and fields in {WANTED_S:g} s",
            f"{found['all_s']:.1f} s",
            found["all_s"] <= WANTED_S,
        ),
        (f"in {WANTED_MB:,.0f} MB beyond torch and the model", f"{own:,} MB", own <= WANTED_MB),
        (f"regions.geojson below {WANTED_GEOJSON_MB:g} MB", f"{geojson:.2f} MB", geojson < WANTED_GEOJSON_MB),
    ]


def _page(found: dict[str, Any], targets: list[tuple[str, str, bool]]) -> str:
    import os

    lines = [
        "## A million cells",
        "",
        f"What follows the network, of {found['cells']:,} scored cells and {found['regions']:,} regions, on "
        f"{len(os.sched_getaffinity(0))} cores. Written by `python -m "
        "scripts.bench.measure_million_cells --slide SLIDE --docs docs/performance.md`.",
        "",
        "| stage | s |",
        "| --- | --- |",
        *(f"| {name} | {seconds:.1f} |" for name, seconds in found["seconds"].items()),
        "",
        "| file | MB |",
        "| --- | --- |",
        *(f"| `{name}` | {size / 1e6:.2f} |" for name, size in found["bytes"].items()),
        "",
        "| target | found | |",
        "| --- | --- | --- |",
        *(f"| {name} | {value} | {'met' if is_met else 'not met'} |" for name, value, is_met in targets),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
