"""What people say of a slide, a line of JSON a change: nothing is ever taken out, the newest state is replayed."""

import json
import threading
from datetime import UTC, datetime
from typing import Any

from wsi_pipeline.base.errors import OutputError
from wsi_pipeline.base.files import OutPath, append_line

# Beyond this a log is not read: it is none of ours.
MOST_BYTES = 64 * 2**20


class RevisionConflict(Exception):
    """Somebody else changed the same since it was read."""


# One for each file, whoever opens its log; they are few, and stay.
_locks: dict[str, threading.RLock] = {}
_making = threading.Lock()


class AppendLog:
    """A file of entries {"revision", "time", "reviewer", ...}.

    From any thread of one process; another process that adds to the same file is not noticed.
    """

    def __init__(self, path: OutPath):
        self.path = path
        with _making:
            # Held while an entry is added; hold it to do more in one piece.
            self.lock = _locks.setdefault(str(path), threading.RLock())

    def entries(self) -> list[dict[str, Any]]:
        """All entries in their order; lines that are not whole are passed over. Raises OutputError."""
        if not self.path.exists():
            return []
        if self.path.stat().st_size > MOST_BYTES:
            raise OutputError(
                f"{self.path}: larger than {MOST_BYTES:,} bytes, which no review is; move it away"
            )
        found = []
        for line in self.path.read_bytes().splitlines():
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
        with self.lock:
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
