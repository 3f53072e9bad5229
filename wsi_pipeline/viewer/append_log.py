"""What people say of a slide, a line of JSON a change: nothing is ever taken out, the newest state is replayed."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import OutputError
from wsi_pipeline.base.files import OutPath, append_line, one_at_a_time, read_whole
from wsi_pipeline.jobs.leases import hold_lease
from wsi_pipeline.jobs.protocols import Busy

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


class AppendLog:
    """A file of entries {"revision", "time", "reviewer", ...}. From any thread of any process."""

    def __init__(self, path: OutPath):
        self.path = path
        with _making:
            # Held while an entry is added: `with log.held():`; hold it to do more in one piece. Raises OutputError.
            self.held = _gates.setdefault(str(path), _Gate(path))

    def entries(self) -> list[dict[str, Any]]:
        """All entries in their order; lines that are not whole are passed over. Raises OutputError."""
        if not self.path.exists():
            return []
        if self.path.stat().st_size > MOST_BYTES:
            raise OutputError(
                f"{self.path}: larger than {MOST_BYTES:,} bytes, which no review is; move it away"
            )
        found = []
        for line in read_whole(self.path).splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and isinstance(entry.get("revision"), int):
                found.append(entry)
        return found

    def add(self, revision: int, reviewer: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        """All entries, with a new one for who knew `revision`.

        Raises RevisionConflict where the newest is another, OutputError.
        """
        with self.held():
            entries = self.entries()
            newest = entries[-1]["revision"] if entries else 0
            if revision != newest:
                raise RevisionConflict(
                    f"found revision {newest}, expected {revision}: somebody else changed this; look at it again"
                )
            entry = {"revision": newest + 1, "time": now(), "reviewer": reviewer, **values}
            append_line(self.path, json.dumps(entry, ensure_ascii=True, allow_nan=False).encode())
            return [*entries, entry]


def now() -> str:
    """The time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
