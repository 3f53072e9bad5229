import multiprocessing
import os
from pathlib import Path

import pytest
from worker_jobs import Doubling, Ears, FailingStart, Refusing

from wsi_pipeline.base.errors import (
    DeviceLostError,
    JobError,
    ModelError,
    SlideTimeoutError,
    WorkerLostError,
)
from wsi_pipeline.jobs import Outcome, run_local, run_sequential

ITEMS = [f" {i}" for i in range(6)]


def by_item(outcomes: list[Outcome[str, int]]) -> dict[str, Outcome[str, int]]:
    return {outcome.item: outcome for outcome in outcomes}


def opened(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "opened").read_text().splitlines()]


def test_here_each_item_is_worked_on_in_turn_and_the_next_one_prefetched(tmp_path: Path) -> None:
    ears = Ears()
    outcomes = list(run_sequential(Doubling(tmp_path), ITEMS[:3], ears))
    assert [outcome.result for outcome in outcomes] == [0, 2, 4]
    assert (tmp_path / "prefetched").read_text().splitlines() == ITEMS[1:3]
    assert (tmp_path / "closed").read_text() == f"{os.getpid()}\n"
    assert ears.heard[:3] == [("started", " 0", 1), ("progressed", " 0", 0, 2), ("progressed", " 0", 2, 2)]


def test_here_a_failure_and_a_busy_item_spare_the_others(tmp_path: Path) -> None:
    ears = Ears()
    outcomes = list(run_sequential(Doubling(tmp_path), ["raises 1", "busy once 2", " 3"], ears))
    assert [(o.item, o.result) for o in outcomes] == [("raises 1", None), (" 3", 6), ("busy once 2", 4)]
    assert outcomes[0].reason == "/full/1: No space left on device"
    assert ("waits", "busy once 2", "someone has it") in ears.heard


def test_local_workers_open_the_job_once_each_and_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    outcomes = by_item(list(run_local(Doubling(tmp_path), ITEMS, 2, Ears())))
    assert {item: outcome.result for item, outcome in outcomes.items()} == {i: 2 * int(i) for i in ITEMS}
    workers = opened(tmp_path)
    assert {number for number, _, _ in workers} <= {"0", "1"}
    assert len(workers) == len({number for number, _, _ in workers})
    assert str(os.getpid()) not in {pid for _, pid, _ in workers}
    assert {threads for _, _, threads in workers} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_killed_worker_costs_its_item_an_attempt_and_no_other_item(tmp_path: Path) -> None:
    ears = Ears()
    items = [*ITEMS[:2], "kills once 7", *ITEMS[2:4]]
    outcomes = by_item(list(run_local(Doubling(tmp_path), items, 2, ears)))
    assert all(outcome.result == 2 * int(item.split()[-1]) for item, outcome in outcomes.items())
    assert outcomes["kills once 7"].attempt == 2
    assert {outcomes[item].attempt for item in ITEMS[:4]} == {1}
    ((_, item, attempt, reason),) = [heard for heard in ears.heard if heard[0] == "lost"]
    assert (item, attempt) == ("kills once 7", 1)
    assert "signal 9" in reason


def test_an_item_that_kills_every_worker_fails_with_the_reason(tmp_path: Path) -> None:
    outcomes = by_item(list(run_local(Doubling(tmp_path), ["kills 1", "exits 2", " 3"], 2, Ears(), 2)))
    assert outcomes[" 3"].result == 6
    for item, how in (("kills 1", "memory"), ("exits 2", "exit code 3")):
        assert isinstance(outcomes[item].error, WorkerLostError)
        assert f"{item}: its worker was lost in each of 2 attempts" in outcomes[item].reason
        assert how in outcomes[item].reason
        assert outcomes[item].attempt == 2


def test_failures_come_back_from_workers_as_they_are(tmp_path: Path) -> None:
    outcomes = by_item(list(run_local(Doubling(tmp_path), ["raises 1", "raises oddly 2"], 1, Ears())))
    assert outcomes["raises 1"].reason == "/full/1: No space left on device"
    assert "OddError: odd 1 2" in outcomes["raises oddly 2"].reason


def test_a_busy_item_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_pipeline.jobs.local.BUSY_POLL_S", 0.05)
    (outcome,) = run_local(Doubling(tmp_path), ["busy once 2"], 1, Ears())
    assert (outcome.result, outcome.attempt) == (4, 1)


