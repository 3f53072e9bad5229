"""The flow of one slide, written once: open, find tissue, plan, classify, stitch, context, delineate, render."""

import ctypes
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.ahead import SlideAhead
from wsi_pipeline.annotations import label_patches, read_outlines
from wsi_pipeline.classify import Classifier, Ensemble, classify_blocks
from wsi_pipeline.config import InferConfig, TileConfig
from wsi_pipeline.context import ContextStep, apply_context
from wsi_pipeline.delineate import choose_fields, delineate, qupath_origin0, rasterise, regions_to_geojson
from wsi_pipeline.drift import StainDrift, patch_densities, sample_patches, stain_drift
from wsi_pipeline.errors import ScaleError, UnreadableSlideError
from wsi_pipeline.files import OutPath, write_json
from wsi_pipeline.grid import GridOptions, Plan
from wsi_pipeline.options import options_to_dict
from wsi_pipeline.patches import patch_positions, write_patches
from wsi_pipeline.pictures import FinishedMap, draw_map
from wsi_pipeline.render import render_tissue
from wsi_pipeline.run_folder import EXPORT_FOLDER, SlideResult, clear_outputs, find_run, finished_result
from wsi_pipeline.slide import Slide, open_slide
from wsi_pipeline.stain import stain_gain_of
from wsi_pipeline.stitch import Status, commit_blocks, initial_status
from wsi_pipeline.store import STORE_NAME, PatchTable, SlideStore, create_store
from wsi_pipeline.summary import (
    Stopwatch,
    count,
    file_sha256,
    mean_uncertainty,
    model_facts,
    recipe_key,
    region_facts,
    slide_facts,
    store_attributes,
    summarise,
)
from wsi_pipeline.survey import Survey, survey_slide, too_unreadable

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    from wsi_pipeline.model import Model

log = logging.getLogger(__name__)

# The kinds of map, in the words of pictures and summary.
ALONE = "each patch alone"
IN_CONTEXT = "each patch among its neighbours (context step)"
MEAN_OF_MODELS = "each patch alone, mean of {} models"

Progress = Callable[[int, int], None]
"""Called with the patches done and the patches in all."""


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
    ahead: SlideAhead | None = None,
) -> SlideResult:
    """Plan the slide's patches and write them to its run folder, with a picture of the tissue kept.

    `mpp` overrides the file's scale. `annotations` is a folder of GeoJSON outlines, <slide name>.geojson,
    that label the patches. `export` writes each patch as a PNG too. `name` is the run folder's, where it is not
    the file's. `ahead` is this slide, where it was opened ahead, or is read from a copy. Raises a WsiError whose text
    says why; an earlier result of the same recipe is left as it is, an interrupted one goes on from its last block of
    PNGs.
    """
    watch = Stopwatch()
    with watch("open"):
        slide = ahead.slide() if ahead else open_slide(path, mpp, name)
        outlines = annotations / f"{slide.name}.geojson" if annotations else None
        recipe = {
            "command": "tile-slides",
            "slide": slide_facts(slide),
            "options": options_to_dict(config),
            "annotations": file_sha256(outlines) if outlines and outlines.is_file() else None,
            "export": export,
        }
        folder = out / slide.name
        store = find_run(folder, recipe_key(recipe), overwrite)
        if store and store.is_complete:
            return finished_result(folder)
    with watch("survey"), slide.steady():
        survey = ahead.survey(config, config.grid) if ahead else survey_slide(slide, config, config.grid)
    with watch("plan"):
        x0, y0, tissue = patch_positions(survey.plan)
        warnings, labels = list(survey.warnings), None
        if outlines and outlines.is_file():
            drawn = read_outlines(outlines, config.annotations)
            labels = label_patches(survey.plan, drawn, config.annotations)
        elif outlines:
            warnings.append(f"no annotations: {outlines} does not exist; its patches are not labelled")
    with watch("write"):
        if store is None:
            table = PatchTable(x0, y0, tissue, labels)
            store = _new_store(folder, recipe, slide, survey, table, status=None)
        _render_survey(folder, survey)
    counts = count(survey.plan, status=None, labels=labels)
    if export:
        with watch("export"), slide.steady():
            counts["unreadable"] = write_patches(
                slide, survey.plan, labels, folder / EXPORT_FOLDER / slide.name, progress
            )
    _finish(folder, store, summarise(slide, survey, recipe, counts, watch, warnings))
    return SlideResult(folder, False, counts["patches"], None, watch.total, tuple(warnings))


