"""The bytes of a slide's files, and how trouble is distinguished from damage.

Damage is in the file: it is the same at each reading. Trouble is on the way to the file: a mount that stumbles, a disk
that reports an error, a process out of file handles. It may pass, so a read that fails is tried again, here and nowhere
else; where it does not pass the slide fails, and nothing is taken for damaged that may be whole.
"""

import errno
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from wsi_pipeline.base.errors import RegionReadError, SlideReadError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds before each further try: 5 s in all outlast a mount that hangs up and is mounted again by itself.
RETRY_WAITS_S = (0.1, 0.4, 1.5, 3.0)
PIECE_BYTES = 8 * 2**20
END_BYTES = 2**20
# What OpenSlide and the libraries under it say where bytes did not come, rather than where they make no picture.
BYTES_DID_NOT_COME = re.compile(
    r"I/?O error|read error|short read|couldn't (open|seek)|cannot read (raw tile|offset)|end of file",
    re.IGNORECASE,
)


# Trouble that no waiting mends.
LASTING = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


def with_retries(path: Path, attempt: Callable[[], T], waits_s: Sequence[float] = RETRY_WAITS_S) -> T:
    """What `attempt` gives, which is tried again after OSError, with growing waits.

    Raises SlideReadError, naming `path` and the system's reason, once the last try failed.
    """
    for wait_s in waits_s:
        try:
            return attempt()
        except OSError as error:
            if error.errno in LASTING:
                break
            log.warning("%s: a read failed (%s); tried again in %g s", path, reason(error), wait_s)
            time.sleep(wait_s)
    try:
        return attempt()
    except OSError as error:
        raise SlideReadError(
            f"{path}: could not be read: {reason(error)}; what was mapped until then is kept: see to the disk, the "
            f"mount, the right to read or the limit on open files, and run the same command again"
        ) from error


def reason(error: OSError) -> str:
    """What the system says, without the path that it may repeat."""
    return error.strerror or str(error)


class SourceFile:
    """One file open for reading by offset; safe to use from several threads.

    A read that fails is tried again on a new handle: an NFS handle gone stale, or a mount that came back, never
    answers on the old one.
    """

    def __init__(self, path: Path):
        """Raises SlideReadError when the file cannot be opened."""
        self.path = path
        self._lock = threading.Lock()
        self._handles: list[int] = []
        self._finalizer = weakref.finalize(self, _close_all, self._handles)
        with_retries(path, lambda: self._open_again(None))
        self.size = os.fstat(self._handles[-1]).st_size
        """Bytes of the file when it was opened."""

    @property
    def handle(self) -> int:
        """The number of the handle in use; of use to native code, whose failed reads are left to `read`."""
        return self._handles[-1]

    def read(self, offset: int, count: int) -> bytes:
        """The bytes from `offset`, so many.

        Raises RegionReadError when the file never had them, SlideReadError when they cannot be read.
        """
        handle = self.handle
        if offset + count <= self.size:
            try:
                data = os.pread(handle, count, offset)
            except OSError:
                return self._read_again(handle, offset, count)
            return data if len(data) == count else self._read_again(handle, offset, count)
        here = max(0, self.size - offset)
        raise RegionReadError(f"the file ends after {here:,} of {count:,} bytes of the tile")

    def close(self) -> None:
        """Close all handles; no read may be under way or come after it."""
        self._finalizer()

    def _read_again(self, failed: int, offset: int, count: int) -> bytes:
        tried = [failed]

        def attempt() -> bytes:
            tried.append(self._open_again(tried[-1]))
            return _read_exactly(tried[-1], offset, count)

        return with_retries(self.path, attempt)

    def _open_again(self, failed: int | None) -> int:
        """A handle other than the failed one. The old stays open until the end: other threads may be using it."""
        with self._lock:
            if failed is None or self._handles[-1] == failed:
                self._handles.append(os.open(self.path, os.O_RDONLY))
            return self._handles[-1]


def check_readable(paths: Iterable[Path], whole: bool = False) -> None:
    """Read the first and last bytes of each file, or all of them; raises OSError where the system cannot."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            ends = [(0, min(END_BYTES, size)), (max(0, size - END_BYTES), min(END_BYTES, size))]
            pieces = (
                [(at, min(PIECE_BYTES, size - at)) for at in range(0, size, PIECE_BYTES)] if whole else ends
            )
            for offset, count in pieces:
                _read_exactly(handle, offset, count)
        finally:
            os.close(handle)


def _read_exactly(handle: int, offset: int, count: int) -> bytes:
    """Raises OSError where fewer bytes come."""
    parts = []
    while count:
        part = os.pread(handle, count, offset)
        if not part:
            raise OSError(f"the file became shorter: it now ends at byte {offset:,}")
        parts.append(part)
        offset, count = offset + len(part), count - len(part)
    return b"".join(parts)


def _close_all(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)
