"""The flow of one slide, written once: open, find tissue, plan, classify, stitch, context, delineate, render."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import ModelError, RecipeError, UnreadableSlideError
from wsi_pipeline.base.files import OutPath, names, remove, write_bytes
from wsi_pipeline.base.memory import release_free_memory
from wsi_pipeline.base.text import counted
from wsi_pipeline.base.types import Progress
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import classify_blocks, runs_densely
from wsi_pipeline.inference.stain_check import StainCheck, check_stain, sample_patches
from wsi_pipeline.models.context import apply_context
from wsi_pipeline.models.stain import patch_densities, stain_gain_of
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.fields import with_fields, write_fields
from wsi_pipeline.pipeline.identity import Wanted, map_key_of, map_report, wanted_map
from wsi_pipeline.pipeline.maps import ShownMap, choose_map, grid_for_model
from wsi_pipeline.pipeline.run import (
    DEFAULT_RUN,
    RunOptions,
    finish,
    inside_of,
    new_store,
    open_entry,
    overview_of,
    render_overview,
    same_plan,
)
from wsi_pipeline.results.commit import commit_blocks
from wsi_pipeline.results.exports.exported_map import ExportedMap
from wsi_pipeline.results.exports.formats import ExportName, exports_in, files_of, missing_packages
from wsi_pipeline.results.exports.written import write_exports
from wsi_pipeline.results.figures.fonts import script_warnings
from wsi_pipeline.results.figures.maps import heatmap_place
from wsi_pipeline.results.figures.slide_figures import draw_map, model_words
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.geojson import geojson_text, regions_to_geojson
from wsi_pipeline.results.provenance import file_sha256, model_names, store_attributes
from wsi_pipeline.results.regions import TissueMask, delineate, rasterise
from wsi_pipeline.results.run_folder import (
    OUTPUTS,
    SHEET,
    SlideResult,
    begin_report,
    find_run,
    finished_result,
    why_draw,
)
from wsi_pipeline.results.store import PatchTable, SlideStore
from wsi_pipeline.results.summary import (
    Stopwatch,
    count,
    field_info,
    inside_info,
    mean_uncertainty,
    region_info,
    score_info,
    summarise,
)
from wsi_pipeline.slides.annotations.cell_labels import inside_on_slide
from wsi_pipeline.slides.annotations.geojson import Inside, qupath_origin0
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.cell_status import Status, initial_status
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.inside import within
from wsi_pipeline.tiling.overview import Overview, too_unreadable
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

    An ensemble leaves a map of its uncertainty too. Of an earlier result of the same map and report nothing is done;
    of the same map, but another threshold, say, or a missing picture, what lies beside it is made again; an interrupted
    map goes on from its last chunk. Raises a WsiError whose text says why.
    """
    watch, models = Stopwatch(), classifier.models
    config = replace(config, grid=grid_for_model(config.grid, classifier.card.patch_px, classifier.card.mpp))
    shown = choose_map(models, config)
    with watch("open"):
        opened = open_entry(slide, run)
        drawn = inside_of(run.inside, opened)
        wanted = wanted_map(opened, models, config, shown, file_sha256(drawn) if drawn else None)
        folder = out / opened.name
        store, drawn_again = find_run(folder, wanted.differences, run.overwrite), ""
        if store and store.is_complete:
            why = why_draw_map(folder, store, opened, models, (config, shown))
            if why is None:
                return finished_result(folder)
            drawn_again = why
    with watch("overview"), opened.fails_if_changed():
        overview = overview_of(opened, config, run)
        inside = inside_on_slide(drawn, opened, config.annotations) if drawn else None
        if inside:
            overview = within(overview, inside, opened.mpp)
    store = same_plan(store, overview.plan, folder, run)
    job = _Job(folder, opened, overview, classifier, config, wanted, shown, inside)
    if store is None or not store.is_complete:
        store, drawn_again = _make_map(job, store, watch, run), ""
    else:
        render_overview(folder, opened, overview)
    return _draw_report(job, store, watch, drawn_again)