def infer_slide(
    path: Path,
    out: OutPath,
    config: InferConfig,
    classifier: Classifier | Ensemble,
    mpp: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    ahead: SlideAhead | None = None,
) -> SlideResult:
    """Map the slide's IDC and write the map, its regions, pictures and numbers to its run folder.

    An ensemble leaves a map of its uncertainty too. `mpp` overrides the file's scale. `name` is the run folder's,
    where it is not the file's. `ahead` is this slide, where it was opened ahead, or is read from a copy. Raises a
    WsiError whose text says why; an earlier result of the same recipe is left as it is, an interrupted one goes on
    from its last chunk.
    """
    watch = Stopwatch()
    models = classifier.models
    card = models[0].card  # an ensemble's members are all of its scale
    config = replace(config, grid=grid_for_model(config.grid, card.patch_px, card.mpp))
    shown = choose_map(models, config)
    with watch("open"):
        slide = ahead.slide() if ahead else open_slide(path, mpp, name)
        recipe = _map_recipe(slide, models, config, shown)
        folder = out / slide.name
        store = find_run(folder, recipe_key(recipe), overwrite)
        if store and store.is_complete:
            return finished_result(folder)
    with watch("survey"), slide.steady():
        survey = ahead.survey(config, config.grid) if ahead else survey_slide(slide, config, config.grid)
        plan = survey.plan
    with watch("write"):
        if store is None:
            table, status = PatchTable(*patch_positions(plan), label=None), initial_status(plan)
            with_context, with_uncertainty = shown.step is not None, len(models) > 1
            store = _new_store(folder, recipe, slide, survey, table, status, with_context, with_uncertainty)
        _render_survey(folder, survey)
    with watch("stain"), slide.steady():
        sample = sample_patches(slide, plan)
        densities = patch_densities(sample)
        drift = _furthest_drift(models, densities)
    with watch("classify"), slide.steady():
        classifier = classifier.adapted(densities, sample)
        _fill(store, slide, plan, classifier, config, progress)
    with watch("context"):
        if shown.step:
            alone = store.array("patch_heatmap/0")
            store.write_heatmap(apply_context(alone, shown.step, plan.grid.patch_cells))
    with watch("stitch"):
        store.write_pyramid()
    with watch("delineate"):
        finished = _finished_map(store, slide, plan, shown, len(models), config)
        _write_regions(folder, slide, finished)
    warnings = [*survey.warnings, *shown.warnings, *_map_warnings(finished, drift)]
    with watch("render"):
        draw_map(folder, slide, survey, models, finished, warnings)
    summary = summarise(slide, survey, recipe, finished.counts, watch, warnings) | {
        "device": {
            "name": str(classifier.device),
            "precision": classifier.precision,
            "engines": classifier.engine_facts,
        },
        "map_kind": shown.kind,
        "threshold": shown.threshold,
        "stain": asdict(drift) if drift else None,
        "stain_gain": [stain_gain_of(model.card, densities) for model in models],
        **region_facts(finished.regions),
    }
    if finished.uncertainty:
        summary |= model_facts(models) | {"uncertainty": asdict(finished.uncertainty)}
    _finish(folder, store, summary)
    patches, idc_mm2 = finished.counts["patches"], summary["idc_mm2"]
    return SlideResult(folder, False, patches, idc_mm2, watch.total, tuple(warnings))


@dataclass(frozen=True)
class ShownMap:
    """Which map a run shows: its kind in words, the step that makes it, and the threshold that belongs to it."""

    kind: str
    step: ContextStep | None
    threshold: float
    warnings: tuple[str, ...] = ()


def choose_map(models: "Sequence[Model]", config: InferConfig) -> ShownMap:
    """The map that `config` and the model's card ask for; its threshold is the config's, else the card's.

    Several models show the mean of what each says of each patch alone, and the threshold is the mean of their
    cards': a context step is trained on its own network's scores, and fits no mean.

    Patches with gaps between them are shown alone, with a warning: their neighbours are not where those were
    that the step was trained on. `config.grid` is settled, as `grid_for_model` does.
    """
    if len(models) > 1:
        cards = [model.card.threshold for model in models]
        return ShownMap(
            MEAN_OF_MODELS.format(len(models)), None, config.delineate.threshold or sum(cards) / len(cards)
        )
    (model,) = models
    grid, step, warnings = config.grid, model.context if config.context else None, []
    if step and grid.stride_px and grid.patch_px and grid.stride_px > grid.patch_px:
        step = None
        warnings.append(
            f"each patch is shown alone: the model's context step needs patches side by side or overlapping, "
            f"stride_px {grid.stride_px} leaves gaps between patches of {grid.patch_px} px"
        )
    own = step.card.threshold if step else model.card.threshold
    threshold = own if config.delineate.threshold is None else config.delineate.threshold
    return ShownMap(IN_CONTEXT if step else ALONE, step, threshold, tuple(warnings))


def grid_for_model(grid: GridOptions, patch_px: int, mpp: float) -> GridOptions:
    """The grid at the model's patch size and scale: the model card rules.

    Raises ScaleError when the config's grid says another.
    """
    if grid.patch_px not in (None, patch_px) or (grid.mpp and abs(grid.mpp / mpp - 1) > 1e-6):
        raise ScaleError(
            f"the config's grid says {grid.patch_px or patch_px} px at {grid.mpp or mpp:g} um/px; the model "
            f"card expects {patch_px} px at {mpp:g} um/px; leave grid.patch_px and grid.mpp out of the "
            f"config, or take a model of that scale"
        )
    return replace(grid, patch_px=patch_px, mpp=mpp)


