"""OUT/<slide name>/: what lies in it, whose it is, and what must not be mixed there."""

import enum
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import RecipeError, SlideError
from wsi_pipeline.base.files import (
    OutPath,
    clear_leftovers,
    names,
    read_whole,
    remove,
    tree_exists,
    write_bytes,
)
from wsi_pipeline.results.exports.formats import EXPORT_FILES
from wsi_pipeline.results.provenance import as_stored, differences, listed
from wsi_pipeline.results.store import ROOT_FILE, STORE_NAME, SlideStore

EXPORT_FOLDER = "export"
SUMMARY = "summary.json"
# Of fields for grading: their sheet, what they were chosen by, and a picture of each.
SHEET, CELLULARITY, CROPS = "fields.png", "cellularity.zarr", "fields"
# A folder that holds this file is ours: nothing in another one is removed.
MARKER = ".wsi_pipeline"
# What an earlier run leaves beside its store; none of it may stand beside the results of a new one.
OUTPUTS = (
    "tissue.png",
    "heatmap.png",
    "overlay.png",
    "uncertainty.png",
    "report.png",
    SHEET,
    "regions.geojson",
    SUMMARY,
)

Differences = Callable[[SlideStore], Sequence[str]]
"""What of a store's recipe is not as it is wanted now, value by value; nothing where all is."""

WhyDraw = Callable[[SlideStore], str | None]
"""Why what lies beside a finished store is to be made again, as `why_draw` says."""


class Standing(enum.Enum):
    """What lies in a run folder of what is wanted: nothing, its beginning, the map but not its report, or all of it."""

    NEW = "new"
    BEGUN = "begun"
    TO_DRAW = "to draw"
    DONE = "done"


@dataclass(frozen=True)
class SlideResult:
    """What one slide came to."""

    folder: OutPath
    skipped: bool
    """An earlier run had finished the same, and all that it left is there."""

    patches: int
    idc_mm2: float | None
    seconds: float
    warnings: tuple[str, ...]
    map_key: str
    report_key: str
    drawn_again: str = ""
    """Why a finished map was not classified, but its regions, pictures and numbers made again; empty where neither."""

    labels: Mapping[str, int] | None = None
    """How many patches are labelled `idc`, `not_idc` and `unlabelled`, of an annotated slide."""


def find_run(folder: OutPath, differs: Differences, overwrite: bool) -> SlideStore | None:
    """The run folder's store if it is what is wanted; None where there is none, or another may be overwritten.

    An interrupted run's leavings are removed. Raises RecipeError, which names what `differs`, when the folder holds
    another result, or is not of this package.
    """
    path = folder / STORE_NAME
    if not tree_exists(path, ROOT_FILE):
        _check_ours(folder)
        clear_leftovers(folder)
        return None
    store = None
    try:
        store = SlideStore(path)
        _check_known(store, folder)
        refuse(folder, differs(store))
    except RecipeError:
        if not overwrite:
            raise
        if store is None:
            _check_ours(folder)
        return None
    if not store.is_complete:
        clear_leftovers(folder)
    return store


def standing_of(
    folder: OutPath, differs: Differences, overwrite: bool, why: WhyDraw | None = None
) -> Standing:
    """What a run would find in the folder, before the slide is looked at. Raises RecipeError where it would.

    Without `why`, what lies beside a finished store is taken as what is wanted.
    """
    path = folder / STORE_NAME
    if not tree_exists(path, ROOT_FILE):
        _check_ours(folder)
        return Standing.NEW
    store = SlideStore(path)
    try:
        _check_known(store, folder)
        refuse(folder, differs(store))
    except RecipeError:
        if overwrite:
            return Standing.NEW
        raise
    if not (store.is_complete and is_finished(folder)):
        return Standing.BEGUN
    return Standing.TO_DRAW if why and why(store) else Standing.DONE


def claim(folder: OutPath) -> None:
    """Mark the folder as ours, before anything is written or removed in it. Raises OutputError."""
    if not (folder / MARKER).exists():
        write_bytes(folder / MARKER, b"A folder of results of wsi_pipeline: it may replace what lies here.\n")


def check_outside(files: Iterable[Path], out: OutPath, name: str) -> None:
    """Raises SlideError where one of the slide's files lies in its run folder, or in another slide's."""
    if not isinstance(out, Path):
        return
    top = out.resolve()
    for file in files:
        place = file.resolve()
        inside = [folder for folder in (place, *place.parents) if top in folder.parents]
        if any(folder == top / name or (folder / MARKER).exists() for folder in inside):
            raise SlideError(
                f"{file}: lies in a folder of results, {inside[-1]}, where files are replaced; choose another --out, "
                f"or move the slide"
            )


