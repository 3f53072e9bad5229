"""The flow of one slide in `tile-slides`: open, find tissue, plan, write."""

from pathlib import Path

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
from wsi_pipeline.slides.annotations.geojson import read_outlines
from wsi_pipeline.slides.catalog import SlideEntry
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

    `annotations` is a folder of GeoJSON outlines, <slide name>.geojson, that label the patches. `export` writes each
    patch as a PNG too. Raises a WsiError whose text says why; an earlier result of the same recipe is left as it is,
    an interrupted one goes on from its last block of PNGs.
    """
    watch = Stopwatch()
    with watch("open"):
        opened = open_entry(slide, run)
        outlines = annotations / f"{opened.name}.geojson" if annotations else None
        labelled = outlines is not None and outlines.is_file()
        recipe = {
            "command": "tile-slides",
            "slide": slide_info(opened),
            "options": options_to_dict(config),
            "annotations": file_sha256(outlines) if outlines and labelled else None,
            "export": export,
        }
        folder = out / opened.name
        store = find_run(folder, recipe_key(recipe), run.overwrite)
        if store and store.is_complete:
            return finished_result(folder)
    with watch("overview"), opened.fails_if_changed():
        overview = overview_of(opened, config, run)
    with watch("plan"):
        plan, warnings, labels = overview.plan, list(overview.warnings), None
        if outlines and labelled:
            drawn = read_outlines(outlines, config.annotations)
            labels = label_patches(plan, drawn, config.annotations)
        elif outlines:
            warnings.append(f"no annotations: {outlines} does not exist; its patches are not labelled")
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
