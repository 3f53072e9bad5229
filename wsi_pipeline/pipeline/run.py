"""What a run of `tile-slides` and one of `infer-slide` do alike: open, look, a new store, the end."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.files import OutPath, write_json
from wsi_pipeline.base.text import printable_values
from wsi_pipeline.base.types import Progress
from wsi_pipeline.pipeline.config import InferConfig, TileConfig
from wsi_pipeline.pipeline.identity import plan_differences
from wsi_pipeline.pipeline.prefetch import PrefetchedSlide
from wsi_pipeline.results.figures.maps import render_tissue
from wsi_pipeline.results.run_folder import SUMMARY, SlideResult, claim, clear_outputs, refuse, result_of
from wsi_pipeline.results.store import STORE_NAME, PatchTable, SlideStore, StoreLayout, create_store
from wsi_pipeline.slides.annotations.files import outlines_of
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.overview import Overview, make_overview

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How a slide is worked on; nothing of it but `inside` decides the result."""

    overwrite: bool = False
    """Replace another result (of another slide, scale, model, options) in the run folder; else it is an error."""

    progress: Progress | None = None
    """Called with the patches done so far, and those in all."""

    inside: Path | None = None
    """A folder of outlines, within which alone slides are mapped; unlike the rest, it is of the map's key."""

    prefetched: PrefetchedSlide | None = None
    """The slide, where it was opened before its turn, or is read from a local copy."""


DEFAULT_RUN = RunOptions()


def open_entry(slide: SlideEntry | Path, run: RunOptions) -> Slide:
    """The slide, opened now if it was not prefetched; a path has the file's own scale and name. Raises SlideError."""
    if run.prefetched:
        return run.prefetched.slide()
    if isinstance(slide, SlideEntry):
        return open_slide(slide.path, slide.mpp, slide.name, mpp_if_missing=slide.mpp_if_missing)
    return open_slide(slide)


def inside_of(folder: Path | None, slide: Slide) -> Path | None:
    """The outlines in `folder` within which the slide is to be mapped; None without a folder.

    Raises DataError where it holds none of the slide: a whole map where a part was meant is another result.
    """
    if folder is None:
        return None
    found = outlines_of(folder, slide.path, slide.name)
    if found is None:
        raise DataError(
            f"{slide.path}: found neither {slide.name}.geojson nor {slide.name}.xml in {folder}; expected outlines of "
            "what is to be mapped: draw them, or map the slide without --inside"
        )
    return found


def overview_of(slide: Slide, config: TileConfig | InferConfig, run: RunOptions) -> Overview:
    """Thumbnail, tissue, artefacts and plan, made now if they were not prefetched. Raises as `make_overview`."""
    if run.prefetched:
        return run.prefetched.overview(config)
    return make_overview(slide, config.overview, config.grid)


def same_plan(store: SlideStore | None, plan: Plan, folder: OutPath, run: RunOptions) -> SlideStore | None:
    """The store, whose plan and chunks are today's; None where there is none, or another may be overwritten.

    Raises RecipeError that says in what they differ.
    """
    if store is None:
        return None
    differ = plan_differences(store, plan)
    if differ and run.overwrite:
        return None
    refuse(folder, differ)
    return store


def new_store(
    folder: OutPath,
    attributes: dict[str, Any],
    slide: Slide,
    overview: Overview,
    patches: PatchTable,
    maps: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> SlideStore:
    """A new store with those maps, and layers of those classes, in the run folder, cleared of what lay in it.

    Raises OutputError. `attributes` are those of provenance.py.
    """
    layout = StoreLayout(
        overview.plan, slide.mpp, overview.labels, overview.tissue.plane, patches, maps, classes
    )
    claim(folder)
    return create_store(folder / STORE_NAME, attributes, layout, clear=lambda: clear_outputs(folder))


def render_overview(folder: OutPath, slide: Slide, overview: Overview) -> None:
    """Write tissue.png. Raises OutputError."""
    thumbnail, tissue = overview.thumbnail, overview.tissue
    um_per_pixel = thumbnail.plane.downsample_x * slide.mpp[0]
    areas_mm2 = overview.artefacts.areas_mm2 | overview.passed_over_mm2(slide.mpp)
    not_scored = {
        name: (overview.on_thumbnail(mask), areas_mm2[name])
        for name, mask in (overview.artefacts.spots | overview.passed_over).items()
        if areas_mm2[name]
    }
    place, mask = folder / "tissue.png", overview.on_thumbnail(tissue.mask)
    render_tissue(place, thumbnail.rgb, mask, not_scored, tissue.reason, um_per_pixel)


def finish(folder: OutPath, summary: dict[str, Any], drawn_again: str = "") -> SlideResult:
    """Write the summary, with which the run is finished; gives its result. Raises OutputError."""
    log.debug("stage finish")
    write_json(folder / SUMMARY, printable_values(summary))
    return replace(result_of(folder, summary), drawn_again=drawn_again)
