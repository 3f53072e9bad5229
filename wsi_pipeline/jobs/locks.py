"""One piece of work, one process: lock files with a heartbeat, for processes of one machine or of many.

A lock is a small file that says whose it is. It is made by linking a finished file to its name, which only one
process can do, on NFS too. While a lock is held, a thread of its process writes a new beat into it every
`BEAT_S` seconds. A lock is stale, and is taken over,

- at once, if its process ran on this machine and is no more (by boot, container, process id and start);
- else when another process has watched it for `STALE_S` seconds without seeing a new beat. Whoever watches
  measures that time by its own clock: clocks of machines are never compared.

One process at a time clears a stale file away (a guard beside it sees to that), and looks once more before it does.
A process that was only asleep finds, at its next beat and before each of its writes, that the lock is another's or
gone, and its work ends with a LockLostError: whoever writes under a lock calls `Held.check` first.

Files are read by opening them, which on NFS shows what was last closed (close-to-open consistency); their times
are not used. An object store has neither links nor renames: leases.py does there what this file does in a folder.
"""

import errno
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from wsi_pipeline.base.errors import LockLostError, OutputError
from wsi_pipeline.base.files import note_inodes, remove_old, writing
from wsi_pipeline.jobs.protocols import Busy

log = logging.getLogger(__name__)

