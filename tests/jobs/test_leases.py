"""Leases on a real object store, and on one in memory that heeds no condition."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import s3_server_or_skip

from wsi_pipeline.base import files
from wsi_pipeline.base.errors import LockLostError
from wsi_pipeline.base.files import OutPath, out_path, remove, write_bytes
from wsi_pipeline.jobs import Busy, leases, locks
from wsi_pipeline.jobs.leases import hold_lease


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server_or_skip(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture(params=["as the store is", "heeds no condition"])
def place(request, server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> OutPath:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(leases, "SETTLE_S", 0.5)
    monkeypatch.setattr(leases, "CHECK_EVERY_S", 0.0)
    if request.param == "heeds no condition":
        monkeypatch.setattr(files, "_heeds_conditions", lambda path: False)
    path = out_path("s3://maps/leases") / f"{request.node.name.partition('[')[0]}.lock"
    remove(path)
    return path


def test_a_lease_is_held_by_one_at_a_time_and_can_be_had_after(place: OutPath) -> None:
    with hold_lease(place) as mine:
        mine.check()
        with pytest.raises(Busy, match=r"process \d+ on "), hold_lease(place):
            pass
    with hold_lease(place) as mine:
        mine.check()
    assert not place.exists()


def test_of_many_that_want_it_at_one_moment_one_works_at_a_time(place: OutPath) -> None:
    worked, start = [], threading.Barrier(6)

    def want(number: int) -> None:
        start.wait()
        with suppress(Busy, LockLostError), hold_lease(place) as mine:
            began = time.monotonic()
            time.sleep(0.8)
            mine.check()
            worked.append((began, time.monotonic(), number))

    threads = [threading.Thread(target=want, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worked
    turns = sorted(worked)
    assert all(after[0] > before[1] - 0.1 for before, after in pairwise(turns)), turns


def test_who_slept_through_a_take_over_learns_of_it_and_leaves_the_lease_alone(place: OutPath) -> None:
    with hold_lease(place) as mine:
        other = json.loads(place.read_text()) | {"id": "another"}
        write_bytes(place, json.dumps(other).encode())
        with pytest.raises(LockLostError, match="taken over"):
            mine.check()
    assert json.loads(place.read_text())["id"] == "another"


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over(place: OutPath) -> None:
    with hold_lease(place):
        dead = json.loads(place.read_text()) | {"id": "dead", "started": "long ago"}
    write_bytes(place, json.dumps(dead).encode())
    with hold_lease(place) as mine:
        assert json.loads(place.read_text())["id"] == mine.owner.id


def test_a_lease_whose_beat_stands_still_is_taken_over_and_one_that_beats_is_not(
    place: OutPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 0.6)
    with hold_lease(place):
        far = json.loads(place.read_text()) | {"id": "far", "host": "elsewhere", "place": "elsewhere"}
    beats = 0
    end = time.monotonic() + 2
    while time.monotonic() < end:  # it beats
        beats += 1
        write_bytes(place, json.dumps(far | {"beat": f"{beats:012d}"}).encode())
        with pytest.raises(Busy), hold_lease(place):
            pass
        time.sleep(0.1)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with suppress(Busy), hold_lease(place) as mine:
            mine.check()
            break
        time.sleep(0.05)
    else:
        raise AssertionError("never taken over")


def test_a_put_on_a_condition_is_tried_once_a_store(place: OutPath) -> None:
    if files._heeds_conditions(place):  # SeaweedFS may or may not, by its version
        assert files.write_new_bytes(place, b"1") is True
        assert files.write_new_bytes(place, b"2") is False
        assert place.read_bytes() == b"1"
    else:
        assert files.write_new_bytes(place, b"1") is None
        assert not place.exists()


def test_no_probe_is_left(place: OutPath) -> None:
    with hold_lease(place):
        found = [Path(name).name for name in place.fs.find(place.parent.path)]
    assert place.name in found
    assert not [name for name in found if not name.endswith(".lock")]
