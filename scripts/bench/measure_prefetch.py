"""Whether opening the next slide while one is computed pays: the same slides mapped with and without it, by turns.

    python -m scripts.bench.measure_prefetch runs/results/slides/*.tiff --docs docs/performance.md

One process, as `infer-slide SLIDE...` runs them; the model is loaded once, before the clock starts.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from scripts.doc_sections import put_section
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.slide_jobs import InferJob
from wsi_pipeline.slides.catalog import SlideEntry, list_slides

SECTION = "the next slide"


def main() -> int:
    """Measure and print, and write the section where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--docs", type=Path, help="the page whose section is written")
    args = parser.parse_args()
    entries = list_slides([str(path) for path in args.slides])
    seconds: dict[bool, list[float]] = {False: [], True: []}
    mapped(entries[:1], args.device, with_prefetch=False)  # what is done once: compiling, the disk's cache
    for _ in range(args.repeats):
        for with_prefetch, found in seconds.items():
            found.append(mapped(entries, args.device, with_prefetch))
            print(f"{'with' if with_prefetch else 'without'}: {found[-1]:.2f} s", flush=True)
    without, with_it = (statistics.median(seconds[key]) for key in (False, True))
    text = (
        f"{len(entries)} slides one after another in one process, {len(os.sched_getaffinity(0))} cores, device "
        f"{args.device}, medians of {args.repeats} by turns: {without:.2f} s without, {with_it:.2f} s where each next "
        f"slide is opened and looked at meanwhile, {without / with_it:.2f} times as fast. Written by "
        f"`python -m scripts.bench.measure_prefetch SLIDE... --docs docs/performance.md`."
    )
    print(text)
    if args.docs:
        put_section(args.docs, SECTION, text)
    return 0


def mapped(entries: list[SlideEntry], device: str, with_prefetch: bool) -> float:
    """Seconds that mapping all the slides takes."""
    with tempfile.TemporaryDirectory() as out:
        work = InferJob(Path(out), InferConfig(), ("idc_default",), device).open(0)
        start = time.perf_counter()
        for i, entry in enumerate(entries):
            if with_prefetch:
                work.prefetch(entries[i : i + 2])
            work(entry, lambda done, total: None)
        seconds = time.perf_counter() - start
        work.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
