"""The flow of one slide, written once: open, find tissue, plan, classify, stitch, context, delineate, render."""

import ctypes
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import UnreadableSlideError
from wsi_pipeline.base.files import OutPath, write_json
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.base.types import Progress
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import classify_blocks
from wsi_pipeline.inference.stain_check import StainCheck, check_stain, sample_patches
from wsi_pipeline.models.context import apply_context
from wsi_pipeline.models.stain import patch_densities, stain_gain_of
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.maps import ShownMap, choose_map, grid_for_model
from wsi_pipeline.pipeline.prefetch import PrefetchedSlide
from wsi_pipeline.pipeline.run import finish, new_store, render_overview
from wsi_pipeline.results.commit import commit_blocks
from wsi_pipeline.results.fields import choose_fields
from wsi_pipeline.results.figures.slide_figures import FinishedMap, draw_map
from wsi_pipeline.results.geojson import qupath_origin0, regions_to_geojson
from wsi_pipeline.results.provenance import (
    model_info,
    recipe_key,
    slide_info,
)
from wsi_pipeline.results.regions import delineate, rasterise
from wsi_pipeline.results.run_folder import (
    SlideResult,
    find_run,
    finished_result,
)
from wsi_pipeline.results.store import PatchTable, SlideStore
from wsi_pipeline.results.summary import Stopwatch, count, mean_uncertainty, region_info, summarise
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.cell_status import Status, initial_status
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.overview import make_overview, too_unreadable
from wsi_pipeline.tiling.patches import patch_positions

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    from wsi_pipeline.models.model import Model

log = logging.getLogger(__name__)


def infer_slide(
    path: Path,
    out: OutPath,
    config: InferConfig,
    classifier: Classifier,
    mpp: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    ahead: PrefetchedSlide | None = None,
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
    with watch("survey"), slide.fails_if_changed():
        overview = (
            ahead.overview(config.overview, config.grid)
            if ahead
            else make_overview(slide, config.overview, config.grid)
        )
        plan = overview.plan
    with watch("write"):
        if store is None:
            table, status = PatchTable(*patch_positions(plan), label=None), initial_status(plan)
            with_context, with_uncertainty = shown.step is not None, len(models) > 1
            store = new_store(folder, recipe, slide, overview, table, status, with_context, with_uncertainty)
        render_overview(folder, overview)
    with watch("stain"), slide.fails_if_changed():
        sample = sample_patches(slide, plan)
        densities = patch_densities(sample)
        stain_check = _furthest_stain(models, densities)
    with watch("classify"), slide.fails_if_changed():
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
    warnings = [*overview.warnings, *shown.warnings, *_map_warnings(finished, stain_check)]
    with watch("render"):
        draw_map(folder, slide, overview, models, finished, warnings)
    summary = summarise(slide, overview, recipe, finished.counts, watch, warnings) | {
        "device": {
            "name": str(classifier.device),
            "precision": classifier.precision,
            "engines": classifier.engine_info,
        },
        "map_kind": shown.kind,
        "threshold": shown.threshold,
        "stain": asdict(stain_check) if stain_check else None,
        "stain_gain": [stain_gain_of(model.card, densities) for model in models],
        **region_info(finished.regions),
    }
    if finished.uncertainty:
        summary |= model_info(models) | {"uncertainty": asdict(finished.uncertainty)}
    finish(folder, store, summary)
    patches, idc_mm2 = finished.counts["patches"], summary["idc_mm2"]
    return SlideResult(folder, False, patches, idc_mm2, watch.total, tuple(warnings))


def _map_recipe(
    slide: Slide, models: "Sequence[Model]", config: InferConfig, shown: ShownMap
) -> dict[str, Any]:
    """All that decides the slide's map; `config.grid` is settled."""
    return {
        "command": "infer-slide",
        "slide": slide_info(slide),
        **model_info(models),
        # How patches are computed does not decide the map, within the tolerances of engines/choice.py ...
        "options": {name: value for name, value in options_to_dict(config).items() if name != "classify"},
        # ... but for integers: they move it so far that maps of both must not be taken for one.
        **({"precision": "int8"} if config.classify.precision == "int8" else {}),
        "map": shown.kind,
        "threshold": shown.threshold,
    }


def _furthest_stain(models: "Sequence[Model]", densities: NDArray[np.float64]) -> StainCheck | None:
    """How far the slide's stain is from the training data of the model that it is furthest from."""
    drifts = [stain_check for model in models if (stain_check := check_stain(densities, model.card.stain))]
    return max(drifts, key=lambda stain_check: (stain_check.is_far, stain_check.spreads), default=None)


def _fill(
    store: SlideStore,
    slide: Slide,
    plan: Plan,
    classifier: Classifier,
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
    scored = classify_blocks(todo, grid, slide.reader(grid.plane), classifier, config.classify)
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


def _map_warnings(finished: FinishedMap, stain_check: StainCheck | None) -> list[str]:
    warnings = [stain_check.warning] if stain_check and stain_check.is_far else []
    if lost := finished.counts["cells"]["unreadable"]:
        warnings.append(f"{lost} cells of the map could not be decoded and are not scored")
    return warnings


def _check_unreadable(slide: Slide, cells: dict[str, int], allowed: float) -> None:
    scored, unreadable = (cells[status.name.lower()] for status in (Status.SCORED, Status.UNREADABLE))
    if unreadable > allowed * (scored + unreadable):
        raise UnreadableSlideError(too_unreadable(slide, unreadable / (scored + unreadable), allowed))
