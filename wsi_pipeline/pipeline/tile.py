"""The flow of one slide in `tile-slides`: open, find tissue, plan, write."""

from pathlib import Path
from typing import Any

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.base.types import Progress
from wsi_pipeline.pipeline.config import TileConfig
from wsi_pipeline.pipeline.prefetch import PrefetchedSlide
from wsi_pipeline.pipeline.run import finish, new_store, render_overview
from wsi_pipeline.results.provenance import file_sha256, recipe_key, slide_info
from wsi_pipeline.results.run_folder import EXPORT_FOLDER, SlideResult, find_run, finished_result
from wsi_pipeline.results.store import PatchTable
from wsi_pipeline.results.summary import Stopwatch, count, summarise
from wsi_pipeline.slides.annotations.cell_labels import outlines_on_slide
from wsi_pipeline.slides.annotations.files import outlines_of
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.export import write_patches
from wsi_pipeline.tiling.overview import make_overview
from wsi_pipeline.tiling.patch_labels import label_patches
from wsi_pipeline.tiling.patches import patch_positions


def tile_slide(
    path: Path,
    out: OutPath,
    config: TileConfig,
    mpp: float | None = None,
    annotations: Path | None = None,
    export: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    ahead: PrefetchedSlide | None = None,
) -> SlideResult:
    """Plan the slide's patches and write them to its run folder, with a picture of the tissue kept.

    `mpp` overrides the file's scale. `annotations` is a folder of outlines that label the patches, <slide name>.geojson
    or one of the other names of slides/annotations/files.py. `export` writes each patch as a PNG too. `name` is the
    run folder's, where it is not the file's. `ahead` is this slide, where it was opened ahead, or is read from a copy.
    Raises a WsiError whose text says why; an earlier result of the same recipe is left as it is, an interrupted one
    goes on from its last block of PNGs.
    """
    watch = Stopwatch()
    with watch("open"):
        slide = ahead.slide() if ahead else open_slide(path, mpp, name)
        outlines = outlines_of(annotations, path, slide.name) if annotations else None
        recipe = tile_recipe(slide, config, outlines, export)
        folder = out / slide.name
        store = find_run(folder, recipe_key(recipe), overwrite)
        if store and store.is_complete:
            return finished_result(folder)
    with watch("survey"), slide.fails_if_changed():
        overview = (
            ahead.overview(config.overview, config.grid)
            if ahead
            else make_overview(slide, config.overview, config.grid)
        )
    with watch("plan"):
        x0, y0, tissue = patch_positions(overview.plan)
        warnings, labels = list(overview.warnings), None
        if outlines:
            drawn = outlines_on_slide(outlines, slide, config.annotations)
            labels = label_patches(overview.plan, drawn, config.annotations)
            warnings += drawn.warnings
            if not drawn.found and not config.annotations.annotated_throughout:
                warnings.append(f"{outlines} holds no outlines; the patches are not labelled")
        elif annotations:
            warnings.append(
                f"no annotations: found neither {slide.name}.geojson nor {path.name}.geojson (or .geojson.gz) in "
                f"{annotations}; the patches are not labelled"
            )
    with watch("write"):
        if store is None:
            table = PatchTable(x0, y0, tissue, labels)
            store = new_store(folder, recipe, slide, overview, table, status=None)
        render_overview(folder, overview)
    counts = count(overview.plan, status=None, labels=labels)
    if export:
        with watch("export"), slide.fails_if_changed():
            counts["unreadable"] = write_patches(
                slide, overview.plan, labels, folder / EXPORT_FOLDER / slide.name, progress
            )
    finish(folder, store, summarise(slide, overview, recipe, counts, watch, warnings))
    return SlideResult(
        folder, False, counts["patches"], None, watch.total, tuple(warnings), counts.get("labels")
    )


def tile_recipe(slide: Slide, config: TileConfig, outlines: Path | None, export: bool) -> dict[str, Any]:
    """All that decides what `tile_slide` makes of a slide."""
    return {
        "command": "tile-slides",
        "slide": slide_info(slide),
        "options": options_to_dict(config),
        "annotations": file_sha256(outlines) if outlines else None,
        "export": export,
    }
