"""OUT/manifest.csv: a row a slide, made of the events of every process that ever worked in OUT.

The events are the record, a line a slide that is never rewritten; the manifest is the view for people, written whole
beside and renamed, now and then while a batch runs and at its end. So the cost of a slide does not grow with
their number, and processes of many machines that write it at one time lose nothing: the last one to end has read all
the others' events, and where it has not, the next run does.

Of several events of a slide the one of the last attempt counts, by the numbers that events have (jobs/events.py) and
not by clocks: an attempt comes after another if its writer knew of the other. A run that was refused before it touched
what lies there (another model, say) leaves the row of a result as it is.
"""

import csv
import io
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from wsi_pipeline.base.files import OutPath, read_whole, write_bytes
from wsi_pipeline.base.text import for_spreadsheet, from_spreadsheet, on_one_line
from wsi_pipeline.jobs.events import EventLog, EventReader, order_of

log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.csv"
SLIDE_EVENT = "slide"
# Written at most so often, and never for more than this share of the time.
WRITE_EVERY_S = 10.0
WRITE_SHARE = 0.02


Status = Literal["done", "failed", "skipped"]
STATUSES = get_args(Status)


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """What became of one slide in the last run that met it."""

    slide: str
    path: str
    status: Status
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
    patient: str = ""


COLUMNS = [field.name for field in fields(ManifestRow)]
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Known:
    """A row, and what says how it stands to other rows of its slide."""

    row: ManifestRow
    rank: int
    """The higher one counts."""
    when: str
    """In UTC: between equal ranks, those of processes that knew nothing of each other, and of earlier versions."""
    began: int
    """The number of its attempt's beginning."""

    def beats(self, other: "_Known | None") -> bool:
        return other is None or (self.rank, self.when) >= (other.rank, other.when)


class Manifest:
    """The rows of an output folder, by the slide's name and path."""

    def __init__(self, out: OutPath, log: EventLog, started: str, expected: list[Key]):
        """`started` is when this run began; `expected` name and path of its slides, in the order of their rows."""
        self._file, self._log, self._started = out / MANIFEST_NAME, log, started
        self._order = {key: i for i, key in enumerate(expected)}
        self._rows: dict[Key, _Known] = {}
        self._refused: dict[Key, _Known] = {}
        self._events = EventReader(out)
        self._written, self._pause = time.monotonic(), WRITE_EVERY_S
        self._load()
        self._began = log.tick()

    def started(self, slide: str, **values: Any) -> int:
        """Write that an attempt at the slide begins; gives its number, for `record`. Raises OutputError."""
        self._fold()
        return self._log.write("slide_started", slide=slide, **values)

    def record(self, row: ManifestRow, began: int = 0, refused: bool = False) -> bool:
        """Add or replace the slide's row: in the events at once, in the file soon; whether it is the slide's row now.

        began: the number of its attempt, as `started` gave it. refused: what lies there was not touched; the row
        counts only where the slide has none of a result. Raises OutputError.
        """
        self._fold()
        key = (row.slide, row.path)
        if row.status == "skipped":
            # Who skips a slide knows no more of it than at its own start: a run beside it may have done it since.
            rank = self._began
        else:
            known = self._rows.get(key)
            # An attempt that began later has been recorded before this one: this process slept, or was slow.
            rank = began if began and known and known.began > began else self._log.tick()
        values = asdict(row) | {"began": began, "rank": rank, "refused": refused}
        self._log.write(SLIDE_EVENT, since=self._started, **values)
        if row.status == "failed":
            self._log.flush()  # on an object store, too, the next attempt knows of it
        self._fold()
        if time.monotonic() - self._written > self._pause:
            self.write()
        return self._row(key) == row

    def write(self) -> None:
        """Bring the file up to date with all events, this process's and others'. Raises OutputError."""
        began = time.monotonic()
        self._log.flush()
        self._fold()
        first = -1  # rows of earlier runs stay before this one's
        replaced = self._replaced()
        keys = [key for key in {**self._rows, **self._refused} if key not in replaced]
        keys.sort(key=lambda key: self._order.get(key, first))
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(self._row(key), name)) for name in COLUMNS] for key in keys)
        write_bytes(self._file, text.getvalue().encode())
        self._written = time.monotonic()
        self._pause = max(WRITE_EVERY_S, (self._written - began) / WRITE_SHARE)

    def _replaced(self) -> set[Key]:
        """Rows of results in whose place those of a later path lie: a slide that was moved, or one of its name."""
        done = {key: known for key, known in self._rows.items() if known.row.status != "failed"}
        newest: dict[str, _Known] = {}
        for (name, _), known in done.items():
            if known.beats(newest.get(name)):
                newest[name] = known
        return {key for key, known in done.items() if known is not newest[key[0]]}

    def _row(self, key: Key) -> ManifestRow | None:
        worked, refused = self._rows.get(key), self._refused.get(key)
        if refused and (worked is None or (worked.row.status == "failed" and refused.beats(worked))):
            return refused.row
        return worked.row if worked else None

    def _load(self) -> None:
        if self._file.is_file():
            try:
                text = io.StringIO(read_whole(self._file).decode(), newline="")
                for values in csv.DictReader(text):
                    values = {
                        key: from_spreadsheet(text) for key, text in values.items() if isinstance(text, str)
                    }
                    if not self._add(-1, "", values):  # where events say something of a slide, they win
                        log.warning("%s: a row of no slide is left out: %.200s", self._file, values)
            except (ValueError, csv.Error) as error:
                log.warning("%s: cannot be read, and is made again from the events: %s", self._file, error)
        self._fold()

    def _fold(self) -> None:
        for event in self._events.new():
            self._log.heard(order_of(event))
            if event.get("event") == SLIDE_EVENT:
                when = event.get("since" if event.get("status") == "skipped" else "finished")
                if not isinstance(when, str) or not self._add(order_of(event, "rank"), when, event):
                    log.warning(
                        "%s: an event that says nothing of a slide is set aside: %.200s", self._file, event
                    )

    def _add(self, rank: int, when: str, values: Mapping[str | Any, Any]) -> bool:
        """Take what is newer than what is known of the slide; False where the values are of no slide."""
        texts = [values.get(name) for name in ("slide", "path", "status")]
        if not all(isinstance(text, str) and text for text in texts) or texts[-1] not in STATUSES:
            return False
        if not all(isinstance(values.get(name), str | int | float | None) for name in COLUMNS):
            return False
        row = ManifestRow(**{name: "" if values.get(name) is None else values[name] for name in COLUMNS})  # type: ignore[arg-type]
        key = (row.slide, row.path)
        new = _Known(row, rank, when, order_of(dict(values), "began"))
        rows = self._refused if values.get("refused") is True else self._rows
        if new.beats(rows.get(key)):
            rows[key] = new
        return True


def _cell(value: Any) -> Any:
    """As the file has it: events that others wrote may hold what steers a terminal or a spreadsheet."""
    return for_spreadsheet(on_one_line(value) if isinstance(value, str) else value)