# What networks heard of a slide, and of how it looks, kept with the map from when it is begun.
HEARD = ("heads", "distance", "sampled_patches")


@dataclass(frozen=True, eq=False)
class _Job:
    """One slide, and the map that is wanted of it; `config.grid` is settled."""

    folder: OutPath
    slide: Slide
    overview: Overview
    classifier: Classifier
    config: InferConfig
    wanted: Wanted
    shown: ShownMap
    inside: Inside | None = None
    """Within which it is mapped alone; None: the whole slide."""


def _make_map(job: _Job, store: SlideStore | None, watch: Stopwatch, run: RunOptions) -> SlideStore:
    """Classify what is not classified yet, in the precision that was settled when the store was made; the whole store.

    Without a store a new one is made, and precision and dense are settled with it.
    """
    from wsi_pipeline.models.slide_input import head_of_values

    slide, plan, shown = job.slide, job.overview.plan, job.shown
    with watch("stain"), slide.fails_if_changed():
        stain = _measure_stain(slide, plan, job.classifier.models)
        # A map that goes on is of what its networks heard of the slide when it was begun.
        heard = store.attributes["computed"] if store else {}
        heads = [head_of_values(values) for values in heard.get("heads", [])]
        classifier = job.classifier.adapted(stain.densities, stain.sample, heads)
        if store:
            store, classifier = _same_precision(store, classifier, job.folder, run)
        options = job.config.classify
        if store is None:
            dense = runs_densely(plan, plan.grid.reader(slide), classifier, options)
        else:
            dense = bool((store.map_recipe or {})["dense"])
    computed = _computed(classifier, stain)
    computed |= {name: heard[name] for name in HEARD if name in heard}
    with watch("write"):
        if store is None:
            recipe = job.wanted.settled(classifier.precisions, dense, plan)
            patches = PatchTable(*patch_positions(plan), label=None)
            attributes = store_attributes(recipe, job.wanted.asked, computed)
            maps = _maps_of(shown, classifier.models)
            classes = classifier.other_classes
            store = new_store(job.folder, attributes, slide, job.overview, patches, maps, classes)
        render_overview(
            job.folder, job.slide, job.overview
        )  # early: people look at it while the slide is classified
    with watch("classify"), slide.fails_if_changed():
        config = replace(job.config, classify=replace(options, dense="require" if dense else "off"))
        fill_store(store, slide, plan, classifier, config, run.progress)
    with watch("context"):
        if shown.step:
            patch_probability = store.array("patch_heatmap/0")
            store.write_heatmap(apply_context(patch_probability, shown.step, plan.grid.patch_cells))
    with watch("stitch"):
        store.write_pyramid()
        store.write_display()
        store.finish(computed, initial_status(plan))
    return store


def _same_precision(
    store: SlideStore, classifier: Classifier, folder: OutPath, run: RunOptions
) -> tuple[SlideStore | None, Classifier]:
    """The store, and the classifier in the precisions that were settled when it was made.

    Where they cannot be had here: no store if it may be overwritten, else a RecipeError that says why not.
    """
    try:
        return store, classifier.in_precisions((store.map_recipe or {})["precision"])
    except ModelError as error:
        if run.overwrite:
            return None, classifier
        raise RecipeError(
            f"{folder}: its map was begun in another precision than this machine computes: {error}; go on with it "
            f"where that can be computed, or --overwrite to begin again"
        ) from error


