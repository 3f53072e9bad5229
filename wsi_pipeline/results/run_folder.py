"""OUT/<slide name>/: what lies in it, whose it is, and what must not be mixed there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

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
    # How many patches are labelled `idc`, `not_idc` and `unlabelled`, of an annotated slide.
    labels: Mapping[str, int] | None = None


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
    """What the summary of the finished run in `folder` says."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    counts, warnings = summary["counts"], tuple(summary["warnings"])
    return SlideResult(
        folder, True, counts["patches"], summary.get("idc_mm2"), 0.0, warnings, counts.get("labels")
    )


def clear_outputs(folder: OutPath) -> None:
    """Remove what an earlier run left beside its store."""
    for name in (*OUTPUTS, EXPORT_FOLDER):
        remove(folder / name)
