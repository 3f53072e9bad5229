"""OUT/manifest.csv: a row a slide, made of the events of every process that ever worked in OUT.

The events are the record, a line a slide that is never rewritten; the manifest is the view for people, written whole
beside and renamed, now and then while a batch runs and at its end. So the cost of a slide does not grow with
their number, and processes of many machines that write it at one time lose nothing: the last one to end has read all
the others' events, and where it has not, the next run does.
"""

import csv
import io
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from wsi_pipeline.base.files import OutPath, write_bytes
from wsi_pipeline.jobs.events import EventLog, EventReader

log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.csv"
SLIDE_EVENT = "slide"
# Written at most so often, and never for more than this share of the time.
WRITE_EVERY_S = 10.0
WRITE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """What became of one slide in the last run that met it."""

    slide: str
    path: str
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    patches: int | str = ""
    idc_mm2: float | str = ""
    seconds: float | str = ""
    attempt: int | str = ""
    worker: str = ""
    finished: str = ""
    version: str = ""
    map_key: str = ""
    report_key: str = ""


COLUMNS = [field.name for field in fields(ManifestRow)]


class Manifest:
    """The rows of an output folder, by the slide's name and path."""

    def __init__(self, out: OutPath, log: EventLog, started: str, expected: list[tuple[str, str]]):
        """`started` is when this run began; `expected` name and path of its slides, in the order of their rows."""
        self._file, self._log, self._started = out / MANIFEST_NAME, log, started
        self._order = {key: i for i, key in enumerate(expected)}
        self._rows: dict[tuple[str, str], tuple[str, ManifestRow]] = {}
        self._events = EventReader(out)
        self._written, self._pause = time.monotonic(), WRITE_EVERY_S
        self._load()

    def record(self, row: ManifestRow) -> None:
        """Add or replace the slide's row: in the events at once, in the file soon."""
        self._log.write(SLIDE_EVENT, since=self._started, **asdict(row))
        if time.monotonic() - self._written > self._pause:
            self.write()

    def write(self) -> None:
        """Bring the file up to date with all events, this process's and others'. Raises OutputError."""
        began = time.monotonic()
        self._log.flush()
        self._fold()
        first = -1  # rows of earlier runs stay before this one's
        rows = sorted(self._rows.items(), key=lambda item: self._order.get(item[0], first))
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, name) for name in COLUMNS] for _, (_, row) in rows)
        write_bytes(self._file, text.getvalue().encode())
        self._written = time.monotonic()
        self._pause = max(WRITE_EVERY_S, (self._written - began) / WRITE_SHARE)

    def _load(self) -> None:
        if self._file.is_file():
            try:
                text = io.StringIO(self._file.read_text(encoding="utf-8"), newline="")
                for values in csv.DictReader(text):
                    self._add("", values)  # where events say something of a slide, they win
            except (ValueError, csv.Error) as error:
                log.warning("%s: cannot be read, and is made again from the events: %s", self._file, error)
        self._fold()

    def _fold(self) -> None:
        for event in self._events.new():
            if event.get("event") == SLIDE_EVENT:
                # Who skips a slide knows no more of it than at its own start: a run beside it may have done it since.
                when = event.get("since" if event.get("status") == "skipped" else "finished")
                if not isinstance(when, str) or not self._add(when, event):
                    log.warning(
                        "%s: an event that says nothing of a slide is set aside: %.200s", self._file, event
                    )

    def _add(self, when: str, values: Mapping[str | Any, object]) -> bool:
        """Take what is newer than what is known of the slide; False where the values are of no slide."""
        texts = [values.get(name) for name in ("slide", "path", "status")]
        if not all(isinstance(text, str) and text for text in texts):
            return False
        row = ManifestRow(**{name: "" if values.get(name) is None else values[name] for name in COLUMNS})  # type: ignore[arg-type]
        key = (row.slide, row.path)
        known = self._rows.get(key)
        if known is None or when >= known[0]:
            self._rows[key] = (when, row)
        return True
