"""What people say of a slide, a line of JSON a change: nothing is ever taken out, the newest state is replayed."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import OutputError
from wsi_pipeline.base.files import OutPath, append_line, one_at_a_time, read_whole
from wsi_pipeline.jobs.leases import hold_lease
from wsi_pipeline.jobs.protocols import Busy

log = logging.getLogger(__name__)

# Beyond this a log is not read: it is none of ours.
MOST_BYTES = 64 * 2**20
# On an object store, how long somebody waits for another server to have written.
PATIENCE_S = 20.0


class RevisionConflict(Exception):
    """Somebody else changed the same since it was read."""


class _Gate:
    """Lets one thread of one process in at a time; again and again, if it is inside already."""

    def __init__(self, path: OutPath):
        self._path, self._threads, self._depth = path, threading.RLock(), 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._threads, ExitStack() as stack:
            if self._depth == 0:
                stack.enter_context(_among_processes(self._path))
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1


@contextmanager
def _among_processes(path: OutPath) -> Iterator[None]:
    if isinstance(path, Path):
        with one_at_a_time(path):
            yield
        return
    lease, give_up = path.with_name(f"{path.name}.lock"), time.monotonic() + PATIENCE_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold_lease(lease))
                break
            except Busy as error:
                if time.monotonic() > give_up:
                    raise OutputError(f"{path}: {error}; nothing was changed, try again") from error
                time.sleep(0.1)
        yield


# One for each file, whoever opens its log; they are few, and stay.
_gates: dict[str, _Gate] = {}
_making = threading.Lock()
# Of each file, how many of its lines the terminal was last warned of.
_warned: dict[str, int] = {}


@dataclass(frozen=True)
class LogContent:
    """What a log holds."""

    entries: list[dict[str, Any]]
    """Those that have a revision, in their order: they count, even where nothing else of them can be used."""

    passed_over: list[int]
    """The lines, counted from 1, that are no whole change: damaged, cut off, or changed by hand."""

    @property
    def revision(self) -> int:
        """The newest; 0 before the first change."""
        return int(self.entries[-1]["revision"]) if self.entries else 0


class AppendLog:
    """A file of entries {"revision", "time", "reviewer", ...}. From any thread of any process."""

    def __init__(self, path: OutPath, is_whole: Callable[[dict[str, Any]], bool] = lambda _: True):
        """`is_whole` says whether an entry is a change that can be used."""
        self.path, self._is_whole = path, is_whole
        with _making:
            # Held while an entry is added: `with log.held():`; hold it to do more in one piece. Raises OutputError.
            self.held = _gates.setdefault(str(path), _Gate(path))

    def read(self, warns: bool = True) -> LogContent:
        """All of it; a warning names the lines that are passed over, unless the caller does. Raises OutputError."""
        if not self.path.exists():
            return LogContent([], [])
        if self.path.stat().st_size > MOST_BYTES:
            raise OutputError(
                f"{self.path}: larger than {MOST_BYTES:,} bytes, which no review is; move it away"
            )
        content = LogContent([], [])
        for number, line in enumerate(read_whole(self.path).split(b"\n"), 1):
            if not line.strip():
                continue
            entry = _parsed(line)
            if entry is not None:
                content.entries.append(entry)
            if entry is None or not self._is_whole(entry):
                content.passed_over.append(number)
        if warns:
            self._warn(content.passed_over)
        return content

    def about_passed_over(self, content: LogContent) -> dict[str, Any] | None:
        """As the page takes it: the file, how many of its lines are no whole change, and the first; None: none is."""
        lines = content.passed_over
        return {"file": self.path.name, "lines": len(lines), "first": lines[0]} if lines else None

    def _warn(self, lines: list[int]) -> None:
        if len(lines) != _warned.get(str(self.path), 0):
            _warned[str(self.path)] = len(lines)
            if lines:
                log.warning(
                    "%s: lines that are no whole change, passed over: %d, the first is line %d; the others stand. "
                    "Mend them by hand, or enter those changes again",
                    self.path,
                    len(lines),
                    lines[0],
                )

    def add(self, revision: int, reviewer: str, values: dict[str, Any]) -> LogContent:
        """All of it, with a new entry for who knew `revision`.

        Raises RevisionConflict where the newest is another, OutputError.
        """
        with self.held():
            content = self.read()
            if revision != content.revision:
                raise RevisionConflict(
                    f"found revision {content.revision}, expected {revision}: somebody else changed this; look at it "
                    "again"
                )
            entry = {"revision": content.revision + 1, "time": now(), "reviewer": reviewer, **values}
            append_line(self.path, json.dumps(entry, ensure_ascii=True, allow_nan=False).encode())
            return LogContent([*content.entries, entry], content.passed_over)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None where it is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and type(entry.get("revision")) is int else None


def now() -> str:
    """The time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