def test_a_job_that_cannot_be_opened_ends_the_batch_with_its_reason() -> None:
    with pytest.raises(ModelError, match="no such model"):
        list(run_local(Refusing(), ITEMS, 2, Ears()))


def test_workers_that_die_at_the_start_end_the_batch() -> None:
    with pytest.raises(JobError, match="3 workers died while starting"):
        list(run_local(FailingStart(), ITEMS, 1, Ears()))


def test_no_worker_stays_when_the_batch_is_left(tmp_path: Path) -> None:
    outcomes = run_local(Doubling(tmp_path), [" 1", "sleeps 2", "sleeps 3"], 2, Ears())
    next(outcomes)
    outcomes.close()
    assert multiprocessing.active_children() == []


def test_a_worker_whose_gpu_is_lost_ends_and_another_one_goes_on(tmp_path: Path) -> None:
    ears = Ears()
    items = [ITEMS[0], "loses its GPU once 7", *ITEMS[1:4]]
    outcomes = by_item(list(run_local(Doubling(tmp_path), items, 1, ears)))
    assert all(outcome.result == 2 * int(item.split()[-1]) for item, outcome in outcomes.items())
    assert outcomes["loses its GPU once 7"].attempt == 2
    assert {outcomes[item].attempt for item in ITEMS[:4]} == {1}  # none of them met the lost GPU
    ((_, _, attempt, reason),) = [heard for heard in ears.heard if heard[0] == "lost"]
    assert (attempt, len(opened(tmp_path))) == (1, 2)
    assert "ended by itself: cuda:0 does no more work for this process" in reason


def test_an_item_that_loses_every_gpu_fails_and_spares_the_others(tmp_path: Path) -> None:
    outcomes = by_item(list(run_local(Doubling(tmp_path), ["loses its GPU 7", *ITEMS[:2]], 1, Ears())))
    assert [outcomes[item].result for item in ITEMS[:2]] == [0, 2]
    lost = outcomes["loses its GPU 7"]
    assert isinstance(lost.error, WorkerLostError)
    assert "cuda:0 does no more work" in lost.reason


def test_here_a_lost_gpu_ends_the_batch_instead_of_failing_each_later_item(tmp_path: Path) -> None:
    done = []
    with pytest.raises(DeviceLostError, match="cuda:0 does no more work"):
        done.extend(run_sequential(Doubling(tmp_path), [ITEMS[1], "loses its GPU 7", ITEMS[2]], Ears()))
    assert not (tmp_path / f"{ITEMS[2]}.tries").exists()


def test_an_item_that_takes_too_long_fails_and_its_worker_is_replaced(tmp_path: Path) -> None:
    items = [" 0", "sleeps 1", " 2", " 3", " 4"]
    outcomes = by_item(list(run_local(Doubling(tmp_path), items, 1, Ears(), timeout_s=2.0)))
    assert [outcomes[item].result for item in items] == [0, None, 4, 6, 8]
    assert isinstance(outcomes["sleeps 1"].error, SlideTimeoutError)
    assert "sleeps 1: not done after 2 s (--slide-timeout)" in outcomes["sleeps 1"].reason
    assert len(opened(tmp_path)) == 2
    assert not multiprocessing.active_children()


def test_an_item_that_killed_its_worker_is_tried_after_the_others_and_alone(tmp_path: Path) -> None:
    ears = Ears()
    items = ["kills once 1", "kills 2", *(f" {i}" for i in range(3, 9))]
    outcomes = by_item(list(run_local(Doubling(tmp_path), items, 3, ears)))
    assert outcomes["kills once 1"].result == 2
    assert isinstance(outcomes["kills 2"].error, WorkerLostError)
    again = [i for i, heard in enumerate(ears.heard) if heard[0] == "started" and heard[2] > 1]
    others = [
        i
        for i, heard in enumerate(ears.heard)
        if heard[0] in ("started", "progressed") and heard[1] in items[2:]
    ]
    assert len(again) == 3
    assert min(again) > max(others)


def test_an_item_that_was_begun_before_has_one_attempt_less(tmp_path: Path) -> None:
    items = ["kills 1", " 2"]
    outcomes = by_item(list(run_local(Doubling(tmp_path), items, 1, Ears(), begun_before={"kills 1"})))
    assert outcomes["kills 1"].attempt == 3
    assert len((tmp_path / "kills 1.tries").read_text().splitlines()) == 2
    assert outcomes[" 2"].attempt == 1
