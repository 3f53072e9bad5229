"""OUT/<slide name>/: what lies in it, whose it is, and what must not be mixed there."""

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import RecipeError, SlideError
from wsi_pipeline.base.files import OutPath, clear_leftovers, remove, tree_exists, write_bytes
from wsi_pipeline.results.store import ROOT_FILE, STORE_NAME, SlideStore

EXPORT_FOLDER = "export"
# A folder that holds this file is ours: nothing in another one is removed.
MARKER = ".wsi_pipeline"
# What an earlier run leaves beside its store; none of it may stand beside the results of a new one.
OUTPUTS = (
    "tissue.png",
    "heatmap.png",
    "overlay.png",
    "uncertainty.png",
    "report.png",
    "regions.geojson",
    "summary.json",
)


class Standing(enum.Enum):
    """What lies in a run folder of a recipe: nothing of it, its beginning, or all of it."""

    NEW = "new"
    BEGUN = "begun"
    DONE = "done"


@dataclass(frozen=True)
class SlideResult:
    """What one slide came to; `skipped` when an earlier run had finished the same recipe."""

    folder: OutPath
    skipped: bool
    patches: int
    idc_mm2: float | None
    seconds: float
    warnings: tuple[str, ...]
    # How many patches are labelled `idc`, `not_idc` and `unlabelled`, of an annotated slide.
    labels: Mapping[str, int] | None = None


def find_run(folder: OutPath, recipe: str, overwrite: bool) -> SlideStore | None:
    """The run folder's store if it is of that recipe; None where there is none, or another may be overwritten.

    An interrupted run's leavings are removed. Raises RecipeError when the folder holds results of another recipe, or
    is not of this package.
    """
    path = folder / STORE_NAME
    if not tree_exists(path, ROOT_FILE):
        _check_ours(folder)
        clear_leftovers(folder)
        return None
    store = None
    try:
        store = SlideStore(path)
        if store.recipe != recipe:
            raise RecipeError(_of_another(folder, store.recipe, recipe))
    except RecipeError:
        if not overwrite:
            raise
        if store is None:
            _check_ours(folder)
        return None
    if not store.is_complete:
        clear_leftovers(folder)
    return store


def standing_of(folder: OutPath, recipe: str, overwrite: bool) -> Standing:
    """What a run of the recipe would find in the folder. Raises RecipeError where it would."""
    path = folder / STORE_NAME
    if not tree_exists(path, ROOT_FILE):
        _check_ours(folder)
        return Standing.NEW
    store = SlideStore(path)
    if store.recipe == recipe:
        return Standing.DONE if store.is_complete else Standing.BEGUN
    if overwrite:
        return Standing.NEW
    raise RecipeError(_of_another(folder, store.recipe, recipe))


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


def _of_another(folder: OutPath, found: str, wanted: str) -> str:
    return (
        f"{folder}: holds results of another slide, scale, model or options (recipe {found}, this one is {wanted}); "
        f"choose another --out, or --overwrite to replace them"
    )


def is_finished(folder: OutPath) -> bool:
    """Whether a run of any recipe came to its end there: a look, without opening anything."""
    return (folder / "summary.json").exists()


def finished_result(folder: OutPath) -> SlideResult:
    """The result of the finished run in `folder`, which a run of the same recipe skips."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return replace(result_of(folder, summary), skipped=True, seconds=0.0)


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
    )


def clear_outputs(folder: OutPath) -> None:
    """Remove what an earlier run left beside its store."""
    for name in (*OUTPUTS, EXPORT_FOLDER):
        remove(folder / name)
