"""What lies in OUT: a slide each, done, failed, running or broken, and how far the batch is. Nothing here writes."""

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from wsi_pipeline.base.errors import ResultError, WsiError
from wsi_pipeline.base.files import OutPath, folders, has_folder, names, read_whole, version_of
from wsi_pipeline.jobs.events import EventReader
from wsi_pipeline.results.opened import Result
from wsi_pipeline.results.run_folder import SUMMARY
from wsi_pipeline.results.store import ROOT_FILE, STORE_NAME

# A slide that was begun and of which nothing was heard for so long is not running any more.
SILENT_S = 120.0
# Events of a slide, of jobs/events.py: its beginning, and how far it is.
_STARTED, _PROGRESS, _ENDED = "slide_started", "slide_progress", "slide"


@dataclass
class Known:
    """What the events say of a slide."""

    name: str
    path: str = ""
    status: str = ""
    reason: str = ""
    patient: str = ""
    begun: str = ""
    heard: str = ""
    finished: str = ""
    progress: float | None = None


@dataclass
class Batch:
    """How far the newest batch in OUT is."""

    started: str = ""
    ended: str = ""
    planned: int = 0
    last_event: str = ""


@dataclass
class RunFolders:
    """The run folders of one OUT, followed by its events. Called from one thread at a time (service.py has a lock)."""

    out: OutPath
    _events: EventReader = field(init=False)
    _known: dict[str, Known] = field(default_factory=dict)
    _batch: Batch = field(default_factory=Batch)

    def __post_init__(self) -> None:
        self._events = EventReader(self.out)

    def folder(self, slide_id: str) -> OutPath:
        """The run folder of that id. Raises ResultError where there is none, or the id names another place."""
        name = unquote(slide_id)
        if not has_folder(self.out, name):
            raise ResultError(f"no slide of that name in {self.out}: {name[:200]!r}")
        return self.out / name

    def slide_path(self, slide_id: str) -> str | None:
        """Where the events say that the slide lies; None: they do not say."""
        self._follow()
        known = self._known.get(unquote(slide_id))
        return known.path or None if known else None

    def listing(self) -> dict[str, Any]:
        """All slides and the batch, as the page's list shows them."""
        self._follow()
        there = folders(self.out)
        rows = [self._row(name, name in there) for name in sorted({*there, *self._known})]
        slides = [row for row in rows if row]
        return {"batch": self._standing(slides), "slides": slides}

    def state(self) -> str:
        """What changes when anything in the list does: cheap to ask for."""
        self._follow()
        parts = [self._batch.last_event]
        if isinstance(self.out, Path):
            for name in folders(self.out):
                versions = [
                    version_of(self.out / name / file) for file in (SUMMARY, f"{STORE_NAME}/{ROOT_FILE}")
                ]
                parts.append(f"{name} {versions}")
        return "\n".join(parts)

    def _follow(self) -> None:
        for event in self._events.new():
            kind, when = event.get("event"), str(event.get("time", ""))
            self._batch.last_event = max(self._batch.last_event, when)
            if kind == "batch_started" and when >= self._batch.started:
                planned = event.get("slides")
                self._batch = Batch(
                    when,
                    planned=planned if isinstance(planned, int) else 0,
                    last_event=self._batch.last_event,
                )
            elif isinstance(kind, str) and kind.startswith("batch_") and kind != "batch_started":
                self._batch.ended = max(self._batch.ended, when)
            name = event.get("slide")
            if not isinstance(name, str) or not name:
                continue
            known = self._known.setdefault(name, Known(name))
            if when < known.heard:
                continue
            known.heard = when
            known.path = str(event.get("path") or known.path)
            if kind == _STARTED:
                known.begun, known.status, known.progress = when, "running", None
            elif kind == _PROGRESS and event.get("total"):
                known.progress = min(1.0, float(event["done"]) / float(event["total"]))
            elif kind == _ENDED:
                known.status = str(event.get("status", ""))
                known.reason = str(event.get("reason") or "")
                # A second slide of the name, which was refused, is not the one that is shown.
                if known.status != "failed" or not known.patient:
                    known.patient = str(event.get("patient") or "")
                known.finished = str(event.get("finished") or when)
                known.progress = None

    def _row(self, name: str, has_folder: bool) -> dict[str, Any] | None:
        known = self._known.get(name, Known(name))
        row: dict[str, Any] = {
            "id": quote(name, safe=""),
            "name": name,
            "patient": known.patient or None,
            "status": "unfinished",
            "reason": known.reason or None,
            "idc_mm2": None,
            "tissue_mm2": None,
            "share": None,
            "warnings": [],
            "model": None,
            "map_kind": None,
            "started": known.begun or None,
            "finished": known.finished or None,
            "progress": None,
            "thumbnail": None,
            "changed": known.heard or None,
        }
        there = self._files(name) if has_folder else set()
        running = known.status == "running" and _age_s(known.heard) < SILENT_S
        if SUMMARY in there:
            row |= self._numbers(name)
            if row["status"] == "done" and (damage := self._damage(name, there)):
                row |= {"status": "broken", "reason": damage}
        if running:
            row |= {"status": "running", "progress": known.progress, "reason": None}
        elif known.status == "failed" and row["status"] != "done":
            row["status"] = "failed"
        elif row["status"] == "unfinished" and not row["reason"]:
            row["reason"] = self._why_unfinished(name, there)
        if not there and not known.status:
            return None
        picture = next((n for n in ("overlay.png", "tissue.png") if n in there), None)
        if picture:
            row["thumbnail"] = f"/api/slides/{row['id']}/thumbnail"
        return row

    def _files(self, name: str) -> set[str]:
        found = names(self.out / name)
        if isinstance(self.out, Path) and (self.out / name / STORE_NAME).is_dir():
            found.add(STORE_NAME)
        return (
            found if found & {SUMMARY, STORE_NAME, "tissue.png"} or not isinstance(self.out, Path) else set()
        )

    def _numbers(self, name: str) -> dict[str, Any]:
        try:
            summary = json.loads(read_whole(self.out / name / SUMMARY))
            tissue, idc = summary.get("tissue_mm2"), summary.get("idc_mm2")
            models = (summary.get("map_recipe") or {}).get("models") or []
            return {
                "status": "done",
                "reason": summary.get("tissue_reason"),
                "idc_mm2": idc,
                "tissue_mm2": tissue,
                "share": idc / tissue if tissue and idc is not None else None,
                "warnings": [str(text) for text in summary.get("warnings", [])],
                "model": ", ".join(str(model.get("name")) for model in models) or None,
                "map_kind": summary.get("map_kind"),
                "stain_spreads": (summary.get("stain") or {}).get("spreads"),
                "finished": summary.get("finished"),
            }
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            return {
                "status": "broken",
                "reason": f"{SUMMARY} cannot be read ({error}); make the result again",
            }

    def _damage(self, name: str, there: set[str]) -> str | None:
        """Why the map of a finished slide cannot be shown, as far as its first file says."""
        if not isinstance(self.out, Path):
            return None  # a request more for each slide of the list
        if STORE_NAME not in there:
            return f"{STORE_NAME} is gone; make the result again"
        try:
            json.loads(read_whole(self.out / name / STORE_NAME / ROOT_FILE))
        except (OSError, ValueError, RecursionError) as error:
            return f"{STORE_NAME} cannot be read ({error}); make the result again"
        return None

    def _why_unfinished(self, name: str, there: set[str]) -> str:
        if STORE_NAME not in there and isinstance(self.out, Path):
            return "there is no map; run the same command again"
        try:
            complete = Result(self.out / name).store_attributes["complete"]
        except WsiError as error:
            return str(error)
        return (
            "the map is whole, its report is missing; run the same command again"
            if complete
            else "the run was broken off; the same command goes on from there"
        )

    def _standing(self, slides: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._batch
        newer = [
            known
            for known in self._known.values()
            if known.finished
            and known.finished >= batch.started
            and known.status in ("done", "skipped", "failed")
        ]
        failed = sum(known.status == "failed" for known in newer)
        running = bool(batch.started) and batch.ended < batch.started and _age_s(batch.last_event) < SILENT_S
        left = None
        if running and newer and batch.planned > len(newer):
            spent = _age_s(batch.started)
            left = round(spent / len(newer) * (batch.planned - len(newer)))
        return {
            "running": running,
            "done": len(newer) - failed,
            "failed": failed,
            "planned": batch.planned,
            "seconds_left": left,
            "last_event": batch.last_event or None,
            "shown": len(slides),
        }


def _age_s(text: str) -> float:
    """Seconds since a time as events say it; a great many where it says none."""
    try:
        return time.time() - datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 1e12