def _check_ours(folder: OutPath) -> None:
    if folder.exists() and not (folder / MARKER).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(
            f"{folder}: holds files that are not of this package, and would be a slide's folder of results; choose "
            f"another --out, or give the slide another name in a CSV list"
        )


def refuse(folder: OutPath, differ: Sequence[str]) -> None:
    """Raises RecipeError where the folder's result differs from what is wanted in anything."""
    if differ:
        raise RecipeError(
            f"{folder}: holds another result ({listed(differ)}); choose another --out, or --overwrite to replace it"
        )


def why_draw(folder: OutPath, report: Mapping[str, Any], needed: Collection[str]) -> str | None:
    """Why what lies beside a finished store is to be made again; None where it is what the recipe `report` says.

    needed: the files that must be there. Empty where a run made the store but never came to its summary.
    """
    there = names(folder)
    if SUMMARY not in there:
        return ""
    found = read_summary(folder).get("report_recipe")
    if not isinstance(found, dict):
        return f"{SUMMARY} does not say what it was made of"
    if differ := differences(found, as_stored(report)):
        return listed(differ)
    missing = [name for name in needed if name not in there]
    return f"missing: {', '.join(missing)}" if missing else None


def begin_report(folder: OutPath) -> None:
    """Take back that the folder is finished: until the new summary is there, what lies beside the store is of both."""
    clear_leftovers(folder)
    remove(folder / SUMMARY)


def is_finished(folder: OutPath) -> bool:
    """Whether a run of any recipe came to its end there: a look, without opening anything."""
    return (folder / SUMMARY).exists()


def read_summary(folder: OutPath) -> dict[str, Any]:
    """What the finished run in `folder` says of itself; nothing where its summary is damaged."""
    try:
        summary = json.loads(read_whole(folder / SUMMARY))
    except (ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


def finished_result(folder: OutPath) -> SlideResult:
    """The result of the finished run in `folder`, which a run of the same recipe skips."""
    return replace(result_of(folder, read_summary(folder)), skipped=True, seconds=0.0)


def result_of(folder: OutPath, summary: dict[str, Any]) -> SlideResult:
    """What a run's summary.json says in short."""
    return SlideResult(
        folder=folder,
        skipped=False,
        patches=summary["counts"]["patches"],
        idc_mm2=summary.get("idc_mm2"),
        seconds=summary["seconds"]["total"],
        warnings=tuple(summary["warnings"]),
        labels=summary["counts"].get("labels"),
        map_key=summary["map_key"],
        report_key=summary["report_key"],
    )


def clear_outputs(folder: OutPath) -> None:
    """Remove what an earlier run left beside its store."""
    for name in (*OUTPUTS, *EXPORT_FILES, EXPORT_FOLDER, CELLULARITY, CROPS):
        remove(folder / name)


def _check_known(store: SlideStore, folder: OutPath) -> None:
    """Raises RecipeError for a store of before there were map keys, and for one of which arrays are gone."""
    if store.map_recipe is None:
        version = store.attributes.get("version", "unknown")
        raise RecipeError(
            f"{folder}: holds results of an earlier version (wsi_pipeline {version}), which did not write down all "
            f"that decides a map (it has no map key). They can be read and shown, but not gone on with, nor taken as "
            f"done; choose another --out, or --overwrite to replace them"
        )
    needed = [*_arrays_of(store.map_recipe), *(f"{layer}/0" for layer in store.class_layers.values())]
    if lacking := [name for name in needed if not store.has(name)]:
        raise RecipeError(
            f"{folder}: {STORE_NAME} is damaged: found no {', '.join(lacking)}; put the store back whole, "
            f"or --overwrite to make it again"
        )


def _arrays_of(recipe: Mapping[str, Any]) -> list[str]:
    """What a store of that recipe holds, the finest level of each."""
    arrays = ["labels/tissue/0", "patches/x0"]
    if recipe.get("command") == "infer-slide":
        arrays += ["heatmap/0", "labels/status/0"]
        arrays += ["patch_heatmap/0"] if recipe.get("context") else []
        arrays += ["uncertainty/0"] if len(recipe.get("models", ())) > 1 else []
    return arrays
