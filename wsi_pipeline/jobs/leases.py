"""One piece of work, one process, where results lie on an object store: leases, as locks.py has locks.

A store has no links. A lease is an object that says whose it is, with a beat that grows while the holder lives. It is
made by a conditional put, which only one process can do, where the store knows that (S3 does: If-None-Match). Where it
does not, whoever wants the lease puts its token, waits until all who wanted it at the same moment have put theirs, and
has it if its own is still there. A stale lease (locks.py says when one is) is taken over in that second way on any
store. Before each write its holder looks whether the lease is still its own, once a second at most: of two processes
that believed to have it, one ends its work within that second.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from wsi_pipeline.base.errors import LockLostError, OutputError
from wsi_pipeline.base.files import OutPath, read_whole, remove, write_bytes, write_new_bytes
from wsi_pipeline.jobs.locks import (
    STALE_S,
    Owner,
    heartbeat,
    is_stale,
    lock_text,
    new_owner,
    parse_lock,
)
from wsi_pipeline.jobs.protocols import Busy

log = logging.getLogger(__name__)

# Puts that began at one moment are all done after so long, or the store is so slow that nothing goes on at all.
SETTLE_S = 2.0
CHECK_EVERY_S = 1.0


class Lease:
    """A lease that this process holds."""

    def __init__(self, path: OutPath, owner: Owner):
        self.path, self.owner = path, owner
        self._beats, self._lost, self._checked = 0, False, _moment()

    def check(self) -> None:
        """Raises LockLostError if another process has taken it over, as far as that was seen a second ago."""
        if not self._lost and _moment() - self._checked > CHECK_EVERY_S:
            self._look()
        if self._lost:
            raise LockLostError(
                f"{self.path}: taken over by another process while this one made no headway for over {STALE_S:g} s, or "
                f"wanted at the same moment; the other one goes on with the work"
            )

    def beat(self) -> None:
        """Say that the holder lives."""
        self._look()
        if not self._lost:
            self._beats += 1
            write_bytes(self.path, lock_text(self.owner, self._beats).encode())

    def release(self) -> None:
        """Let others have it."""
        self._look()
        if not self._lost:
            remove(self.path)

    def _look(self) -> None:
        owner, _ = _read(self.path)
        self._checked = _moment()
        self._lost = owner is None or owner.id != self.owner.id


@contextmanager
def hold_lease(path: OutPath) -> Iterator[Lease]:
    """The lease at `path`, held while the block runs.

    Raises Busy where another process holds it; ask again later, in the same process. Raises OutputError where the
    store does not answer.
    """
    lease = _take(path)
    heartbeat().add(lease)
    try:
        yield lease
    finally:
        heartbeat().remove(lease)
        with suppress(OutputError):  # it goes stale by itself
            lease.release()


def _take(path: OutPath) -> Lease:
    while True:
        owner = new_owner()
        holder, beat = _read(path)
        if holder is not None or beat is not None:
            if not is_stale(str(path), holder, beat):
                raise Busy(f"{holder or 'another process'} works on it ({path})")
            log.warning(
                "%s: taken over from %s, which is gone", path, holder or "a holder that wrote no name"
            )
        elif (made := write_new_bytes(path, lock_text(owner, 0).encode())) is not None:
            if made:
                return Lease(path, owner)
            continue
        write_bytes(path, lock_text(owner, 0).encode())
        time.sleep(SETTLE_S)
        settled, _ = _read(path)
        if settled is not None and settled.id == owner.id:
            return Lease(path, owner)


def _read(path: OutPath) -> tuple[Owner | None, int | None]:
    try:
        text = read_whole(path).decode()
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: cannot be read: {' '.join(str(error).split())}; see to the store, and run the same command again"
        ) from error
    return parse_lock(text)


def _moment() -> float:
    """Seconds that went on while the machine slept, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
