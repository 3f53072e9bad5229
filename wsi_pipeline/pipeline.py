"""The flow of one slide, written once: open, find tissue, plan, classify, stitch, delineate, render."""

import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import wsi_pipeline
from wsi_pipeline import store as stores
from wsi_pipeline.annotations import label_patches, read_outlines
from wsi_pipeline.classify import Classifier, classify_blocks
from wsi_pipeline.config import InferConfig, TileConfig
from wsi_pipeline.delineate import (
    GradingField,
    IdcRegion,
    choose_fields,
    delineate,
    qupath_origin0,
    regions_to_geojson,
)
from wsi_pipeline.errors import RecipeError, ScaleError, UnreadableSlideError
from wsi_pipeline.geometry import Plane
from wsi_pipeline.grid import GridOptions, Plan, plan_grid, plan_patches
from wsi_pipeline.options import options_to_dict
from wsi_pipeline.patches import read_blocks
from wsi_pipeline.quality import Quality, find_artefacts
from wsi_pipeline.render import ReportFacts, render_heatmap, render_overlay, render_report, render_tissue
from wsi_pipeline.resample import resample
from wsi_pipeline.slide import Pixels, Slide, open_slide
from wsi_pipeline.stitch import Status, initial_status, stitch_block
from wsi_pipeline.store import SlideStore
from wsi_pipeline.tissue import Tissue, find_tissue

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the patches done and the patches in all."""

# The pictures' thumbnail: as many pixels along its longer side, if the slide has them.
THUMBNAIL_PX = 2000
# What an earlier run leaves in a run folder; none of it may stand beside the results of a new one.
OUTPUTS = (
    "tissue.png",
    "heatmap.png",
    "overlay.png",
    "report.png",
    "regions.geojson",
    "summary.json",
)
VERSIONED = ("numpy", "openslide-python", "openslide-bin", "scikit-image", "torch", "zarr")


@dataclass(frozen=True)
class SlideResult:
    """What one slide came to; `skipped` when an earlier run had finished the same recipe."""

    folder: Path
    skipped: bool
    patches: int
    idc_mm2: float | None
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """A slide looked at from afar: its thumbnail, its tissue, and the patches to take."""

    thumbnail: Pixels
    thumbnail_plane: Plane
    tissue: Tissue
    quality: Quality
    plan: Plan
    warnings: tuple[str, ...]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """uint8 [row, column] at the tissue plane: 0 none, 1 tissue, 2 tissue rejected by quality."""
        return np.where(self.quality.rejected, 2, 1).astype(np.uint8) * self.tissue.mask


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0) + time.perf_counter() - start, 3)

    @property
    def total(self) -> float:
        """All stages together."""
        return round(sum(self.seconds.values()), 3)


def tile_slide(
    path: Path,
    out: Path,
    config: TileConfig,
    mpp: float | None = None,
    annotations: Path | None = None,
    export: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SlideResult:
    """Plan the slide's patches and write them to its run folder, with a picture of the tissue kept.

    `mpp` overrides the file's scale. `annotations` is a folder of GeoJSON outlines, <slide name>.geojson, that
    label the patches. `export` writes each patch as a PNG too, in the IDC set's folder layout. Raises a
    WsiError whose text says why; an earlier result of the same recipe is left as it is.
    """
    watch = Stopwatch()
    with watch("open"):
        slide = open_slide(path, mpp)
        outlines = annotations / f"{slide.name}.geojson" if annotations else None
        recipe = {
            "command": "tile-slides",
            "slide": _slide_facts(slide),
            "options": options_to_dict(config),
            "annotations": _file_hash(outlines),
            "export": export,
        }
        folder = out / slide.name
        earlier = find_run(folder, recipe_key(recipe), overwrite)
        if earlier and earlier.is_complete:
            return _skipped(folder)
    with watch("survey"):
        survey = survey_slide(slide, config, config.grid)
    plan = survey.plan
    warnings = list(survey.warnings)
    with watch("write"):
        folder.mkdir(parents=True, exist_ok=True)
        labels = None
        if outlines and outlines.is_file():
            labels = label_patches(plan, read_outlines(outlines, config.annotations), config.annotations)
        elif outlines:
            warnings.append(f"no annotations: {outlines} does not exist; its patches are not labelled")
        _clear(folder)
        store = stores.create_store(
            folder / stores.STORE_NAME,
            _attributes(recipe),
            plan,
            slide.mpp,
            survey.labels,
            survey.tissue.plane,
            status=None,
            patch_labels=labels,
        )
        _render_survey(folder, survey)
    unreadable = 0
    if export:
        with watch("export"):
            unreadable = _export(slide, survey, labels, folder / "export" / slide.name, progress)
    counts: dict[str, Any] = {
        "patches": int(plan.kept.sum()),
        "rejected": int(plan.rejected.sum()),
        "positions": plan.kept.size,
    }
    if labels is not None:
        counts |= {"idc": int((labels == 1).sum()), "not_idc": int((labels == 0).sum())}
    if export:
        counts["unreadable"] = unreadable
    summary = _summary(slide, survey, recipe, watch, warnings) | {"counts": counts}
    stores.write_json(folder / "summary.json", summary)
    store.finish({"counts": counts})
    return SlideResult(folder, False, counts["patches"], None, watch.total, tuple(warnings))


def infer_slide(
    path: Path,
    out: Path,
    config: InferConfig,
    classifier: Classifier,
    mpp: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SlideResult:
    """Map the slide's IDC and write the map, its regions, pictures and numbers to its run folder.

    Raises a WsiError whose text says why; an earlier result of the same recipe is left as it is, an
    interrupted one goes on from its last chunk.
    """
    watch = Stopwatch()
    card = classifier.model.card
    options = replace(config, grid=grid_for_model(config.grid, card.patch_px, card.mpp))
    threshold = card.threshold if config.delineate.threshold is None else config.delineate.threshold
    with watch("open"):
        slide = open_slide(path, mpp)
        recipe = {
            "command": "infer-slide",
            "slide": _slide_facts(slide),
            "model": {"name": card.name, "sha256": classifier.model.sha256},
            "options": {k: v for k, v in options_to_dict(options).items() if k != "classify"},
            "threshold": threshold,
        }
        folder = out / slide.name
        store = find_run(folder, recipe_key(recipe), overwrite)
        if store and store.is_complete:
            return _skipped(folder)
    with watch("survey"):
        survey = survey_slide(slide, options, options.grid)
        plan = survey.plan
        status = initial_status(plan)
    if store is None:
        with watch("write"):
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder)
            store = stores.create_store(
                folder / stores.STORE_NAME,
                _attributes(recipe),
                plan,
                slide.mpp,
                survey.labels,
                survey.tissue.plane,
                status,
            )
    with watch("render"):
        _render_survey(folder, survey)
    with watch("classify"):
        _fill(store, slide, plan, classifier, options, progress)
    heatmap, status = store.array("heatmap/0"), store.array("labels/status/0")
    _check_unreadable(slide, status, options.max_unreadable)
    with watch("delineate"):
        store.write_pyramid()
        plane = plan.grid.map_plane
        regions = delineate(heatmap, plane, slide.mpp, threshold, options.delineate)
        fields = choose_fields(heatmap, plane, slide.mpp, regions, options.delineate)
        origin0 = qupath_origin0(slide.properties, slide.size0)
        stores.write_json(folder / "regions.geojson", regions_to_geojson(regions, fields, origin0))
    counts = _counts(plan, status)
    warnings = [*survey.warnings, *_unreadable_warning(status)]
    idc_mm2 = round(sum(region.area_mm2 for region in regions), 4)
    with watch("render"):
        facts = _facts(slide, survey, classifier, threshold, status, regions, warnings)
        _render_maps(folder, slide, survey, heatmap, plane, regions, fields, facts)
    summary = _summary(slide, survey, recipe, watch, warnings) | {
        "counts": counts,
        "idc_mm2": idc_mm2,
        "device": {"name": str(classifier.device), "precision": classifier.precision},
        "regions": [
            {
                "name": region.name,
                "area_mm2": round(region.area_mm2, 4),
                "mean_probability": round(region.mean_probability, 4),
                "max_probability": round(region.max_probability, 4),
            }
            for region in regions
        ],
    }
    stores.write_json(folder / "summary.json", summary)
    store.finish({"counts": counts})
    return SlideResult(folder, False, counts["patches"], idc_mm2, watch.total, tuple(warnings))


def survey_slide(slide: Slide, config: TileConfig | InferConfig, grid: GridOptions) -> Survey:
    """Thumbnail, tissue, artefacts and plan; one read of a low-power plane.

    Raises UnreadableSlideError, and what `plan_grid` raises.
    """
    plan_grid(slide, grid)  # a grid that cannot be is told before anything is read
    plane = slide.plane_at(_thumbnail_mpp(slide, config.tissue.mpp))
    thumbnail = slide.read_whole(plane)
    share = 1 - float(thumbnail.readable.mean())
    if share > config.max_unreadable:
        raise UnreadableSlideError(_too_unreadable(slide, share, config.max_unreadable))
    seen, mask_plane = _reduced(thumbnail, plane, slide.plane_at(config.tissue.mpp), slide)
    mpp = (mask_plane.downsample_x * slide.mpp[0], mask_plane.downsample_y * slide.mpp[1])
    tissue = find_tissue(seen.rgb, mask_plane, mpp, config.tissue, seen.readable)
    quality = find_artefacts(seen.rgb, mask_plane, mpp, tissue.mask, config.quality)
    plan = plan_patches(slide, tissue.mask, quality.rejected, mask_plane, grid)
    warnings = []
    if slide.mpp_overridden:
        warnings.append(f"the scale is --mpp {slide.mpp[0]:g}, not the file's")
    if grid.mpp and max(slide.mpp) > grid.mpp * 1.005:
        warnings.append(
            f"patches are enlarged {max(slide.mpp) / grid.mpp:.2f} times: the slide has {max(slide.mpp):g} "
            f"um per pixel, the grid wants {grid.mpp:g}"
        )
    if tissue.reason:
        warnings.append(f"no tissue: {tissue.reason}")
    elif not plan.kept.any():
        warnings.append(f"no patch holds {grid.min_tissue:.0%} tissue")
    warnings += [
        f"{mm2:.2f} mm2 of tissue not scored: {name}" for name, mm2 in quality.areas_mm2.items() if mm2
    ]
    return Survey(thumbnail, plane, tissue, quality, plan, tuple(warnings))


def grid_for_model(grid: GridOptions, patch_px: int, mpp: float) -> GridOptions:
    """The grid at the model's patch size and scale.

    Raises ScaleError when the config's grid says another: the model card rules.
    """
    if grid.patch_px not in (None, patch_px) or (grid.mpp and abs(grid.mpp / mpp - 1) > 1e-6):
        raise ScaleError(
            f"the config's grid says {grid.patch_px or patch_px} px at {grid.mpp or mpp:g} um/px; the model card "
            f"expects {patch_px} px at {mpp:g} um/px; leave grid.patch_px and grid.mpp out of the config, or take "
            f"a model of that scale"
        )
    return replace(grid, patch_px=patch_px, mpp=mpp)


def recipe_key(recipe: dict[str, Any]) -> str:
    """A short hash of everything that decides a result: slide, scale, options, model."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def find_run(folder: Path, recipe: str, overwrite: bool) -> SlideStore | None:
    """The run folder's store if it is of that recipe; None where there is none, or it may be overwritten.

    Raises RecipeError when the folder holds results of another recipe.
    """
    path = folder / stores.STORE_NAME
    if overwrite or not path.exists():
        return None
    store = SlideStore(path)
    if store.recipe != recipe:
        raise RecipeError(
            f"{folder}: holds results of another slide, scale, model or options (recipe {store.recipe}, this "
            f"one is {recipe}); choose another --out, or --overwrite to replace them"
        )
    return store


