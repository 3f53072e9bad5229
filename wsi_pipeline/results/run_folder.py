"""OUT/<slide name>/: what lies in it, whose it is, and what must not be mixed there."""

import json
from dataclasses import dataclass, replace
from typing import Any

from wsi_pipeline.base.errors import RecipeError
from wsi_pipeline.base.files import OutPath, clear_leftovers, remove, tree_exists
from wsi_pipeline.results.store import ROOT_FILE, STORE_NAME, SlideStore

EXPORT_FOLDER = "export"
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


@dataclass(frozen=True)
class SlideResult:
    """What one slide came to; `skipped` when an earlier run had finished the same recipe."""

    folder: OutPath
    skipped: bool
    patches: int
    idc_mm2: float | None
    seconds: float
    warnings: tuple[str, ...]


def find_run(folder: OutPath, recipe: str, overwrite: bool) -> SlideStore | None:
    """The run folder's store if it is of that recipe; None where there is none, or another may be overwritten.

    An interrupted run's leavings are removed. Raises RecipeError when the folder holds results of another recipe.
    """
    path = folder / STORE_NAME
    if not tree_exists(path, ROOT_FILE):
        clear_leftovers(folder)
        return None
    try:
        store = SlideStore(path)
        if store.recipe != recipe:
            raise RecipeError(
                f"{folder}: holds results of another slide, scale, model or options (recipe {store.recipe}, "
                f"this one is {recipe}); choose another --out, or --overwrite to replace them"
            )
    except RecipeError:
        if overwrite:
            return None
        raise
    if not store.is_complete:
        clear_leftovers(folder)
    return store


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
    )


def clear_outputs(folder: OutPath) -> None:
    """Remove what an earlier run left beside its store."""
    for name in (*OUTPUTS, EXPORT_FOLDER):
        remove(folder / name)
