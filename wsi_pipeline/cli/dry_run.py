"""--dry-run: what a batch would come to, without writing."""

from collections.abc import Sequence

from wsi_pipeline.base.errors import ScaleError, WsiError
from wsi_pipeline.cli.common import ALL_DONE, NOTHING_RUN, SOME_FAILED
from wsi_pipeline.cli.progress import span
from wsi_pipeline.pipeline.estimate import Estimator
from wsi_pipeline.slides.catalog import SlideEntry


def dry_run(entries: Sequence[SlideEntry], estimate: Estimator, workers: int | None) -> int:
    """Print patches, time and disk of each slide and of all; the exit code that a run would begin with."""
    patches = disk = failed = refused = 0
    seconds = 0.0
    for entry in entries:
        try:
            slide = estimate(entry)
        except WsiError as error:
            failed += 1
            refused += isinstance(error, ScaleError)
            print(f"{entry.name}: would fail: {error}")
            continue
        patches, disk, seconds = patches + slide.patches, disk + slide.disk_bytes, seconds + slide.seconds
        print(
            f"{entry.name}: {slide.patches:,} patches in {slide.blocks:,} blocks, about {span(slide.seconds)}, "
            f"up to {_size(slide.disk_bytes)}"
        )
    count = workers or 1
    print(
        f"{len(entries) - failed} slides, {patches:,} patches: about {span(seconds / count)} with "
        f"{count} {'worker' if count == 1 else 'workers at best'}, up to {_size(disk)} on the disk; "
        f"{failed} would fail"
    )
    if refused == len(entries):
        return NOTHING_RUN
    return SOME_FAILED if failed else ALL_DONE


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
