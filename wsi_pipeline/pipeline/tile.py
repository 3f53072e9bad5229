"""The flow of one slide in `tile-slides`: open, find tissue, plan, write."""

from pathlib import Path
from typing import Any

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.pipeline.config import TileConfig
from wsi_pipeline.pipeline.run import (
    DEFAULT_RUN,
    RunOptions,
    finish,
    new_store,
    open_entry,
    overview_of,
    render_overview,
)
from wsi_pipeline.results.provenance import file_sha256, recipe_key, slide_info
from wsi_pipeline.results.run_folder import EXPORT_FOLDER, SlideResult, find_run, finished_result
from wsi_pipeline.results.store import PatchTable
from wsi_pipeline.results.summary import Stopwatch, count, summarise
from wsi_pipeline.slides.annotations.cell_labels import outlines_on_slide
from wsi_pipeline.slides.annotations.files import outlines_of
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.export import write_patches
from wsi_pipeline.tiling.patch_labels import label_patches
from wsi_pipeline.tiling.patches import patch_positions


def tile_slide(
    slide: SlideEntry | Path,
    out: OutPath,
    config: TileConfig,
    annotations: Path | None = None,
    export: bool = False,
    run: RunOptions = DEFAULT_RUN,
) -> SlideResult:
    """Plan the slide's patches and write them to its run folder in `out`, with a picture of the tissue kept.

    `annotations` is a folder of outlines that label the patches, <slide name>.geojson or one of the other names of
    slides/annotations/files.py. `export` writes each patch as a PNG too. Raises a WsiError whose text says why; an
    earlier result of the same recipe is left as it is, an interrupted one goes on from its last block of PNGs.
    """
    watch = Stopwatch()
    with watch("open"):
        opened = open_entry(slide, run)
        path = slide.path if isinstance(slide, SlideEntry) else slide
        outlines = outlines_of(annotations, path, opened.name) if annotations else None
        recipe = tile_recipe(opened, config, outlines, export)
        folder = out / opened.name
        store = find_run(folder, recipe_key(recipe), run.overwrite)
        if store and store.is_complete:
            return finished_result(folder)
    with watch("overview"), opened.fails_if_changed():
        overview = overview_of(opened, config, run)
    with watch("plan"):
        plan, warnings, labels = overview.plan, list(overview.warnings), None
        if outlines:
            drawn = outlines_on_slide(outlines, opened, config.annotations)
            labels = label_patches(plan, drawn, config.annotations)
            warnings += drawn.warnings
            if not drawn.found and not config.annotations.annotated_throughout:
                warnings.append(f"{outlines} holds no outlines; the patches are not labelled")
        elif annotations:
            warnings.append(
                f"no annotations: found neither {opened.name}.geojson nor {path.name}.geojson (or .geojson.gz) in "
                f"{annotations}; the patches are not labelled"
            )
        table = PatchTable(*patch_positions(plan), labels)
    with watch("write"):
        store = store or new_store(folder, recipe, opened, overview, table)
        render_overview(folder, overview)
    counts = count(plan, status=None, labels=labels)
    if export:
        with watch("export"), opened.fails_if_changed():
            place = folder / EXPORT_FOLDER / opened.name
            counts["unreadable"] = write_patches(opened, plan, labels, place, run.progress)
    return finish(folder, store, summarise(opened, overview, recipe, counts, watch, warnings))


def tile_recipe(slide: Slide, config: TileConfig, outlines: Path | None, export: bool) -> dict[str, Any]:
    """All that decides what `tile_slide` makes of a slide."""
    return {
        "command": "tile-slides",
        "slide": slide_info(slide),
        "options": options_to_dict(config),
        "annotations": file_sha256(outlines) if outlines else None,
        "export": export,
    }