def _fill(
    store: SlideStore,
    slide: Slide,
    plan: Plan,
    classifier: Classifier,
    config: InferConfig,
    progress: Progress | None,
) -> None:
    """Classify and commit every block that is not committed yet."""
    grid = plan.grid
    total, done = int(plan.scored.sum()), 0
    todo = []
    for block in plan.blocks():
        if store.is_done(block.cells):
            done += _own_patches(plan, block.cells)
        else:
            todo.append(block)
    if progress:
        progress(done, total)
    for block, scores in classify_blocks(
        todo, grid, lambda box: slide.read_readable(box, grid.plane), classifier, config.classify
    ):
        values, status = stitch_block(grid, block, scores, store.status(block.cells))
        store.write_block(block.cells, values, status)
        done += _own_patches(plan, block.cells)
        if progress:
            progress(done, total)


def _own_patches(plan: Plan, cells: Any) -> int:
    """Patches to score that start inside the cells: each patch counts in one block only."""
    step = plan.grid.stride_cells
    rows = slice(-(-cells.y // step), -(-cells.bottom // step))
    columns = slice(-(-cells.x // step), -(-cells.right // step))
    return int(plan.scored[rows, columns].sum())


def _export(
    slide: Slide, survey: Survey, labels: NDArray[np.int8] | None, folder: Path, progress: Progress | None
) -> int:
    """Write every patch to score as PNG, <slide>/<0|1|unlabelled>/<slide>_x.._y.._class...png.

    Gives the number of patches that could not be read; x and y are level-0 pixels.
    """
    plan, grid = survey.plan, survey.plan.grid
    x0, y0, _ = stores.patch_positions(plan)
    rows, columns = np.nonzero(plan.kept)
    order = {(int(c), int(r)): i for i, (c, r) in enumerate(zip(columns, rows, strict=True))}
    total, done, unreadable = int(plan.scored.sum()), 0, 0
    written: set[int] = set()
    for block, cut in read_blocks(plan.blocks(), grid, lambda box: slide.read_readable(box, grid.plane), 2):
        for (column, row), rgb, readable in zip(block.patches, cut.rgb, cut.readable, strict=True):
            i = order[int(column), int(row)]
            if i in written:  # a rim that two blocks share
                continue
            written.add(i)
            done += 1
            if not readable:
                unreadable += 1
                continue
            label = "unlabelled" if labels is None else str(labels[i])
            suffix = "" if labels is None else f"_class{label}"
            (folder / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(folder / label / f"{slide.name}_x{x0[i]}_y{y0[i]}{suffix}.png")
        if progress:
            progress(done, total)
    return unreadable


def _thumbnail_mpp(slide: Slide, tissue_mpp: float) -> float:
    """No coarser than the tissue plane, no finer than the slide, else THUMBNAIL_PX along the longer side."""
    longest_um = max(slide.bounds.width * slide.mpp[0], slide.bounds.height * slide.mpp[1])
    return min(tissue_mpp, max(*slide.mpp, longest_um / THUMBNAIL_PX))


def _reduced(pixels: Pixels, plane: Plane, wanted: Plane, slide: Slide) -> tuple[Pixels, Plane]:
    """The thumbnail's pixels on the tissue plane, without reading again."""
    if plane == wanted:
        return pixels, plane
    size = slide.size_on(wanted)
    step = (wanted.downsample_x / plane.downsample_x, wanted.downsample_y / plane.downsample_y)
    rgb = resample(pixels.rgb, size.width, size.height, (0, 0), step)
    lost = np.repeat(np.where(pixels.readable, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    readable = resample(lost, size.width, size.height, (0, 0), step)[..., 0] == 0
    return Pixels(rgb, readable), wanted


def _render_survey(folder: Path, survey: Survey) -> None:
    shape = survey.thumbnail.rgb.shape
    render_tissue(
        folder / "tissue.png",
        survey.thumbnail.rgb,
        _enlarged(survey.tissue.mask, shape),
        _enlarged(survey.quality.rejected, shape),
        survey.tissue.reason,
    )


def _render_maps(
    folder: Path,
    slide: Slide,
    survey: Survey,
    heatmap: NDArray[np.float32],
    plane: Plane,
    regions: list[IdcRegion],
    fields: list[GradingField],
    facts: ReportFacts,
) -> None:
    rgb, thumbnail_plane = survey.thumbnail.rgb, survey.thumbnail_plane
    render_heatmap(folder / "heatmap.png", heatmap)
    render_overlay(folder / "overlay.png", rgb, thumbnail_plane, heatmap, plane, regions)
    render_report(
        folder / "report.png", rgb, thumbnail_plane, heatmap, plane, slide.mpp, regions, fields, facts
    )


def _enlarged(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    image = Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return np.asarray(image, np.bool_)


def _check_unreadable(slide: Slide, status: NDArray[np.uint8], allowed: float) -> None:
    scored, unreadable = (int((status == s).sum()) for s in (Status.SCORED, Status.UNREADABLE))
    if unreadable > allowed * (scored + unreadable):
        raise UnreadableSlideError(_too_unreadable(slide, unreadable / (scored + unreadable), allowed))


def _too_unreadable(slide: Slide, share: float, allowed: float) -> str:
    return (
        f"{slide.path}: {share:.0%} of it cannot be decoded, at most {allowed:.0%} is allowed (max_unreadable); "
        f"copy or scan it again"
    )


def _unreadable_warning(status: NDArray[np.uint8]) -> list[str]:
    cells = int((status == Status.UNREADABLE).sum())
    return [f"{cells} cells of the map cannot be decoded and are not scored"] if cells else []


def _counts(plan: Plan, status: NDArray[np.uint8]) -> dict[str, Any]:
    """Patches by the plan, cells of the map by what became of them."""
    cells = Counter(status.ravel().tolist())
    return {
        "positions": plan.kept.size,
        "patches": int(plan.scored.sum()),
        "rejected": int(plan.rejected.sum()),
        "cells": {value.name.lower(): cells[value] for value in Status},
    }


def _summary(
    slide: Slide, survey: Survey, recipe: dict[str, Any], watch: Stopwatch, warnings: list[str]
) -> dict[str, Any]:
    tissue, plan = survey.tissue, survey.plan
    pixel_mm2 = _pixel_mm2(tissue.plane, slide.mpp)
    return {
        "slide": str(slide.path),
        "size0": [slide.size0.width, slide.size0.height],
        "mpp": list(slide.mpp),
        "mpp_overridden": slide.mpp_overridden,
        "patch_px": plan.grid.patch_px,
        "stride_px": plan.grid.stride_px,
        "patch_mpp": plan.grid.plane.downsample_x * slide.mpp[0],
        "level_read": slide.level_for(plan.grid.plane),
        "tissue_mm2": round(float(tissue.mask.sum()) * pixel_mm2, 4),
        "tissue_reason": tissue.reason,
        "rejected_mm2": {name: round(mm2, 4) for name, mm2 in survey.quality.areas_mm2.items()},
        "recipe_key": recipe_key(recipe),
        "recipe": recipe,
        "warnings": warnings,
        "seconds": watch.seconds | {"total": watch.total},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
    }


def _slide_facts(slide: Slide) -> dict[str, Any]:
    return {
        "name": slide.name,
        "fingerprint": slide.fingerprint(),
        "size0": [slide.size0.width, slide.size0.height],
        "mpp": list(slide.mpp),
        "mpp_overridden": slide.mpp_overridden,
    }


def _attributes(recipe: dict[str, Any]) -> dict[str, Any]:
    """What the store says of its making, the recipe key last."""
    return {"version": wsi_pipeline.__version__, **recipe, "recipe": recipe_key(recipe)}


def _versions() -> dict[str, str]:
    """Of this package and of those that pixels and numbers come through."""
    return {"wsi_pipeline": wsi_pipeline.__version__} | {name: metadata.version(name) for name in VERSIONED}


def _skipped(folder: Path) -> SlideResult:
    """What the finished run's summary says."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return SlideResult(
        folder, True, summary["counts"]["patches"], summary.get("idc_mm2"), 0.0, tuple(summary["warnings"])
    )


def _clear(folder: Path) -> None:
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "export", ignore_errors=True)


def _file_hash(path: Path | None) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None


def _pixel_mm2(plane: Plane, mpp0: tuple[float, float]) -> float:
    return plane.downsample_x * mpp0[0] * plane.downsample_y * mpp0[1] / 1e6
