"""How long a set of labelled images takes to be ready for training: opened file by file, decoded, from the cache.

Of slides that tile-slides has cut: how many patches a second an epoch reads from them, and how many storage tiles.

python -m scripts.bench.measure_loading PATCHES        # PATCHES: IDC folders, for one what make_idc.py patches writes
python -m scripts.bench.measure_loading OUT/SLIDE      # OUT/SLIDE: a run folder with exported patches or shards
python -m scripts.bench.measure_loading OUT            # OUT: of tile-slides --annotations, not exported
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from wsi_pipeline.learning.datasets import SplitOptions, load_side
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.datasets.sharing import ONE_READER
from wsi_pipeline.learning.datasets.slide_epochs import batches_of, plan_epoch
from wsi_pipeline.learning.datasets.tiled_slides import SlideReadOptions, all_slides, is_tiled

# As an epoch without a cache would open them: one after the other, in random order.
OPENED = 5000
BATCH = 128


def main(folder: Path, patch_px: int = 50) -> None:
    """Print what was measured."""
    began = time.perf_counter()
    listing = list_images(folder)
    print(f"list {len(listing):,} patches ({listing.layout}): {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    for index in np.random.default_rng(0).permutation(len(listing))[:OPENED].tolist():
        listing.load(index)
    a_file = (time.perf_counter() - began) / min(OPENED, len(listing))
    print(f"open file by file: {1 / a_file:,.0f}/s, {a_file * len(listing):.1f} s for all, in each epoch")
    with tempfile.TemporaryDirectory() as cache:
        for time_of in ("first load, into the cache", "each later load"):
            began = time.perf_counter()
            patches = load_side(folder, patch_px, "all", SplitOptions(), Path(cache))
            seconds = time.perf_counter() - began
            print(f"{time_of}: {seconds:.1f} s, {len(patches):,} patches")
        size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    print(f"cache: {size / 1e6:,.0f} MB")


def measure_slides(folder: Path) -> None:
    """Print what it takes to read the labelled patches of the slides cut into `folder`, in the batches of two epochs.

    Nothing is trained: what is measured is how long a device would wait at most.
    """
    began = time.perf_counter()
    patches = all_slides(folder, SplitOptions(), SlideReadOptions())
    print(
        f"list {len(patches):,} patches of {len(patches.slides)} slides: {time.perf_counter() - began:.1f} s"
    )
    tiles = np.unique(np.c_[patches.slide, patches.tiles[:, [0, 2]]], axis=0)
    for epoch in range(2):
        began, worked = time.perf_counter(), time.process_time()
        plan = plan_epoch(patches, (0, epoch), BATCH)
        planned = time.perf_counter() - began
        read = sum(len(rows) for rows, _ in batches_of(patches, plan, BATCH, (0, epoch), ONE_READER))
        seconds, spent = time.perf_counter() - began, time.process_time() - worked
        print(
            f"epoch {epoch + 1}: {read:,} patches in {seconds:.1f} s ({planned:.2f} of them to plan), "
            f"{read / seconds:,.0f}/s; {spent:.1f} s of processors, {read / spent:,.0f}/s and core; "
            f"{plan.waiting / len(patches):.1%} left for other epochs; about {len(tiles):,} storage tiles"
        )
    print(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    (measure_slides if is_tiled(Path(sys.argv[1])) else main)(Path(sys.argv[1]))
