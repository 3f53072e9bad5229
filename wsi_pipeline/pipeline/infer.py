"""The flow of one slide, written once: open, find tissue, plan, classify, stitch, context, delineate, render."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import UnreadableSlideError
from wsi_pipeline.base.files import OutPath, write_json
from wsi_pipeline.base.memory import release_free_memory
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.base.types import Progress
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import classify_blocks
from wsi_pipeline.inference.stain_check import StainCheck, check_stain, sample_patches
from wsi_pipeline.models.context import apply_context
from wsi_pipeline.models.stain import patch_densities, stain_gain_of
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.maps import ShownMap, choose_map, grid_for_model
from wsi_pipeline.pipeline.run import (
    DEFAULT_RUN,
    RunOptions,
    finish,
    new_store,
    open_entry,
    overview_of,
    render_overview,
)
from wsi_pipeline.results.commit import commit_blocks
from wsi_pipeline.results.fields import choose_fields
from wsi_pipeline.results.figures.slide_figures import draw_map
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.geojson import regions_to_geojson
from wsi_pipeline.results.provenance import model_info, recipe_key, slide_info
from wsi_pipeline.results.regions import delineate, rasterise
from wsi_pipeline.results.run_folder import SlideResult, find_run, finished_result
from wsi_pipeline.results.store import PatchTable, SlideStore
from wsi_pipeline.results.summary import Stopwatch, count, mean_uncertainty, region_info, summarise
from wsi_pipeline.slides.annotations.geojson import qupath_origin0
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.overview import too_unreadable
from wsi_pipeline.tiling.patches import patch_positions

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    from wsi_pipeline.models.model import Model


def infer_slide(
    slide: SlideEntry | Path,
    out: OutPath,
    config: InferConfig,
    classifier: Classifier,
    run: RunOptions = DEFAULT_RUN,
) -> SlideResult:
    """Map the slide's IDC and write the map, its regions, pictures and numbers to its run folder in `out`.

    An ensemble leaves a map of its uncertainty too. Raises a WsiError whose text says why; an earlier result of the
    same recipe is left as it is, an interrupted one goes on from its last chunk.
    """
    watch, models = Stopwatch(), classifier.models
    config = replace(config, grid=grid_for_model(config.grid, classifier.card.patch_px, classifier.card.mpp))
    shown = choose_map(models, config)
    with watch("open"):
        opened = open_entry(slide, run)
        recipe, folder = map_recipe(opened, models, config, shown), out / opened.name
        store = find_run(folder, recipe_key(recipe), run.overwrite)
        if store and store.is_complete:
            return finished_result(folder)
    with watch("overview"), opened.fails_if_changed():
        overview = overview_of(opened, config, run)
        plan = overview.plan
    with watch("write"):
        if store is None:
            patches = PatchTable(*patch_positions(plan), label=None)
            store = new_store(folder, recipe, opened, overview, patches, _maps_of(shown, models))
        render_overview(folder, overview)
    with watch("stain"), opened.fails_if_changed():
        stain = _measure_stain(opened, plan, models)
    with watch("classify"), opened.fails_if_changed():
        classifier = classifier.adapted(stain.densities, stain.sample)
        fill_store(store, opened, plan, classifier, config, run.progress)
    with watch("context"):
        if shown.step:
            patch_probability = store.array("patch_heatmap/0")
            store.write_heatmap(apply_context(patch_probability, shown.step, plan.grid.patch_cells))
    with watch("stitch"):
        store.write_pyramid()
    with watch("delineate"):
        finished = _finished_map(store, opened, plan, shown, len(models), config)
        _write_regions(folder, opened, finished)
        warnings = [*overview.warnings, *shown.warnings, *_map_warnings(finished, stain.check)]
    with watch("render"):
        draw_map(folder, opened, overview, models, finished, warnings)
    summary = summarise(opened, overview, recipe, finished.counts, watch, warnings)
    return finish(folder, store, summary | _map_info(classifier, finished, stain))


def fill_store(
    store: SlideStore,
    slide: Slide,
    plan: Plan,
    classifier: Classifier,
    config: InferConfig,
    progress: Progress | None = None,
) -> None:
    """Classify and commit every block that is not committed yet.

    Raises what `classify_blocks` and `commit_blocks` raise; what was committed stays.
    """
    release_free_memory()  # of overview and store
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


def map_recipe(
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


def _maps_of(shown: ShownMap, models: "Sequence[Model]") -> tuple[str, ...]:
    """The maps that the store has room for."""
    patch_heatmap = ("patch_heatmap",) if shown.step else ()
    uncertainty = ("uncertainty",) if len(models) > 1 else ()
    return ("heatmap", *patch_heatmap, *uncertainty)


@dataclass(frozen=True, eq=False)
class _SlideStain:
    """How a slide is stained, on some of its patches."""

    sample: NDArray[np.uint8]
    """[n, S, S, 3], the patches as they are."""

    densities: NDArray[np.float64]
    """[n, 3], mean optical density of each."""

    check: StainCheck | None
    """How far they are from the training data of the model that they are furthest from; None: no card knows."""


def _measure_stain(slide: Slide, plan: Plan, models: "Sequence[Model]") -> _SlideStain:
    sample = sample_patches(slide, plan)
    densities = patch_densities(sample)
    checks = [check for model in models if (check := check_stain(densities, model.card.stain))]
    return _SlideStain(
        sample, densities, max(checks, key=lambda check: (check.is_far, check.spreads), default=None)
    )


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


def _check_unreadable(slide: Slide, cells: dict[str, int], allowed: float) -> None:
    scored, unreadable = (cells[status.name.lower()] for status in (Status.SCORED, Status.UNREADABLE))
    if unreadable > allowed * (scored + unreadable):
        raise UnreadableSlideError(too_unreadable(slide, unreadable / (scored + unreadable), allowed))


def _write_regions(folder: OutPath, slide: Slide, finished: FinishedMap) -> None:
    origin0 = qupath_origin0(slide.properties, slide.size0)
    write_json(folder / "regions.geojson", regions_to_geojson(finished.regions, finished.fields, origin0))


def _map_warnings(finished: FinishedMap, stain_check: StainCheck | None) -> list[str]:
    warnings = [stain_check.warning] if stain_check and stain_check.is_far else []
    if lost := finished.counts["cells"]["unreadable"]:
        warnings.append(f"{lost} cells of the map could not be decoded and are not scored")
    return warnings


def _map_info(classifier: Classifier, finished: FinishedMap, stain: _SlideStain) -> dict[str, Any]:
    """What summary.json says of the map, beside what it says of any run."""
    models = classifier.models
    info = {
        "device": {
            "name": str(classifier.device),
            "precision": classifier.precision,
            "engines": classifier.engine_info,
        },
        "map_kind": finished.kind,
        "threshold": finished.threshold,
        "stain": asdict(stain.check) if stain.check else None,
        "stain_gain": [stain_gain_of(model.card, stain.densities) for model in models],
        **region_info(finished.regions),
    }
    if finished.uncertainty:
        info |= model_info(models) | {"uncertainty": asdict(finished.uncertainty)}
    return info