def _map_recipe(
    slide: Slide, models: "Sequence[Model]", config: InferConfig, shown: ShownMap
) -> dict[str, Any]:
    """All that decides the slide's map; `config.grid` is settled."""
    return {
        "command": "infer-slide",
        "slide": slide_facts(slide),
        **model_facts(models),
        # How patches are computed does not decide the map, within the tolerances of engines/choice.py ...
        "options": {name: value for name, value in options_to_dict(config).items() if name != "classify"},
        # ... but for integers: they move it so far that maps of both must not be taken for one.
        **({"precision": "int8"} if config.classify.precision == "int8" else {}),
        "map": shown.kind,
        "threshold": shown.threshold,
    }


def _furthest_drift(models: "Sequence[Model]", densities: NDArray[np.float64]) -> StainDrift | None:
    """How far the slide's stain is from the training data of the model that it is furthest from."""
    drifts = [drift for model in models if (drift := stain_drift(densities, model.card.stain))]
    return max(drifts, key=lambda drift: (drift.is_far, drift.spreads), default=None)


def _fill(
    store: SlideStore,
    slide: Slide,
    plan: Plan,
    classifier: Classifier | Ensemble,
    config: InferConfig,
    progress: Progress | None,
) -> None:
    """Classify and commit every block that is not committed yet."""
    _give_back_memory()
    grid = plan.grid
    blocks = list(plan.blocks())
    todo = store.unfinished(blocks)
    # A rim that blocks share counts in each: progress is of work, not of distinct patches.
    total = sum(len(block.patches) for block in blocks)
    done = total - sum(len(block.patches) for block in todo)
    if progress:
        progress(done, total)
    scored = classify_blocks(
        todo, grid, lambda box: slide.read_readable(box, grid.plane), classifier, config.classify
    )
    for block in commit_blocks(scored, plan, store, slide.check_unchanged):
        done += len(block.patches)
        if progress:
            progress(done, total)


def _give_back_memory() -> None:
    """To the system, what survey and store needed for a moment: the C library would keep it beside what comes now."""
    with suppress(AttributeError, OSError, TypeError):  # not GNU's C library
        ctypes.CDLL(None).malloc_trim(0)


def _finished_map(
    store: SlideStore, slide: Slide, plan: Plan, shown: ShownMap, models: int, config: InferConfig
) -> FinishedMap:
    """The map that the store holds, made by so many models, and what lies above the threshold on it.

    Raises UnreadableSlideError where more of it than the config allows could not be decoded.
    """
    heatmap, plane = store.array("heatmap/0"), plan.grid.map_plane
    counts = count(plan, store.array("labels/status/0"))
    _check_unreadable(slide, counts["cells"], config.max_unreadable)
    regions = delineate(heatmap, plane, slide.mpp, shown.threshold, config.delineate)
    fields = choose_fields(heatmap, plane, slide.mpp, regions, config.delineate)
    finished = FinishedMap(heatmap, plane, shown.kind, shown.threshold, regions, fields, counts)
    if models == 1:
        return finished
    deviation, in_regions = store.array("uncertainty/0"), rasterise(regions, plane, heatmap.shape)
    return replace(finished, deviation=deviation, uncertainty=mean_uncertainty(models, deviation, in_regions))


def _write_regions(folder: OutPath, slide: Slide, finished: FinishedMap) -> None:
    origin0 = qupath_origin0(slide.properties, slide.size0)
    write_json(folder / "regions.geojson", regions_to_geojson(finished.regions, finished.fields, origin0))


def _map_warnings(finished: FinishedMap, drift: StainDrift | None) -> list[str]:
    warnings = [drift.warning] if drift and drift.is_far else []
    if lost := finished.counts["cells"]["unreadable"]:
        warnings.append(f"{lost} cells of the map could not be decoded and are not scored")
    return warnings


def _new_store(
    folder: OutPath,
    recipe: dict[str, Any],
    slide: Slide,
    survey: Survey,
    patches: PatchTable,
    status: NDArray[np.uint8] | None,
    with_context: bool = False,
    with_uncertainty: bool = False,
) -> SlideStore:
    return create_store(
        folder / STORE_NAME,
        store_attributes(recipe),
        survey.plan,
        slide.mpp,
        survey.labels,
        survey.tissue.plane,
        patches,
        status,
        with_context,
        with_uncertainty,
        clear=lambda: clear_outputs(folder),
    )


def _finish(folder: OutPath, store: SlideStore, summary: dict[str, Any]) -> None:
    """Write the summary, and then say that the run is complete."""
    log.debug("stage finish")
    write_json(folder / "summary.json", summary)
    store.finish()


def _render_survey(folder: OutPath, survey: Survey) -> None:
    tissue, rejected = survey.masks_on_thumbnail()
    render_tissue(folder / "tissue.png", survey.thumbnail.rgb, tissue, rejected, survey.tissue.reason)


def _check_unreadable(slide: Slide, cells: dict[str, int], allowed: float) -> None:
    scored, unreadable = (cells[status.name.lower()] for status in (Status.SCORED, Status.UNREADABLE))
    if unreadable > allowed * (scored + unreadable):
        raise UnreadableSlideError(too_unreadable(slide, unreadable / (scored + unreadable), allowed))
