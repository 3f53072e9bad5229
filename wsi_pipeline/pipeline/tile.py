"""The flow of one slide in `tile-slides`: open, find tissue, plan, write."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.files import OutPath, names
from wsi_pipeline.inference.stain_check import sampled_cells, slide_densities
from wsi_pipeline.pipeline.config import TileConfig
from wsi_pipeline.pipeline.identity import map_key_of, patches_report, wanted_patches
from wsi_pipeline.pipeline.run import (
    DEFAULT_RUN,
    RunOptions,
    finish,
    new_store,
    open_entry,
    overview_of,
    render_overview,
    same_plan,
)
from wsi_pipeline.results.provenance import file_sha256, plan_info, store_attributes
from wsi_pipeline.results.run_folder import (
    EXPORT_FOLDER,
    SlideResult,
    begin_report,
    find_run,
    finished_result,
    is_finished,
    read_summary,
    why_draw,
)
from wsi_pipeline.results.store import PatchTable
from wsi_pipeline.results.summary import Stopwatch, count, patch_mpp, summarise
from wsi_pipeline.slides.annotations.cell_labels import drawn_on_slide
from wsi_pipeline.slides.annotations.files import labels_beside
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.export import count_exported, export_names, write_patches
from wsi_pipeline.tiling.export_info import EXPORT_FILE, ExportInfo
from wsi_pipeline.tiling.grid import Plan
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
    slides/annotations/files.py. `export` writes each patch as a PNG too. Of an earlier result of the same patches
    nothing is done, or what is missing beside them is made; an interrupted run goes on from its last block of PNGs.
    Raises a WsiError whose text says why.
    """
    watch = Stopwatch()
    with watch("open"):
        opened = open_entry(slide, run)
        path = slide.path if isinstance(slide, SlideEntry) else slide
        outlines = labels_beside(annotations, path, opened.name) if annotations else None
        wanted, folder = wanted_patches(opened, config, _hash_of(outlines)), out / opened.name
        store, drawn_again = find_run(folder, wanted.differences, run.overwrite), ""
        if store:
            why = why_tile_again(folder, patches_report(map_key_of(store), opened, config, export))
            if why is None:
                return finished_result(folder)
            drawn_again = why
    with watch("overview"), opened.fails_if_changed():
        overview = overview_of(opened, config, run)
    with watch("plan"):
        plan, warnings, labels = overview.plan, list(overview.warnings), None
        if outlines:
            drawn = drawn_on_slide(outlines, opened, config.annotations)
            labels = label_patches(plan, drawn, config.annotations)
            warnings += drawn.warnings
            if not drawn.found and not config.annotations.annotated_throughout:
                warnings.append(f"{outlines} holds no outlines; the patches are not labelled")
        elif annotations:
            warnings.append(
                f"no annotations: found neither {opened.name}.geojson nor {path.name}.geojson (or .geojson.gz, .xml), "
                f"nor {opened.name}_mask.png (or .tif) in {annotations}; the patches are not labelled"
            )
        table = PatchTable(*patch_positions(plan), labels)
    store = same_plan(store, plan, folder, run)
    with watch("write"):
        if store is None:
            recipe = wanted.recipe | {"plan": plan_info(plan)}
            attributes, drawn_again = store_attributes(recipe, {}, {}), ""
            store = new_store(folder, attributes, opened, overview, table)
        begin_report(folder)
        render_overview(folder, opened, overview)
    counts = count(plan, status=None, labels=labels)
    if export:
        with watch("export"), opened.fails_if_changed():
            place = folder / EXPORT_FOLDER / opened.name
            counts["unreadable"] = write_patches(
                opened, plan, labels, place, _export_info(opened, plan, labels), run.progress
            )
    recipes = (store.map_recipe or {}, patches_report(map_key_of(store), opened, config, export))
    return finish(folder, summarise(opened, overview, recipes, counts, watch, warnings), drawn_again)


def _export_info(slide: Slide, plan: Plan, labels: NDArray[np.int8] | None) -> ExportInfo:
    """What the slide's exported patches are; its stain measured as infer-slide measures it."""
    densities = slide_densities(slide, plan)  # [n, 3]
    mean = None
    if len(densities):
        red, green, blue = densities.mean(axis=0).tolist()
        mean = (red, green, blue)
    grid = plan.grid
    return ExportInfo(
        slide.name,
        slide.fingerprint(),
        grid.patch_px,
        grid.stride_px,
        patch_mpp(slide, plan),
        mean,
        len(densities),
        export_names(slide.name, plan, labels, sampled_cells(plan)),
    )


def _hash_of(outlines: Path | None) -> str | None:
    return file_sha256(outlines) if outlines else None


def why_tile_again(folder: OutPath, report: dict[str, Any]) -> str | None:
    """As `why_draw` says of a map; PNGs that nobody asks for may lie there, and those asked for must."""
    found = read_summary(folder) if is_finished(folder) else {}
    exported = bool(found.get("report_recipe", {}).get("export"))
    wanted = bool(report["export"])
    why = why_draw(folder, report | {"export": exported or wanted}, ("tissue.png",))
    if why is not None or not wanted:
        return why
    counts, place = found["counts"], folder / EXPORT_FOLDER / found["map_recipe"]["slide"]["name"]
    if EXPORT_FILE not in names(place):
        return f"missing: {EXPORT_FILE} beside the exported patches"
    missing = counts["patches"] - counts["unreadable"] - count_exported(place)
    return f"missing: {missing} exported patches" if missing > 0 else None
