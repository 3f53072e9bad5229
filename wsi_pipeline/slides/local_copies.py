"""Slides on slow mounts, copied to a local folder ahead of use, and removed after it.

Each process has a folder of its own in the one that the user names, with a lock beside it that the system lets go
of when the process ends, however it ends: what a killed process left is removed by the next one that starts.
"""

import fcntl
import logging
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from wsi_pipeline.base.errors import SlideError, UsageError
from wsi_pipeline.slides.readers.formats import slide_files
from wsi_pipeline.slides.slide import slide_file

log = logging.getLogger(__name__)

PREFIX, LOCK = "wsi_pipeline-", ".lock"
# Left free on the local disk whatever the limit says: others write there too.
SPARE_BYTES = 256 * 2**20
PIECE_BYTES = 8 * 2**20


@dataclass(eq=False)
class _Copy:
    """One slide's copy, on its way or there: `future` gives its first file, None where there is no copy."""

    path: Path
    future: "Future[Path | None]"
    folder: Path
    size: int = 0
    wanted: bool = False  # somebody waits for it, or reads it


class Stager:
    """Local copies of slides, at most so many bytes at once; a context, at whose end nothing of them is left.

    Slides are copied one after another on a thread, in the order in which they were named.
    """

    def __init__(self, folder: Path, limit_bytes: int):
        """Raises UsageError when nothing can be written in `folder`."""
        self._limit = limit_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(folder)
            self._lock, self._folder = _own_folder(folder)
        except OSError as error:
            raise UsageError(
                f"--stage-to {folder}: cannot be written: {error.strerror}; name a local folder that can be, or "
                f"leave it out to read the slides in place"
            ) from error
        self._copies: dict[Path, _Copy] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._todo: queue.SimpleQueue[_Copy | None] = queue.SimpleQueue()
        # A process that ends without closing does not wait for copies.
        self._thread = threading.Thread(target=self._work, name="stager", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Stager":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop copying, and remove all copies."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._todo.put(None)
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.unlink(self._lock.name)  # noqa: PTH108
        self._lock.close()

    def begin(self, path: Path) -> "Future[Path | None]":
        """Copy this slide too, once there is room; returns at once what will be its copy's first file, or None."""
        with self._changed:
            if path not in self._copies:
                copy = _Copy(path, Future(), self._folder / f"{os.urandom(6).hex()}")
                if self._closed:
                    copy.future.set_result(None)
                    return copy.future
                self._copies[path] = copy
                self._todo.put(copy)
            return self._copies[path].future

    @contextmanager
    def copy_of(self, path: Path) -> Iterator[Path | None]:
        """The slide's first file in the copy, which is removed after the block; None: read it in place."""
        try:
            yield self.get(path)
        finally:
            self.release(path)

    def get(self, path: Path) -> Path | None:
        """The same, waited for; until `release`."""
        with self._changed:
            self.begin(path)
            if (copy := self._copies.get(path)) is None:  # closed
                return None
            copy.wanted = True
            self._changed.notify_all()
        return copy.future.result()

    def release(self, path: Path) -> None:
        """Nobody reads this copy any more."""
        with self._changed:
            if copy := self._copies.pop(path, None):
                self._drop(copy)

    def _work(self) -> None:
        while (copy := self._todo.get()) is not None:
            self._bring(copy)

    def _bring(self, copy: _Copy) -> None:
        """On the thread: copy the slide, if it may be."""
        if self._closed:
            self._give_up(copy)
            return
        first = None
        try:
            first = self._copied(copy)
        except (OSError, SlideError) as error:
            # A full disk, or a slide that cannot be read: whoever opens it in place says why, if it matters.
            log.warning("%s: not staged, read in place: %s", copy.path, error)
        finally:
            if first is None:
                self._give_up(copy)
            else:
                copy.future.set_result(first)

    def _copied(self, copy: _Copy) -> Path | None:
        first = slide_file(copy.path)
        files = slide_files(first)
        before = [os.stat(file) for file in files]  # noqa: PTH116
        size = sum(state.st_size for state in before)
        if not self._make_room(copy, size):
            return None
        for file in files:
            self._copy_file(file, copy.folder / file.relative_to(first.parent))
        if [(s.st_size, s.st_mtime_ns) for s in before] != [
            (s.st_size, s.st_mtime_ns) for s in map(os.stat, files)
        ]:
            raise OSError("it changed while it was copied")
        return copy.folder / first.name

    def _make_room(self, copy: _Copy, size: int) -> bool:
        """Wait until the slide fits; False where it never will, or where another one is waited for."""
        with self._changed:
            while not self._closed:
                used = sum(other.size for other in self._copies.values())
                free = shutil.disk_usage(self._folder).free - SPARE_BYTES
                if used + size <= self._limit and size <= free:
                    copy.size = size
                    return True
                idle = [c for c in self._copies.values() if c.size and not c.wanted]
                if copy.wanted and idle:
                    for other in idle:
                        self._drop(self._copies.pop(other.path))
                elif copy.wanted or size > self._limit:
                    log.warning(
                        "%s: not staged, read in place: %.2f GB, room for %.2f GB",
                        copy.path,
                        size / 1e9,
                        max(0, min(self._limit - used, free)) / 1e9,
                    )
                    return False
                elif any(other.wanted and not other.future.done() for other in self._copies.values()):
                    return False
                else:
                    self._changed.wait()
            return False

    def _copy_file(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reading, target.open("wb") as writing:
            while piece := reading.read(PIECE_BYTES):
                if self._closed:
                    raise OSError("the run ends")
                writing.write(piece)

    def _give_up(self, copy: _Copy) -> None:
        with self._changed:
            if not copy.wanted:  # asked for later, it is tried again
                self._copies.pop(copy.path, None)
            self._drop(copy)
        copy.future.set_result(None)

    def _drop(self, copy: _Copy) -> None:
        shutil.rmtree(copy.folder, ignore_errors=True)
        copy.size = 0
        self._changed.notify_all()


def _own_folder(folder: Path) -> tuple[IO[bytes], Path]:
    """A new folder, and the open lock beside it that says that its process lives."""
    while True:
        own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        lock = own.with_name(own.name + LOCK).open("xb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have taken the lock for an abandoned one before it was locked.
        if own.is_dir() and Path(lock.name).exists():
            return lock, own
        lock.close()


def _remove_abandoned(folder: Path) -> None:
    """Remove the folders of processes that are no more."""
    for path in folder.glob(f"{PREFIX}*{LOCK}"):
        with suppress(OSError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.info("%s: removing what a process that is no more left here", path)
            shutil.rmtree(path.with_name(path.name.removesuffix(LOCK)), ignore_errors=True)
            path.unlink()