def _draw_report(job: _Job, store: SlideStore, watch: Stopwatch, drawn_again: str) -> SlideResult:
    """Regions, fields, pictures and numbers of a whole map, written beside it; why again, where it was drawn before."""
    folder, slide, overview, config, shown = job.folder, job.slide, job.overview, job.config, job.shown
    models, computed = job.classifier.models, store.attributes["computed"]
    report = map_report(map_key_of(store), slide, config, shown)
    with watch("delineate"):
        finished = _finished_map(store, slide, overview, shown, len(models), config)
    with watch("fields"), slide.fails_if_changed():
        finished = with_fields(finished, slide, overview, config.fields)
        begin_report(folder)
        _write_regions(folder, slide, finished, map_key_of(store))
        exports, not_again = _exports_of(folder, config)
        warnings = [*overview.warnings, *shown.warnings, *_map_warnings(finished, computed)]
        warnings += [*script_warnings(slide.name), *not_again]
    with (
        watch("render"),
        slide.fails_if_changed(),
        ThreadPoolExecutor(1, thread_name_prefix="fields") as beside,
    ):
        fields = beside.submit(write_fields, folder, slide, overview, finished, config.fields)
        draw_map(folder, slide, overview, models, finished, warnings, inside_info(job.inside, slide.mpp))
        fields.result()
    recipes = (store.map_recipe or {}, report)
    summary = summarise(slide, overview, recipes, finished.counts, watch, warnings)
    summary |= _map_info(models, finished, computed, config)
    summary |= region_info(finished.regions, overview.tissue_mm2(slide.mpp), slide.mpp)
    summary["model_words"] = model_words(models)
    summary["registered"] = [model.registered or None for model in models]
    summary["scores"] = score_info(
        _patch_scores(store, shown),
        models,
        (config.grid.stride_px or config.grid.patch_px) == config.grid.patch_px,
    )
    summary["inside"] = inside_info(job.inside, slide.mpp)
    summary["heatmap_png"] = heatmap_place(finished, slide.size0, slide.mpp)
    with watch("export"):
        exported = ExportedMap(slide.name, slide.path, finished, summary, overview.thumbnail)
        write_exports(folder, exports, exported)
    summary["seconds"] = watch.seconds | {"total": watch.total}
    return finish(folder, summary, drawn_again)


def _exports_of(folder: OutPath, config: InferConfig) -> tuple[set[ExportName], list[str]]:
    """What to export: what is asked for, and again what lies there of another report; warnings where that cannot be."""
    there = exports_in(names(folder)) - set(config.exports)
    cannot = {name for name in there if missing_packages(name)}
    for file in files_of(cannot):
        remove(folder / file)
    warnings = [
        f"{', '.join(files_of([name]))} of an earlier report was removed: to write it again needs "
        f"{' and '.join(missing_packages(name))}, which is not installed"
        for name in sorted(cannot)
    ]
    return {*config.exports, *(there - cannot)}, warnings


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
    scored = classify_blocks(todo, grid, grid.reader(slide), classifier, config.classify)
    for block in commit_blocks(scored, plan, store, slide.check_unchanged):
        done += len(block.patches)
        if progress:
            progress(done, total)


def why_draw_map(
    folder: OutPath,
    store: SlideStore,
    slide: Slide,
    models: "Sequence[Model]",
    how: tuple[InferConfig, ShownMap],
) -> str | None:
    """Why what lies beside a whole map is to be made again, as `why_draw`; how: its config and which map is shown."""
    needed = [name for name in OUTPUTS if name != "uncertainty.png" or len(models) > 1]
    needed += files_of(how[0].exports)
    if not how[0].fields.count:
        needed.remove(SHEET)
    return why_draw(folder, map_report(map_key_of(store), slide, *how), needed)


def _patch_scores(store: SlideStore, shown: ShownMap) -> NDArray[np.float32]:
    """Of each cell what its patches alone say, [row, column], NaN where not scored."""
    return store.array("patch_heatmap/0" if shown.step else "heatmap/0")


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
    store: SlideStore, slide: Slide, overview: Overview, shown: ShownMap, models: int, config: InferConfig
) -> FinishedMap:
    """The map that the store holds, made by so many models, and what lies above the threshold on it.

    Raises UnreadableSlideError where more of it than the config allows could not be decoded.
    """
    plan = overview.plan
    heatmap, plane, status = store.array("heatmap/0"), plan.grid.map_plane, store.array("labels/status/0")
    counts = count(plan, status)
    _check_unreadable(slide, counts["cells"], config.max_unreadable)
    tissue = TissueMask(overview.labels == 1, overview.tissue.plane, status == Status.BACKGROUND)
    regions = delineate(heatmap, plane, slide.mpp, shown.threshold, config.delineate, tissue, slide.size0)
    finished = FinishedMap(heatmap, plane, shown.kind, shown.threshold, regions, counts, status=status)
    if models == 1:
        return finished
    deviation, in_regions = store.array("uncertainty/0"), rasterise(regions, plane, heatmap.shape)
    return replace(finished, deviation=deviation, uncertainty=mean_uncertainty(models, deviation, in_regions))


