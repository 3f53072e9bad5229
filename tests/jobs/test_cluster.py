"""A real scheduler and real workers, started here."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worker_jobs import Doubling, Ears, Refusing

from wsi_pipeline.base.errors import JobError, ModelError, SlideTimeoutError, UsageError, WorkerLostError
from wsi_pipeline.jobs import Outcome
from wsi_pipeline.jobs.cluster import run_cluster

pytest.importorskip("distributed", reason="needs the extra 'cluster'")

TESTS = Path(__file__).parents[1]
Start = Callable[..., subprocess.Popen[bytes]]


class Cluster:
    """A scheduler with workers, as a user starts them: by dask's own commands."""

    def __init__(self, folder: Path):
        self.file = folder / "scheduler.json"
        self._folder = folder
        self._env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "2",
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file)
        )
        self._wait(self.file.exists)

    def add_worker(self, *options: str) -> subprocess.Popen[bytes]:
        """One that a nanny starts again when it is killed, unless --no-nanny."""
        command = ["worker", "--scheduler-file", str(self.file), "--nthreads", "1", "--no-dashboard"]
        return self._start(*command, "--local-directory", str(self._folder), *options)

    def close(self) -> None:
        for process in reversed(self.processes):  # workers say good-bye to the scheduler
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{len(self.processes)}.log").open("wb")
        arguments = [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]]
        self.processes.append(subprocess.Popen(arguments, env=self._env, stdout=log, stderr=log))
        log.close()
        return self.processes[-1]

    def _wait(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not until():
            assert time.monotonic() < end, "the scheduler does not start"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers; tests kill what they work with, and nannies start it again."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.add_worker("--nworkers", "2")
    yield cluster
    cluster.close()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def by_item(outcomes: list[Outcome[str, int]]) -> dict[str, Outcome[str, int]]:
    return {outcome.item: outcome for outcome in outcomes}


def test_the_workers_of_a_cluster_give_the_outcomes_of_this_process(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    ears = Ears()
    numbers = ["meets another 0", "meets another 1", *(f" {i}" for i in range(2, 8))]
    items = [*numbers, "raises 8", "raises oddly 9", "busy once 10"]
    outcomes = by_item(list(run_cluster(Doubling(tmp_path), items, str(shared_cluster.file), ears)))
    assert {i: o.result for i, o in outcomes.items() if o.result is not None} == {
        **{number: 2 * i for i, number in enumerate(numbers)},
        "busy once 10": 20,
    }
    assert outcomes["raises 8"].reason == "/full/8: No space left on device"
    assert "OddError: odd 1 2" in outcomes["raises oddly 9"].reason
    assert {outcome.attempt for outcome in outcomes.values()} == {1}
    assert len({outcome.worker for outcome in outcomes.values()}) == 2
    assert ("waits", "busy once 10", "someone has it") in ears.heard
    assert len((tmp_path / "opened").read_text().splitlines()) == 2


def test_of_killed_workers_an_item_costs_an_attempt_and_kills_no_other(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    ears = Ears()
    items = [" 0", "kills once 1", "kills 2", " 3", " 4"]
    outcomes = by_item(list(run_cluster(Doubling(tmp_path), items, str(shared_cluster.file), ears)))
    assert {i: o.result for i, o in outcomes.items()} == {
        " 0": 0,
        "kills once 1": 2,
        "kills 2": None,
        " 3": 6,
        " 4": 8,
    }
    assert outcomes["kills once 1"].attempt == 2
    assert isinstance(outcomes["kills 2"].error, WorkerLostError)
    # dask may hand it out once or twice more by itself before it gives up.
    assert re.search(r"its worker was lost in each of [3-6] attempts", outcomes["kills 2"].reason)
    assert [h[1:3] for h in ears.heard if h[0] == "lost" and h[1] == "kills once 1"] == [("kills once 1", 1)]


def test_a_worker_of_a_cluster_whose_gpu_is_lost_ends_and_its_item_is_tried_again(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    items, ears = [" 1", "loses its GPU once 7", " 2"], Ears()
    outcomes = {o.item: o for o in run_cluster(Doubling(tmp_path), items, str(shared_cluster.file), ears)}
    assert [outcomes[item].result for item in items] == [2, 14, 4]
    assert outcomes["loses its GPU once 7"].attempt == 2
    assert len({*(tmp_path / "loses its GPU once 7.tries").read_text().split()}) == 2


def test_what_opening_the_job_raises_ends_the_batch(shared_cluster: Cluster) -> None:
    with pytest.raises(ModelError, match="no such model"):
        list(run_cluster(Refusing(), [" 1"], str(shared_cluster.file), Ears()))


def test_a_batch_that_is_left_stops_its_workers(shared_cluster: Cluster, tmp_path: Path) -> None:
    items = [" 1", "waits for the file 2", "waits for the file 3"]
    outcomes = run_cluster(Doubling(tmp_path), items, str(shared_cluster.file), Ears())
    next(outcomes)
    outcomes.close()
    (free,) = run_cluster(Doubling(tmp_path / ".."), [" 4"], str(shared_cluster.file), Ears())
    assert free.result == 8


def test_only_workers_with_the_resource_are_given_items(own_cluster: Cluster, tmp_path: Path) -> None:
    own_cluster.add_worker()
    own_cluster.add_worker("--resources", "GPU=1", "--name", "with")
    scheduler = str(own_cluster.file)
    outcomes = list(
        run_cluster(Doubling(tmp_path), [f" {i}" for i in range(4)], scheduler, Ears(), {"GPU": 1})
    )
    assert len(outcomes) == 4
    assert len({outcome.worker for outcome in outcomes}) == 1


def test_a_scheduler_that_goes_away_ends_the_batch_with_what_to_do(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    own_cluster.add_worker("--no-nanny")
    outcomes = run_cluster(Doubling(tmp_path), [" 1", "waits for the file 2"], str(own_cluster.file), Ears())
    assert next(outcomes).result == 2
    threading.Timer(1, own_cluster.scheduler.send_signal, [signal.SIGKILL]).start()
    with pytest.raises(JobError, match=r"scheduler .* is gone, with 1 begun and 0 waiting; start it"):
        next(outcomes)
    (tmp_path / "go").touch()


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:9", "nonsense://x", "gone.json"])
def test_without_a_scheduler_nothing_is_run(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.jobs.cluster.CONNECT_S", 1.0)
    with pytest.raises(UsageError, match="no scheduler of dask"):
        list(run_cluster(Doubling(tmp_path), [" 1"], scheduler, Ears()))


def test_an_item_that_takes_too_long_fails_and_its_worker_is_started_again(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    own_cluster.add_worker()
    items = [" 0", "sleeps 1", " 2"]
    found = run_cluster(Doubling(tmp_path), items, str(own_cluster.file), Ears(), timeout_s=3.0)
    outcomes = by_item(list(found))
    assert [outcomes[item].result for item in items] == [0, None, 4]
    assert isinstance(outcomes["sleeps 1"].error, SlideTimeoutError)


def test_workers_that_are_paused_take_no_item_and_that_is_heard(own_cluster: Cluster, tmp_path: Path) -> None:
    from distributed import Client

    own_cluster.add_worker()
    ears, scheduler = Ears(), str(own_cluster.file)

    def pause_from(share, dask_worker):  # type: ignore[no-untyped-def]
        dask_worker.memory_manager.memory_pause_fraction = share

    class Waking(Ears):
        """Wakes the workers once it hears that they are paused."""

        def stands(self, reason: str) -> None:
            ears.stands(reason)
            if "paused" in reason:
                client.run(pause_from, 0.8)

    with Client(scheduler_file=scheduler, set_as_default=False) as client:
        client.wait_for_workers(1)
        client.run(pause_from, 1e-9)
        own_cluster._wait(
            lambda: "paused" in {w["status"] for w in client.scheduler_info()["workers"].values()}
        )
        (outcome,) = run_cluster(Doubling(tmp_path), [" 4"], scheduler, Waking())
    assert outcome.result == 8
    (reason,) = {heard[1] for heard in ears.heard if heard[1]}
    assert "of 1 worker of the cluster none can take a slide: 1 paused (at its memory limit" in reason
    assert ears.heard[-1] == ("stands", "")
