"""OUT/.batch/events/*.jsonl: what happened, a line of JSON an event, a file for each process that ran a batch.

A file has one writer, so that processes of many machines may write to one OUT without asking each other: what a line
says survives a kill at any instant, and a line that a kill cut short is passed over by readers. On an object store,
where nothing can be added to a file, a process puts a file every now and then. The manifest is made of these files.
"""

import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from wsi_pipeline.base.files import OutPath, names, read_whole, write_bytes, writing
from wsi_pipeline.base.text import printable_values

log = logging.getLogger(__name__)

BATCH_FOLDER = ".batch"
EVENTS = f"{BATCH_FOLDER}/events"
LOCKS = f"{BATCH_FOLDER}/locks"
# On an object store, events wait at most so long for each other.
PUT_EVERY_S = 10.0
# What says more is no number of an event.
MAX_ORDER = 2**53


class EventLog:
    """The file that this process adds its events to."""

    def __init__(self, out: OutPath):
        """Raises OutputError."""
        self._folder = out / EVENTS
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        # Random: containers may share a host's name, and have equal process ids.
        self._name = f"{stamp}-{socket.gethostname()}-{secrets.token_hex(4)}"
        self._lines: list[str] = []
        self._files, self._put = 0, time.monotonic()
        self._order = 0
        self._file: IO[str] | None = None
        if isinstance(self._folder, Path):
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = (self._folder / f"{self._name}.jsonl").open("x", encoding="utf-8")

    def write(self, event: str, **values: Any) -> int:
        """Add an event; it survives the end of the process, on an object store from the next put on.

        Gives its number. Raises OutputError.
        """
        order = self.tick()
        line = {"time": now(), "order": order, "event": event, **values}
        self._lines.append(json.dumps(printable_values(line)) + "\n")
        if self._file or time.monotonic() - self._put > PUT_EVERY_S:
            self.flush()
        return order

    def heard(self, order: int) -> None:
        """What is written from now on comes after that number."""
        self._order = max(self._order, order)

    def tick(self) -> int:
        """A number above all that were written or heard."""
        self._order += 1
        return self._order

    def flush(self) -> None:
        """Let readers see all events so far. Raises OutputError."""
        text = "".join(self._lines)
        if self._file:
            with writing(self._folder):
                self._file.write(text)
                self._file.flush()
        elif text:
            write_bytes(self._folder / f"{self._name}-{self._files:06d}.jsonl", text.encode())
            self._files, self._put = self._files + 1, time.monotonic()
        self._lines.clear()

    def close(self) -> None:
        """No more events."""
        self.flush()
        if self._file:
            self._file.close()


class EventReader:
    """Reads the events of an OUT, its own and other processes', each line once."""

    def __init__(self, out: OutPath):
        self._folder = out / EVENTS
        self._read: dict[str, int] = {}  # bytes read, by file name
        self._unread: set[str] = set()  # files that could not be read, of which a line was written

    def new(self) -> Iterator[dict[str, Any]]:
        """The events that were added since the last call, file by file."""
        if not isinstance(self._folder, Path):
            yield from self._new_files(self._folder)
            return
        if not self._folder.is_dir():
            return
        for entry in sorted(os.scandir(self._folder), key=lambda entry: entry.name):
            start = self._read.get(entry.name, 0)
            for line in self._lines_from(entry, start) if entry.name.endswith(".jsonl") else ():
                start += len(line)
                if event := _parse(line):
                    yield event
            self._read[entry.name] = start

    def _lines_from(self, entry: os.DirEntry[str], start: int) -> list[bytes]:
        """Whole lines of the file from there on; none of one that cannot be read now: what it says comes later."""
        lines: list[bytes] = []
        try:
            if entry.stat().st_size <= start:
                return lines
            with open(entry.path, "rb") as file:  # noqa: PTH123
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # not yet whole, or never
                    lines.append(line)
        except OSError as error:
            if entry.path not in self._unread:
                _warn_unread(entry.path, error)
                self._unread.add(entry.path)
        return lines

    def _new_files(self, folder: OutPath) -> Iterator[dict[str, Any]]:
        """On an object store, where a file never grows."""
        for name in sorted(names(folder)):
            if name.endswith(".jsonl") and name not in self._read:
                data = read_whole(folder / name)
                self._read[name] = len(data)
                yield from filter(None, map(_parse, data.splitlines()))


def events_by_process(out: OutPath) -> Iterator[list[dict[str, Any]]]:
    """Of each process that ran a batch there, its events in their order."""
    folder = out / EVENTS
    found = [name for name in names(folder) if name.endswith(".jsonl")]
    for _, files in groupby(sorted(found), key=lambda name: _PUT_NUMBER.sub("", name)):
        lines: list[bytes] = []
        for name in files:
            try:
                lines += read_whole(folder / name).splitlines()
            except OSError as error:
                _warn_unread(str(folder / name), error)
        yield [event for event in map(_parse, lines) if event]


# On an object store a process has several files, counted.
_PUT_NUMBER = re.compile(r"(-\d{6})?\.jsonl$")


def order_of(event: dict[str, Any], name: str = "order") -> int:
    """The number under that name; 0 of events of earlier versions, which have none, and of what is none."""
    value = event.get(name)
    return value if type(value) is int and 0 <= value < MAX_ORDER else 0


def now() -> str:
    """The time in UTC, as events and the manifest say it, for people: clocks are not compared."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")


def _warn_unread(path: str, error: OSError) -> None:
    log.warning(
        "%s: cannot be read: %s; what its process did is missing here until it can be: see to the disk or mount, and "
        "to your rights there",
        path,
        error.strerror or error,
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    # Events of earlier versions may hold names that are no text.
    return printable_values(value) if isinstance(value, dict) else None
