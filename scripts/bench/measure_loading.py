"""How long a set of labelled images takes to be ready for training: opened file by file, decoded, from the cache.

python -m scripts.bench.measure_loading PATCHES        # PATCHES: IDC folders, for one what make_idc.py patches writes
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from wsi_pipeline.learning.datasets import SplitOptions, load_split
from wsi_pipeline.learning.datasets.layouts import list_images

# As an epoch without a cache would open them: one after the other, in random order.
OPENED = 5000


def main(folder: Path, patch_px: int = 50) -> None:
    """Print what was measured."""
    began = time.perf_counter()
    listing = list_images(folder)
    print(f"list {len(listing):,} files: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    for index in np.random.default_rng(0).permutation(len(listing))[:OPENED].tolist():
        listing.load(index)
    a_file = (time.perf_counter() - began) / min(OPENED, len(listing))
    print(f"open file by file: {1 / a_file:,.0f}/s, {a_file * len(listing):.1f} s for all, in each epoch")
    split = SplitOptions(val_share=0.1)
    with tempfile.TemporaryDirectory() as cache:
        for time_of in ("first load, into the cache", "each later load"):
            began = time.perf_counter()
            train, val = load_split(folder, patch_px, split, Path(cache))
            seconds = time.perf_counter() - began
            print(f"{time_of}: {seconds:.1f} s, {len(train) + len(val):,} patches")
        size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    print(f"cache: {size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
