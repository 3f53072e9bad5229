import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from wsi_pipeline.base.errors import LockLostError, OutputError
from wsi_pipeline.jobs import Busy, locks
from wsi_pipeline.jobs.locks import clear_leftovers_of_locks, hold

HOLDER = """
import sys, time
from pathlib import Path
from wsi_pipeline.jobs.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    return holder


def of_another_machine(path: Path) -> None:
    """Change the lock to one whose process cannot be looked up from here."""
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"host": "elsewhere", "place": "elsewhere"}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of a twentieth of a second."""
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    monkeypatch.setattr(locks, "STALE_S", 0.2)
    locks.heartbeat.cache_clear()


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    holder = start_holder(lock)
    try:
        with pytest.raises(Busy, match=f"process {holder.pid} on "), hold(lock):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    holder = start_holder(lock)
    holder.kill()
    holder.wait()
    assert lock.exists()
    with hold(lock):
        assert json.loads(lock.read_text())["pid"] != holder.pid
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_the_lock_of_another_machine_is_taken_over_once_its_beat_stood_still(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    holder = start_holder(lock)
    holder.kill()
    holder.wait()
    of_another_machine(lock)
    began = time.monotonic()
    while True:
        try:
            with hold(lock):
                break
        except Busy:
            time.sleep(0.02)
    assert 0.2 < time.monotonic() - began < 5


@pytest.mark.usefixtures("quick")
def test_a_lock_that_beats_stays(tmp_path: Path) -> None:
    lock, held = tmp_path / "a.lock", threading.Event()
    locks.heartbeat()
    with hold(lock) as mine:
        mine.owner = type(mine.owner)(**{**vars(mine.owner), "host": "elsewhere", "place": "elsewhere"})
        lock.write_text(locks.lock_text(mine.owner, 0))
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with pytest.raises(Busy), hold(lock):
                held.set()
            time.sleep(0.02)
        mine.check()
    assert not held.is_set()


@pytest.mark.usefixtures("quick")
def test_who_slept_through_a_take_over_learns_of_it_and_leaves_the_lock_alone(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with hold(lock) as mine:
        lock.unlink()
        holder = start_holder(lock)
        try:
            time.sleep(0.3)
            with pytest.raises(LockLostError, match="taken over"):
                mine.check()
        finally:
            holder.kill()
            holder.wait()
    assert json.loads(lock.read_text())["pid"] == holder.pid


def test_of_many_threads_one_takes_a_stale_lock(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    holder = start_holder(lock)
    holder.kill()
    holder.wait()
    took, start = [], threading.Barrier(8)

    def take() -> None:
        start.wait()
        with suppress(Busy):
            took.append(locks._take(lock))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == 1
    assert json.loads(lock.read_text())["id"] == took[0].owner.id


def test_a_file_that_is_no_lock_is_waited_for_and_not_trusted(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text("half a l")
    with pytest.raises(Busy, match="another process"), hold(lock):
        pass


def test_who_slept_learns_it_at_once_also_when_the_other_one_is_done(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with hold(lock) as mine:
        mine.check()
        lock.unlink()  # taken over, worked under and released, all before the next beat
        with pytest.raises(LockLostError, match="taken over"):
            mine.check()


def test_a_process_that_is_hidden_from_this_user_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under hidepid=2: nothing in /proc, and EPERM for a signal."""
    owner = locks.new_owner()
    monkeypatch.setattr(locks, "Path", lambda path: tmp_path / "hidden" / str(path).lstrip("/"))
    monkeypatch.setattr(locks, "_place", lambda: owner.place)

    def refuse(pid: int, signum: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(locks.os, "kill", refuse)
    assert not owner.is_dead

    def find_none(pid: int, signum: int) -> None:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(locks.os, "kill", find_none)
    assert owner.is_dead


def test_what_was_left_of_making_a_lock_goes_once_it_is_old(tmp_path: Path) -> None:
    kept = ["a.lock", "b.lock." + "0" * 32, "notes.txt"]
    gone = ["a.lock." + "1" * 32, "a.lock.guard." + "2" * 32]
    for name in kept + gone:
        (tmp_path / name).touch()
        if name != kept[1]:  # which may be being made
            os.utime(tmp_path / name, (0, 0))
    clear_leftovers_of_locks(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    clear_leftovers_of_locks(tmp_path / "none")


def test_a_lock_that_cannot_be_given_back_fails_nothing_and_goes_stale(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.lock"
    with hold(path) as held:
        path.unlink()
        path.symlink_to(path)  # too many links: an error of the system, as EIO is
        with pytest.raises(OutputError, match=r"a\.lock: cannot be written: Too many levels"):
            held.check()
    assert "could not be given back" in caplog.text