BEAT_S = 15.0
# Four beats missed: an NFS client that waits for its server has mostly come back by then.
STALE_S = 4 * BEAT_S
# A stale lock is cleared away in much less.
GUARD_POLL_S = 0.02
# What a lock is made of, and what a stale one is called while it is cleared away.
_BESIDE = re.compile(r".+\.lock(\.guard)?\.[0-9a-f]{32}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# All that is known of some processes.
LIVES = "lives"


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: a random id for each holding, and where its process runs."""

    id: str
    host: str
    pid: int
    place: str
    started: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_dead(self) -> bool:
        """Whether it ran where this process runs and is no more; False where that cannot be known."""
        return self.place == _place() and _start_of(self.pid) not in (self.started, LIVES)


class Beats(Protocol):
    """A lock, or what stands for one, that is held."""

    path: Any

    def beat(self) -> None:
        """Say that the holder lives."""


class Held:
    """A lock that this process holds."""

    def __init__(self, path: Path, owner: Owner):
        self.path, self.owner = path, owner
        self._beats, self._lost = 0, False

    def check(self) -> None:
        """Raises LockLostError if another process has taken it over, also if that one is done since; OutputError."""
        with writing(self.path):
            owner, _ = (None, None) if self._lost else _read(self.path)
        if owner is None or owner.id != self.owner.id:
            self._lost = True
            raise LockLostError(
                f"{self.path}: taken over by another process while this one made no headway for over {STALE_S:g} s; "
                f"the other one goes on with the work"
            )

    def beat(self) -> None:
        """Say that the holder lives."""
        owner, _ = _read(self.path)
        if owner is None or owner.id != self.owner.id:
            self._lost = True
            return
        self._beats += 1
        with self.path.open("r+", encoding="utf-8") as file:
            file.write(lock_text(self.owner, self._beats))

    def release(self) -> None:
        """Let others have it. Where it cannot be removed, it goes stale by itself: what was done under it stands."""
        try:
            owner, _ = _read(self.path)
            if owner is not None and owner.id == self.owner.id:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: could not be given back, and goes stale: %s", self.path, error)


@contextmanager
def hold(path: Path) -> Iterator[Held]:
    """The lock at `path`, held while the block runs.

    Raises Busy where another process holds it; ask again later, in the same process, so that it can be seen
    whether that one still lives. Raises OutputError.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _take(path)
    heartbeat().add(held)
    try:
        yield held
    finally:
        heartbeat().remove(held)
        held.release()


def _take(path: Path) -> Held:
    while True:
        owner = new_owner()
        if _create(path, owner):
            return Held(path, owner)
        holder, beat = _read(path)
        if holder is None and beat is None:
            continue  # released in this moment
        if not is_stale(path, holder, beat):
            raise Busy(f"{holder or 'another process'} works on it ({path})")
        log.warning("%s: taken over from %s, which is gone", path, holder or "a holder that wrote no name")
        _clear_away(path, holder)


def new_owner() -> Owner:
    """This process, about to hold a lock."""
    return Owner(
        uuid.uuid4().hex,
        socket.gethostname(),
        os.getpid(),
        _place(),
        _start_of(os.getpid()),
        time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def _create(path: Path, owner: Owner) -> bool:
    """Whether the lock is now the owner's: its file, whole, under the lock's name."""
    beside = path.with_name(f"{path.name}.{owner.id}")
    try:
        beside.write_text(lock_text(owner, 0), encoding="utf-8")
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_ROOM:
            note_inodes(path, error)
            raise
        # A file system without links: the next best that only one process can do.
        try:
            with path.open("x", encoding="utf-8") as file:
                try:
                    file.write(lock_text(owner, 0))
                    file.flush()
                except OSError:
                    path.unlink(missing_ok=True)  # nobody's, if it does not say whose
                    raise
        except FileExistsError:
            return False
        return True
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return True


def clear_leftovers_of_locks(folder: Path) -> None:
    """Remove what processes left that were killed in the instant in which they made or cleared a lock there."""
    remove_old(folder, _BESIDE)


def _clear_away(path: Path, holder: Owner | None) -> None:
    """Take the stale lock off its name, unless another process was quicker.

    One process at a time, by a guard beside the lock: who had found the lock stale, and came late, would else take
    the next holder's away. A guard whose process died is stale as a lock is.
    """
    guard = path.with_name(f"{path.name}.guard")
    if not _create(guard, new_owner()):
        keeper, beat = _read(guard)
        if (keeper or beat) and is_stale(guard, keeper, beat):
            guard.unlink(missing_ok=True)
        time.sleep(GUARD_POLL_S)
        return
    try:
        if _read(path)[0] == holder:
            _move_away(path, holder)
    finally:
        guard.unlink(missing_ok=True)


def _move_away(path: Path, holder: Owner | None) -> None:
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    moved, _ = _read(aside)
    if moved != holder:  # its holder woke and released it, and this one is the next holder's: give it back
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink()


def is_stale(path: Path | str, holder: Owner | None, beat: int | None) -> bool:
    """Whether the lock there, last read as this holder's with this beat, is one that nobody holds any more."""
    if holder is not None and holder.is_dead:
        return True
    now, state = time.monotonic(), (holder.id if holder else None, beat)
    seen, since = _watched.get(path, (None, now))
    if seen != state:
        _watched[path] = (state, now)
        return False
    return now - since > STALE_S


# What this process last saw in others' locks, and since when.
_watched: dict[Path | str, tuple[tuple[str | None, int | None], float]] = {}


def lock_text(owner: Owner, beat: int) -> str:
    """What a lock holds."""
    # Of one length whatever the beat, so that writing over it leaves nothing of the last.
    return json.dumps({"beat": f"{beat:012d}", **asdict(owner)}) + "\n"


def _read(path: Path) -> tuple[Owner | None, int | None]:
    """The holder and its beat: none of both without a file; no holder and a number of what is no lock's text."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None, None
    return parse_lock(text)


def parse_lock(text: str) -> tuple[Owner | None, int]:
    """The holder and the beat that a lock's text says; no holder and a number of what is none."""
    try:
        values: dict[str, Any] = json.loads(text)
        beat = int(values.pop("beat"))
        return Owner(**values), beat
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None, hash(text)


@cache
def _place() -> str:
    """Where process ids mean what they mean to this process: this boot of this machine, this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return socket.gethostname()


def _start_of(pid: int) -> str:
    """When the process of this place started, which tells it from a later one of its number; empty if it is no more.

    Where the system does not say, only that it lives.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except OSError:  # no Linux; or it is another user's, whose processes are hidden here (hidepid=2)
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:  # EPERM: it is there
        pass
    return LIVES


class _Heartbeat(threading.Thread):
    """Beats for all locks of this process."""

    def __init__(self) -> None:
        super().__init__(name="lock heartbeat", daemon=True)
        self._held: set[Beats] = set()
        self._guard = threading.Lock()

    def add(self, held: Beats) -> None:
        """Beat for it too."""
        with self._guard:
            self._held.add(held)

    def remove(self, held: Beats) -> None:
        """Beat for it no more."""
        with self._guard:
            self._held.discard(held)

    def run(self) -> None:
        while True:
            time.sleep(BEAT_S)
            with self._guard:
                for held in self._held:
                    try:
                        held.beat()
                    except (
                        OSError,
                        OutputError,
                    ) as error:  # it may answer at the next beat
                        log.warning("%s: no heartbeat could be written: %s", held.path, error)


@cache
def heartbeat() -> _Heartbeat:
    """That of this process."""
    heart = _Heartbeat()
    heart.start()
    return heart