def _check_unreadable(slide: Slide, cells: dict[str, int], allowed: float) -> None:
    scored, unreadable = (cells[status.name.lower()] for status in (Status.SCORED, Status.UNREADABLE))
    if unreadable > allowed * (scored + unreadable):
        raise UnreadableSlideError(too_unreadable(slide, unreadable / (scored + unreadable), allowed))


def _write_regions(folder: OutPath, slide: Slide, finished: FinishedMap, map_key: str) -> None:
    origin0 = qupath_origin0(slide.properties, slide.size0)
    choice = finished.choice
    collection = regions_to_geojson(finished.regions, choice.fields, origin0, map_key, choice.hot_spots)
    write_bytes(folder / "regions.geojson", geojson_text(collection).encode())


def _map_warnings(finished: FinishedMap, computed: dict[str, Any]) -> list[str]:
    """What people must know of the map; `computed` is as `_computed` gives it."""
    check = StainCheck(**computed["stain"]) if computed["stain"] else None
    warnings = [check.warning] if check and check.is_far else []
    far = max((distance for distance in computed.get("distance", []) if distance is not None), default=0.0)
    if far > 1:
        warnings.append(
            f"the slide looks unlike the model's training slides (its patches lie {far:.1f} times as far off as the "
            f"farthest usual one of them); its probabilities were never measured on such slides"
        )
    if why := next(filter(None, computed.get("stain_left_as_is", [])), ""):
        warnings.append(f"the slide's stain was not normalised as the model's card asks: {why}")
    if lost := finished.counts["cells"]["unreadable"]:
        warnings.append(f"{counted(lost, 'cell')} of the map could not be decoded: not scored")
    return [*warnings, *finished.choice.warnings]


def _computed(classifier: Classifier, stain: _SlideStain) -> dict[str, Any]:
    """On what the map is computed, how far from float32, and on what stain: kept in the store for the summary."""
    from wsi_pipeline.models.slide_input import head_values

    return {
        "device": {
            "name": str(classifier.device),
            "precision": classifier.precision,
            "engines": classifier.engine_info,
        },
        "stain": asdict(stain.check) if stain.check else None,
        "stain_gain": [stain_gain_of(model.card, stain.densities) for model in classifier.models],
        "stain_left_as_is": [member.left_as_is for member in classifier.members],
        "sampled_patches": len(stain.sample),
        "distance": [member.distance for member in classifier.members],
        "heads": [head_values(member.slide.head) for member in classifier.members],
    }


def _condition_info(computed: dict[str, Any]) -> dict[str, Any] | None:
    """What the networks heard of the slide, for the summary; None: they hear nothing of slides."""
    if not any(computed.get("heads", [])):
        return None
    return {"patches": computed["sampled_patches"], "distance": computed["distance"]}


def _map_info(
    models: "Sequence[Model]", finished: FinishedMap, computed: dict[str, Any], config: InferConfig
) -> dict[str, Any]:
    """What summary.json says of the map, beside what it says of any run."""
    info = {
        "device": computed["device"],
        "map_kind": finished.kind,
        "threshold": finished.threshold,
        "stain": computed["stain"],
        "stain_gain": computed["stain_gain"],
        "slide_condition": _condition_info(computed),
        "fields": field_info(finished.choice, config.fields.diameter_mm),
    }
    if finished.uncertainty:
        info |= {"models": model_names(models), "uncertainty": asdict(finished.uncertainty)}
    return info
