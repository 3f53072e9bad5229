"""The flow of one slide in `tile-slides`: open, find tissue, plan, write."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.text import counted
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
from wsi_pipeline.slides.names import fault_of_name
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.export import count_exported, export_names, write_patches
from wsi_pipeline.tiling.export_draw import (
    ONE_SLIDE,
    Draw,
    ExportOptions,
    SlideOfPatient,
    draw_patches,
    export_recipe,
    kept_options,
)
from wsi_pipeline.tiling.export_info import EXPORT_FILE, ExportInfo, read_export
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.patch_labels import label_patches, rejected_labels
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
    slides/annotations/files.py. `export` writes patches too, as `config.export` says. Of an earlier result of the same
    patches nothing is done, or what is missing beside them is made; an interrupted run goes on from its last block of
    PNGs, or its last shard.
    Raises a WsiError whose text says why.
    """
    watch = Stopwatch()
    with watch("open"):
        opened = open_entry(slide, run)
        path = slide.path if isinstance(slide, SlideEntry) else slide
        outlines = labels_beside(annotations, path, opened.name) if annotations else None
        whose = whose_slide(slide) if isinstance(slide, SlideEntry) else ONE_SLIDE
        exported = export_recipe(config.export, whose) if export else None
        wanted, folder = wanted_patches(opened, config, _hash_of(outlines)), out / opened.name
        store, drawn_again = find_run(folder, wanted.differences, run.overwrite), ""
        if store:
            why = why_tile_again(folder, patches_report(map_key_of(store), opened, config, exported))
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
            warnings += [*drawn.warnings, *filter(None, [rejected_labels(plan, labels)])]
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
            info, draw = _export_info(opened, plan, labels, config.export, whose)
            place = folder / EXPORT_FOLDER / _folder_of(info)
            warnings += [words for words in (*_patient_warnings(info), draw.words) if words]
            lost = write_patches(opened, plan, labels, place, info, run.progress, draw.chosen)
            counts |= {"exported": sum(draw.patches.values()) - lost, "unreadable": lost}
    recipes = (store.map_recipe or {}, patches_report(map_key_of(store), opened, config, exported))
    return finish(folder, summarise(opened, overview, recipes, counts, watch, warnings), drawn_again)


def _export_info(
    slide: Slide, plan: Plan, labels: NDArray[np.int8] | None, opts: ExportOptions, whose: SlideOfPatient
) -> tuple[ExportInfo, Draw]:
    """What the slide's exported patches are; its stain measured as infer-slide measures it."""
    draw = draw_patches(plan, labels, opts, whose, slide.fingerprint())
    densities = slide_densities(slide, plan)  # [n, 3]
    mean = None
    if len(densities):
        red, green, blue = densities.mean(axis=0).tolist()
        mean = (red, green, blue)
    grid = plan.grid
    info = ExportInfo(
        slide.name,
        slide.fingerprint(),
        grid.patch_px,
        grid.stride_px,
        patch_mpp(slide, plan),
        mean,
        len(densities),
        patient=whose.patient,
        options=kept_options(export_recipe(opts, whose)),
        patches=draw.patches,
        left_out=draw.left_out,
    )
    if opts.format != "shards":
        info = replace(info, sample=export_names(info, plan, labels, sampled_cells(plan)))
    return info, draw


def whose_slide(entry: SlideEntry) -> SlideOfPatient:
    """Whose slide it is, as the list of slides says."""
    return SlideOfPatient(entry.patient, *entry.of_patient)


def _folder_of(info: ExportInfo) -> str:
    """The folder of the slide's patches: its own name, or its patient's in the IDC set's layout. Raises DataError."""
    if info.format != "idc" or not info.patient:
        return info.slide
    if fault := fault_of_name(info.patient):
        raise DataError(
            f"patient '{info.patient}': {fault}; expected a name that a folder can have: give another in the CSV of "
            "slides, or by --patient-pattern"
        )
    return info.patient


def _patient_warnings(info: ExportInfo) -> list[str]:
    """What readers of the IDC set may take wrongly."""
    if info.format != "idc":
        return []
    name, found = info.patient or info.slide, []
    if not info.patient:
        found.append(
            f"export: the patient is not known, the slide's name stands for it in folders and names ({name}); "
            "--patient-pattern, or a CSV of slides with the column patient, says it"
        )
    if "_" in name:
        found.append(
            f"export: the name {name} does not fit the public IDC set, whose patients are numbers: programs that take "
            f"the patient from before the first _ of a file's name read '{name.split('_')[0]}'"
        )
    return found


def _hash_of(outlines: Path | None) -> str | None:
    return file_sha256(outlines) if outlines else None


def why_tile_again(folder: OutPath, report: dict[str, Any]) -> str | None:
    """As `why_draw` says of a map; exported patches that nobody asks for may lie there, and those asked for must."""
    found = read_summary(folder) if is_finished(folder) else {}
    wanted = report["export"]
    exported = found.get("report_recipe", {}).get("export")
    there = {"export": exported or False} if wanted is False or not exported else {}
    why = why_draw(folder, report | there, ("tissue.png",))
    if why is not None or wanted is False:
        return why
    if not exported:
        return "the patches were not exported"
    slide = found["map_recipe"]["slide"]["name"]
    name = wanted["patient"] if wanted["format"] == "idc" and wanted["patient"] else slide
    place = folder / EXPORT_FOLDER / name
    info = read_export(place)
    if info is None:
        return f"missing: {EXPORT_FILE} beside the exported patches"
    missing = found["counts"]["exported"] - count_exported(place, info)
    return f"missing: {counted(missing, 'exported patch')}" if missing > 0 else None
