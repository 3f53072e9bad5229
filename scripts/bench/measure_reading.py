"""How fast patches come off a slide: storage tiles decoded directly, OpenSlide by blocks, OpenSlide patch by patch.

    python -m scripts.bench.measure_reading ../shared/data/slides/breast_40x.svs --doc docs/performance.md

Each way reads the same patches of the slide's tissue, taking turns; medians of several turns are printed. With --large,
slides from small to large, that repeat a part of the same slide (tiled_slide.py), are opened, looked at and read as
infer-slide does instead, each by a process of its own, for its seconds and its memory.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide

from scripts.bench.tiled_slide import MPP, densest_square, write_tiled_slide
from scripts.doc_sections import put_section
from wsi_pipeline.slides.readers.openslide import OpenSlideReader
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import Block, GridOptions, Plan
from wsi_pipeline.tiling.overview import OverviewOptions, make_overview
from wsi_pipeline.tiling.patches import read_blocks

# Reading patch by patch is so slow that a few tell its speed.
SINGLE_PATCHES = 1000
PATCH_PX = 50
THREADS = (1, 2)
LARGE = ((10_000, 10_000), (117_000, 55_000), (100_000, 100_000))


def main() -> int:
    """Print what was measured; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=32, help="so many blocks of 2048 px at most")
    parser.add_argument("--large", action="store_true", help="read slides of several sizes instead")
    parser.add_argument("--doc", type=Path, help="write what was measured into this page")
    parser.add_argument(
        "--patch-mpp", type=float, help=argparse.SUPPRESS
    )  # of the process of one large slide
    args = parser.parse_args()
    if args.patch_mpp:
        print(read_once(args.slide, args.patch_mpp))
        return 0
    name = "reading of slides from small to large" if args.large else "reading"
    text = read_large(args.slide) if args.large else compare_ways(args.slide, args.rounds, args.blocks)
    text = f"{INTRODUCTION.format(' --large' * args.large)}\n\n{text}"
    print(text)
    if args.doc:
        put_section(args.doc, name, text)
    return 0


# As a slide of 0.26 um/px is for a model of 0.25.
RESAMPLED = 0.96

INTRODUCTION = (
    "Measured by `python -m scripts.bench.measure_reading SLIDE{} --doc docs/performance.md` on "
    f"{os.cpu_count()} cores ({platform.machine()}). Where other work shares them, the clock says little, and "
    "processor time more."
)


def compare_ways(path: Path, rounds: int, most_blocks: int) -> str:
    """A table of the ways to read the fullest blocks of the slide at its own scale."""
    direct = open_slide(path)
    through = Slide(path, OpenSlideReader(path), direct.mpp, False)
    plan, resampled = planned(direct, max(direct.mpp)), planned(direct, RESAMPLED * max(direct.mpp))
    blocks, other_blocks = fullest(plan, most_blocks), fullest(resampled, most_blocks)
    ways: dict[str, Callable[[], int]] = {}
    for n in THREADS:
        ways[f"storage tiles | {n}"] = lambda n=n: by_blocks(direct, plan, blocks, n)
    for n in THREADS:
        ways[f"storage tiles, resampled to {RESAMPLED:g} of that scale | {n}"] = lambda n=n: by_blocks(
            direct, resampled, other_blocks, n
        )
    for n in THREADS:
        ways[f"OpenSlide by blocks | {n}"] = lambda n=n: by_blocks(through, plan, blocks, n)
    ways["OpenSlide, one read a patch | 1"] = lambda: patch_by_patch(through, plan, blocks)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(speed(way))
    rows = [
        f"| {name} | {statistics.median(clock for clock, _ in values):,.0f} "
        f"| {statistics.median(cpu for _, cpu in values):,.0f} |"
        for name, values in found.items()
    ]
    total = sum(len(block.patches) for block in blocks)
    return "\n".join(
        [
            f"{total:,} patches of {PATCH_PX} x {PATCH_PX} px of {path.name}, {direct.mpp[0]:.2g} um/px (medians of "
            f"{rounds}):",
            "",
            "| way | threads | patches/s | patches a processor second |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )


def fullest(plan: Plan, most: int) -> list[Block]:
    """The plan's blocks of the most patches, in their order."""
    blocks = sorted(plan.blocks(), key=lambda block: len(block.patches))[-most:]
    return sorted(blocks, key=lambda block: (block.cells.y, block.cells.x))


def read_large(source: Path) -> str:
    """A table of slides of several sizes, each read at its own scale and at 4 um/px."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        square = densest_square(source)
        for width, height in LARGE:
            path = Path(folder) / f"{width}x{height}.tiff"
            write_tiled_slide(path, width, height, square)
            for mpp in (4.0, MPP):
                command = [sys.executable, __file__, str(path), "--patch-mpp", str(mpp)]
                row = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
                rows.append(f"| {width:,} x {height:,} | {mpp:g} {row}")
    return "\n".join(
        [
            f"Slides made of its tiles, {MPP} um/px, opened, looked at (thumbnail, tissue, artefacts, plan) and "
            f"read on {max(THREADS)} threads:",
            "",
            "| slide, px | um/px read | patches | open and look, s | read, s | both, processor s | peak, MB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def read_once(path: Path, mpp: float) -> str:
    """The cells of one row of that table."""
    began, cpu = time.perf_counter(), time.process_time()
    slide = open_slide(path)
    plan = planned(slide, mpp)
    looked = time.perf_counter()
    count = by_blocks(slide, plan, list(plan.blocks()), max(THREADS))
    done, cpu = time.perf_counter(), time.process_time() - cpu
    return f"| {count:,} | {looked - began:.1f} | {done - looked:.1f} | {cpu:.1f} | {peak_mb():,.0f} |"


def peak_mb() -> float:
    """The most memory that this process held; `getrusage` would count its parent's, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def planned(slide: Slide, mpp: float) -> Plan:
    """The patches of the slide's tissue at a scale."""
    return make_overview(slide, OverviewOptions(), GridOptions(patch_px=PATCH_PX, mpp=mpp)).plan


def speed(way: Callable[[], int]) -> tuple[float, float]:
    """Patches a second by the clock, and a second of processor time."""
    began, cpu = time.perf_counter(), time.process_time()
    count = way()
    return count / (time.perf_counter() - began), count / (time.process_time() - cpu)


def by_blocks(slide: Slide, plan: Plan, blocks: list[Block], threads: int) -> int:
    """Read the patches as infer-slide does, with an empty cache; gives their number."""
    fresh = Slide(slide.path, slide._reader, slide.mpp, True)
    read = read_blocks(blocks, plan.grid, plan.grid.reader(fresh), threads)
    return sum(len(cut.rgb) for _, cut in read)


def patch_by_patch(slide: Slide, plan: Plan, blocks: list[Block]) -> int:
    """Read some of the patches with a read_region each, on the level that the slide is read at; gives their number."""
    level = plan.grid.reader(slide).level
    plane = slide.levels[level].plane
    handle = openslide.OpenSlide(slide.path)
    positions = np.concatenate([block.patches for block in blocks])[:SINGLE_PATCHES]
    for column, row in positions:
        box = plan.grid.plane.to_level0(plan.grid.patch_box(int(column), int(row)))
        size = (
            round((box.right - box.left) / plane.downsample_x),
            round((box.bottom - box.top) / plane.downsample_y),
        )
        np.asarray(handle.read_region((round(box.left), round(box.top)), level, size).convert("RGB"))
    return len(positions)


if __name__ == "__main__":
    sys.exit(main())
