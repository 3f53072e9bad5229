"""OUT/.batch/events/*.jsonl: what happened, a line of JSON an event, a file for each process that ran a batch.

A file has one writer, so that processes of many machines may write to one OUT without asking each other: what a line
says survives a kill at any instant, and a line that a kill cut short is passed over by readers. The manifest is
made of these files.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BATCH_FOLDER = ".batch"
EVENTS = f"{BATCH_FOLDER}/events"
LOCKS = f"{BATCH_FOLDER}/locks"


class EventLog:
    """The file that this process adds its events to."""

    def __init__(self, out: Path):
        folder = out / EVENTS
        folder.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.path = folder / f"{stamp}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._file = self.path.open("x", encoding="utf-8")

    def write(self, event: str, **values: Any) -> None:
        """Add an event; it is on its way to the disk when this returns, and survives the end of the process."""
        line = json.dumps({"time": now(), "event": event, **values})
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """No more events."""
        self._file.close()


class EventReader:
    """Reads the events of an OUT, its own and other processes', each line once."""

    def __init__(self, out: Path):
        self._folder = out / EVENTS
        self._read: dict[str, int] = {}  # bytes read, by file name

    def new(self) -> Iterator[dict[str, Any]]:
        """The events that were added since the last call, file by file."""
        if not self._folder.is_dir():
            return
        for entry in sorted(os.scandir(self._folder), key=lambda entry: entry.name):
            start = self._read.get(entry.name, 0)
            if not entry.name.endswith(".jsonl") or entry.stat().st_size <= start:
                continue
            with open(entry.path, "rb") as file:  # noqa: PTH123
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # not yet whole, or never
                    start += len(line)
                    if event := _parse(line):
                        yield event
            self._read[entry.name] = start


def now() -> str:
    """The time in UTC, as events and the manifest say it; such texts sort by time."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
