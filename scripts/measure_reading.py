"""How fast patches come off a slide: storage tiles decoded directly, OpenSlide by blocks, OpenSlide patch by patch.

    python scripts/measure_reading.py ../shared/data/slides/breast_40x.svs

Each way reads the same patches of the slide's tissue, taking turns; medians of several turns are printed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide

from wsi_pipeline.config import TileConfig
from wsi_pipeline.grid import Block, GridOptions, Plan
from wsi_pipeline.patches import read_blocks
from wsi_pipeline.readers.openslide import OpenSlideReader
from wsi_pipeline.slide import Slide, open_slide
from wsi_pipeline.survey import survey_slide

# Reading patch by patch is so slow that a few tell its speed.
SINGLE_PATCHES = 1000


def main() -> int:
    """Print what was measured; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float, help="um per level-0 pixel; none: the file's")
    parser.add_argument("--patch-mpp", type=float, help="um per pixel of a patch; none: the slide's own")
    parser.add_argument("--patch-px", type=int, default=50)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=8, help="so many blocks of 4096 px at most")
    args = parser.parse_args()

    mpp = args.mpp or open_slide(args.slide).mpp[0]
    direct = open_slide(args.slide, mpp)
    through = Slide(direct.path, OpenSlideReader(direct.path), (mpp, mpp), True)
    patch_mpp = args.patch_mpp or mpp
    began = time.perf_counter()
    config = TileConfig()
    survey = survey_slide(direct, config, GridOptions(patch_px=args.patch_px, mpp=patch_mpp))
    print(f"{direct.name}: thumbnail, tissue and plan in {time.perf_counter() - began:.2f} s")
    plan = survey.plan
    blocks = sorted(plan.blocks(), key=lambda block: len(block.patches))[-args.blocks :]
    blocks.sort(key=lambda block: (block.cells.y, block.cells.x))
    total = sum(len(block.patches) for block in blocks)
    print(f"{total:,} patches of {args.patch_px} px at {patch_mpp:g} um/px, {len(blocks)} blocks")

    ways: dict[str, Callable[[], float]] = {}
    for threads in args.threads:
        ways[f"storage tiles, {threads} threads"] = lambda n=threads: by_blocks(direct, plan, blocks, n)
        ways[f"OpenSlide by blocks, {threads} threads"] = lambda n=threads: by_blocks(
            through, plan, blocks, n
        )
    ways["OpenSlide patch by patch, 1 thread"] = lambda: patch_by_patch(through, plan, blocks)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            found[name].append(way())
    for name, values in found.items():
        print(
            f"{name}: {statistics.median(values):,.0f} patches/s "
            f"(of {len(values)}: {min(values):,.0f} to {max(values):,.0f})"
        )
    return 0


def by_blocks(slide: Slide, plan: Plan, blocks: list[Block], threads: int) -> float:
    """Patches a second as infer-slide reads them, with an empty cache."""
    fresh = Slide(slide.path, slide._reader, slide.mpp, True)
    began = time.perf_counter()
    count = 0
    for _, cut in read_blocks(
        blocks, plan.grid, lambda box: fresh.read_readable(box, plan.grid.plane), threads
    ):
        count += len(cut.rgb)
    return count / (time.perf_counter() - began)


def patch_by_patch(slide: Slide, plan: Plan, blocks: list[Block]) -> float:
    """Patches a second with a read_region each, on the level that the slide is read at."""
    level = slide.level_for(plan.grid.plane)
    plane = slide.levels[level].plane
    handle = openslide.OpenSlide(slide.path)
    positions = np.concatenate([block.patches for block in blocks])[:SINGLE_PATCHES]
    began = time.perf_counter()
    for column, row in positions:
        box = plan.grid.plane.to_level0(plan.grid.patch_box(int(column), int(row)))
        size = (
            round((box.right - box.left) / plane.downsample_x),
            round((box.bottom - box.top) / plane.downsample_y),
        )
        np.asarray(handle.read_region((round(box.left), round(box.top)), level, size).convert("RGB"))
    return len(positions) / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
