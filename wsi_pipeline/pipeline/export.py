"""Exports of a finished map, later than its run: nothing is classified or counted again."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import JobError, ResultError, UsageError
from wsi_pipeline.base.files import OutPath, guarded, out_path
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.jobs.events import LOCKS
from wsi_pipeline.jobs.leases import hold_lease
from wsi_pipeline.jobs.locks import hold
from wsi_pipeline.jobs.protocols import Busy
from wsi_pipeline.results.exports.exported_map import ExportedMap
from wsi_pipeline.results.exports.formats import ExportName, check_exports
from wsi_pipeline.results.exports.written import write_exports
from wsi_pipeline.results.fields import FieldChoice
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.opened import Result, open_result
from wsi_pipeline.results.store import STORE_NAME
from wsi_pipeline.results.summary import Uncertainty
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import Thumbnail, thumbnail_of


def export_map(
    folder: str | OutPath, exports: Collection[ExportName], slide: str | Path | None = None
) -> list[OutPath]:
    """Write exports of the finished map in a run folder, OUT/<slide name>, beside it; the files written.

    exports: "ometiff", "dicom", "asap", "pdf". slide: where the slide lies now; None: where it was mapped. `pdf` shows
    the slide, and `dicom` needs the geometry of one that came as DICOM; the others do without it.

    Raises ResultError where there is no finished map, or no slide that is needed, UsageError where a package is not
    installed, JobError while another process works on the slide, OutputError.
    """
    check_exports(exports)
    place = out_path(folder) if isinstance(folder, str) else folder
    result = open_result(place)
    lock = place.parent / LOCKS / f"{place.name}.lock"
    try:
        with hold(lock) if isinstance(lock, Path) else hold_lease(lock) as held, guarded(place, held.check):
            return write_exports(place, exports, exported_map(result, exports, slide))
    except Busy as busy:
        raise JobError(f"{place}: {busy}; wait for it, then export again") from busy


def run_folders(place: str) -> list[OutPath]:
    """The run folder at that place, or, of an OUT, all that are in it; the place itself where neither is there."""
    folder = out_path(place)
    if not isinstance(folder, Path) or (folder / STORE_NAME).exists():
        return [folder]
    return [store.parent for store in sorted(folder.glob(f"*/{STORE_NAME}"))] or [folder]


def exported_map(
    result: Result, exports: Collection[ExportName], slide: str | Path | None = None
) -> ExportedMap:
    """What these exports are made of, from a result; with a picture of the slide where one of them shows it.

    Raises ResultError where the result is not finished or its slide is not the one that was mapped, UsageError where
    `slide` is not there.
    """
    summary = result.summary
    if not result.is_complete:
        raise ResultError(
            f"{result.folder}: its run was broken off; the same command again goes on, then export"
        )
    path = Path(slide) if slide is not None else Path(summary["slide"])
    if slide is not None and not path.exists():
        raise UsageError(f"--slide {slide}: no such file or folder")
    thumbnail = _thumbnail(path, summary) if "pdf" in exports and path.exists() else None
    return ExportedMap(result.name, path, _finished_map(result), summary, thumbnail)


def _thumbnail(path: Path, summary: dict[str, Any]) -> Thumbnail:
    wanted = summary["map_recipe"]["slide"]
    with open_slide(path, mpp=wanted["mpp"][0] if summary["mpp_overridden"] else None) as slide:
        if slide.fingerprint() != wanted["fingerprint"]:
            raise ResultError(
                f"{path}: its content is not that of the slide that was mapped; give that one with --slide"
            )
        return thumbnail_of(slide)


def _finished_map(result: Result) -> FinishedMap:
    summary = result.summary
    (mpp_x, mpp_y), (left, right, bottom, top) = summary["mpp"], result.extent_um
    rows, columns = result.map.shape
    plane = Plane((right - left) / columns / mpp_x, (bottom - top) / rows / mpp_y, left / mpp_x, top / mpp_y)
    uncertainty = summary.get("uncertainty")
    return FinishedMap(
        result.map,
        plane,
        summary["map_kind"],
        summary["threshold"],
        result.regions,
        summary["counts"],
        FieldChoice(result.fields, result.hot_spots, summary["fields"]["rule"]),
        result.uncertainty,
        Uncertainty(**uncertainty) if uncertainty else None,
        result.status,
    )
