"""--dry-run: what a batch would come to, without writing."""

from collections import Counter
from collections.abc import Sequence

from wsi_pipeline.base.errors import RecipeError, ScaleError, WsiError
from wsi_pipeline.base.text import counted, on_one_line
from wsi_pipeline.cli.common import ALL_DONE, NOTHING_RUN, SOME_FAILED
from wsi_pipeline.cli.progress import span
from wsi_pipeline.pipeline.estimate import Estimate, Estimator
from wsi_pipeline.results.run_folder import Standing
from wsi_pipeline.slides.catalog import SlideEntry


def dry_run(entries: Sequence[SlideEntry], estimate: Estimator, workers: int | None) -> int:
    """Print what a run would do with each slide, and its patches, time and disk; the exit code that it would have."""
    outcomes, slides = Counter[str](), []
    for entry in entries:
        try:
            slide = estimate(entry)
        except (WsiError, OSError) as error:
            refused = bool(entry.refused) or isinstance(error, ScaleError | RecipeError)
            outcomes["refused" if refused else "would fail"] += 1
            outcomes["nothing run"] += isinstance(error, ScaleError | RecipeError)
            would = "would be refused" if refused else "would fail"
            print(f"{entry.name}: {would}: {on_one_line(' '.join(str(error).split()))}")
            continue
        outcomes[slide.standing.value] += 1
        slides.append(slide)
        print(f"{entry.name}: {_described(slide)}")
    count = workers or 1
    seconds, patches = sum(slide.seconds for slide in slides), sum(slide.patches for slide in slides)
    print(
        f"{counted(outcomes['new'] + outcomes['begun'], 'slide')}, {counted(patches, 'patch')}: about "
        f"{span(seconds / count)} with {counted(count, 'worker', 'workers at best')}, up to "
        f"{_size(sum(slide.disk_bytes for slide in slides))} on the disk; {outcomes['begun']} begun before, "
        f"{outcomes['done'] + outcomes['to draw']} done already, {outcomes['refused']} refused, "
        f"{outcomes['would fail']} would fail"
    )
    if outcomes["nothing run"] == len(entries):
        return NOTHING_RUN
    return SOME_FAILED if outcomes["refused"] + outcomes["would fail"] else ALL_DONE


def _described(slide: Estimate) -> str:
    if slide.standing is Standing.DONE:
        return "done already by the same recipe: would be skipped"
    if slide.standing is Standing.TO_DRAW:
        return "mapped already: only its regions, pictures and numbers would be made again"
    begun = "; begun before, a run goes on with it" if slide.standing is Standing.BEGUN else ""
    return (
        f"{counted(slide.patches, 'patch')} in {counted(slide.blocks, 'block')}, about {span(slide.seconds)}, "
        f"up to {_size(slide.disk_bytes)}{begun}"
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
