"""Items on the workers of a dask.distributed cluster that is there already: the only file that knows dask.

No more items are given to the cluster than its workers have places, so that each begins at once and none shares the
fate of a worker that has not begun with it. Workers say on a topic of the scheduler's when they begin and how far they
are; a second beginning of one item means that its first worker was lost, and dask gave it to another.
"""

import logging
import os
import pickle
import queue
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from wsi_pipeline.base.errors import JobError, UsageError, WorkerLostError, WsiError
from wsi_pipeline.base.text import counted
from wsi_pipeline.base.types import Progress
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.jobs.protocols import (
    ATTEMPTS,
    BUSY_POLL_S,
    Busy,
    Item,
    Job,
    Listener,
    Outcome,
    Result,
    Work,
    portable,
    took_too_long,
)

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

CONNECT_S = 30.0
# Progress comes from each worker at most this often: the scheduler hears of it from all of them.
REPORT_EVERY_S = 2.0
# How often the cluster is asked for its places, which come and go.
LOOK_EVERY_S = 3.0
# A worker that hangs has so long to be started again.
RESTART_S = 10.0
# A worker that ends by itself waits so long, that what it said may reach the scheduler.
FAREWELL_S = 0.5

Resources = dict[str, float]


def run_cluster(
    job: Job[Item, Result],
    items: Iterable[Item],
    scheduler: str,
    listener: Listener[Item],
    resources: Resources | None = None,
    timeout_s: float | None = None,
) -> Generator[Outcome[Item, Result]]:
    """The outcomes of the items as they come from the cluster of `scheduler`, an address or a scheduler file.

    `resources` are those that a worker must have free for an item, as {"GPU": 1}. Paths in `job` and `items` must
    mean the same on every worker. An item whose worker dies is given to another one, ATTEMPTS times in all, or as
    often as the scheduler's `allowed-failures` says, if that is more; then it has failed with a WorkerLostError. One
    that takes longer than `timeout_s` fails with a SlideTimeoutError, and its worker is started again, where it has a
    nanny.
    Raises UsageError when there is no scheduler or its workers have another version, what opening the job raises, and
    JobError when the scheduler is gone.
    """
    client = _connect(scheduler)
    try:
        batch = _Batch(client, scheduler, job, deque(items), listener, resources or {}, timeout_s)
        try:
            yield from batch.run()
        finally:
            batch.leave()
    finally:
        client.close(timeout=5)


def _connect(scheduler: str) -> "Client":
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            "--scheduler needs dask.distributed, which is not installed: pip install '.[cluster]'"
        ) from error
    if not log.isEnabledFor(logging.DEBUG):  # what matters of its own words is said by ours
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    where = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        return Client(**where, timeout=CONNECT_S, set_as_default=False, name="wsi_pipeline")
    except (OSError, TimeoutError, ValueError) as error:
        raise UsageError(
            f"--scheduler {scheduler}: no scheduler of dask.distributed answers there ({_first_line(error)}); start "
            f"one (dask scheduler), or give its address (tcp://host:8786) or its scheduler file"
        ) from error


class _Batch(Generic[Item, Result]):
    def __init__(
        self,
        client: "Client",
        scheduler: str,
        job: Job[Item, Result],
        waiting: deque[Item],
        listener: Listener[Item],
        resources: Resources,
        timeout_s: float | None,
    ):
        self._client, self._scheduler, self._job = client, scheduler, job
        self._listener, self._resources, self._timeout_s = listener, resources, timeout_s
        self._waiting: deque[tuple[int, Item]] = deque(enumerate(waiting))
        self._busy: list[tuple[float, int, Item]] = []  # asked for again at that time
        self._running: dict[int, tuple[Item, Future]] = {}
        self._attempts: dict[int, int] = {}
        self._workers: dict[int, str] = {}
        self._begun: dict[int, float] = {}
        self._submitted = 0
        self._given_up: dict[int, int] = {}  # how often the scheduler gave an item up
        self._places, self._looked = 0, float("-inf")
        self._topic = f"wsi_pipeline-{uuid.uuid4().hex}"
        self._heard: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        client.subscribe_topic(self._topic, lambda event: self._heard.put(("event", event[1])))

    def run(self) -> Generator[Outcome[Item, Result]]:
        self._check_versions()
        while self._waiting or self._busy or self._running:
            self._submit()
            yield from self._end_the_late()
            try:
                kind, value = self._heard.get(timeout=1.0)
            except queue.Empty:
                self._check_scheduler()
                continue
            outcome = self._hear(value) if kind == "event" else self._look_at(*value)
            if outcome:
                yield outcome

    def _end_the_late(self) -> Iterator[Outcome[Item, Result]]:
        """The failures of items that took too long, whose workers are started again."""
        if self._timeout_s is None:
            return
        latest = time.monotonic() - self._timeout_s
        for number in [n for n, begun in self._begun.items() if n in self._running and begun < latest]:
            item, future = self._running.pop(number)
            worker = self._workers[number]
            future.cancel()
            try:
                self._client.restart_workers([worker], timeout=RESTART_S, raise_for_error=False)
            except Exception as error:  # without a nanny nobody can start it again
                log.warning("%s hangs and cannot be started again: %s", worker, _first_line(error))
            attempt = self._attempts.get(number, 1)
            yield Outcome(item, None, took_too_long(item, self._timeout_s), attempt, worker)

    def leave(self) -> None:
        """Take back what was not begun, and stop what was, at its next report of progress."""
        if not self._running or self._client.status != "running":
            return
        try:
            self._client.run(_stop, self._topic, on_error="ignore")
            self._client.cancel([future for _, future in self._running.values()])
        except Exception as error:  # a scheduler that goes away now has stopped them too
            log.debug("could not stop the workers", exc_info=error)

    def _check_versions(self) -> None:
        versions = set(self._client.run(_version, on_error="return").values())
        others = versions - {VERSION}
        if others:
            raise UsageError(
                f"--scheduler {self._scheduler}: its workers have {', '.join(map(str, others))} of wsi_pipeline, this "
                f"process {VERSION}; install the same one everywhere"
            )

    def _check_scheduler(self) -> None:
        if self._client.status != "running":
            raise self._gone()

    def _gone(self) -> JobError:
        return JobError(
            f"the scheduler {self._scheduler} is gone, with {len(self._running)} begun and "
            f"{len(self._waiting) + len(self._busy)} waiting; start it and its workers again, then give the same "
            f"command: it goes on from here"
        )

    def _submit(self) -> None:
        now = time.monotonic()
        if not self._places or now - self._looked > LOOK_EVERY_S:
            self._looked = now
            self._places, why = _places(self._client, self._resources)
            self._listener.stands("" if self._places else why)
        ready = [entry for entry in self._busy if entry[0] <= now]
        self._busy = [entry for entry in self._busy if entry[0] > now]
        self._waiting.extend((number, item) for _, number, item in ready)
        while self._waiting and len(self._running) < self._places:
            number, item = self._waiting.popleft()
            self._submitted += 1
            future = self._client.submit(
                _work_on,
                self._topic,
                self._job,
                item,
                number,
                log.isEnabledFor(logging.DEBUG),
                key=f"{self._topic}-{self._submitted}",
                pure=False,
                resources=self._resources or None,
            )
            self._running[number] = (item, future)
            future.add_done_callback(
                lambda future, number=number: self._heard.put(("future", (number, future)))
            )

    def _hear(self, event: dict[str, Any]) -> Outcome[Item, Result] | None:
        number = event["item"]
        if number not in self._running:
            return None
        item, _ = self._running[number]
        if event["kind"] == "progress":
            self._listener.progressed(item, event["done"], event["total"])
        elif event["kind"] == "ended":
            return self._take(number, *pickle.loads(event["outcome"]))
        else:
            attempt = self._attempts[number] = self._attempts.get(number, 0) + 1
            if attempt > 1:
                self._listener.lost(item, attempt - 1, f"lost ({self._workers[number]})")
            self._workers[number], self._begun[number] = event["worker"], time.monotonic()
            self._listener.started(item, attempt, event["worker"])
        return None

    def _take(self, number: int, kind: str, value: Any) -> Outcome[Item, Result] | None:
        """What a worker says became of an item; its future is of no more use."""
        item, _ = self._running.pop(number)
        attempt, worker = self._attempts.get(number, 1), self._workers.get(number, "")
        if kind == "cannot open":
            raise value
        if kind == "busy":
            self._listener.waits(item, value)
            self._attempts[number] = attempt - 1
            self._busy.append((time.monotonic() + BUSY_POLL_S, number, item))
            return None
        if kind == "done":
            return Outcome(item, value, None, attempt, worker)
        return Outcome(item, None, value, attempt, worker)

    def _look_at(self, number: int, future: "Future") -> Outcome[Item, Result] | None:
        """A future that is done: mostly its worker has said so before, else it went wrong."""
        from distributed import KilledWorker

        if (
            number not in self._running
            or self._running[number][1] is not future
            or future.status == "finished"
        ):
            return None
        if future.status != "error":  # cancelled or lost
            raise self._gone()
        item, error = self._running[number][0], future.exception(timeout=CONNECT_S)
        if not isinstance(error, KilledWorker):
            raise JobError(
                f"the workers of {self._scheduler} could not begin with {item}: {_first_line(error)}"
            )
        attempt = self._attempts.get(number, 1)
        self._given_up[number] = self._given_up.get(number, 0) + 1
        if attempt < ATTEMPTS and self._given_up[number] < ATTEMPTS:
            # Some of the deaths were not this item's: it was waiting behind another one that killed its worker.
            del self._running[number]
            self._waiting.append((number, item))
            return None
        lost = WorkerLostError(
            f"{item}: its worker was lost in each of {attempt} attempts, the last {self._workers.get(number, '')}; its "
            f"memory limit (dask worker --memory-limit) may be too low for this slide, the worker's own log tells"
        )
        return self._take(number, "failed", lost)


def _places(client: "Client", resources: Resources) -> tuple[int, str]:
    """How many items the workers can take at once; and why not more.

    One that is paused at its memory limit, or closing, takes none.
    """
    places, others = 0, Counter[str]()
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    for worker in workers:
        status = str(worker.get("status", "running"))
        if status != "running":
            others[status] += 1
            continue
        has = worker.get("resources", {})
        by_resource = [int(has.get(name, 0) // amount) for name, amount in resources.items()]
        place = min([1, *by_resource])  # a worker process works on one slide at a time
        places += place
        others["without what --worker-resources asks for"] += not place
    found = ", ".join(f"{count} {what}" for what, count in sorted(others.items()) if count)
    why = f"of {counted(len(workers), 'worker')} of the cluster none can take a slide"
    if not workers:
        why = "the cluster has no workers"
    elif found:
        why += f": {found}"
    if others["paused"]:
        why += " (at its memory limit: dask worker --memory-limit)"
    return places, why


# What follows runs in the workers.

_one_at_a_time = threading.Lock()
_open: dict[str, Work[Any, Any]] = {}
_stopped: set[str] = set()


class _Stopped(BaseException):
    """The batch was left."""


def _version() -> str:
    return VERSION


def _stop(batch: str) -> None:
    _stopped.add(batch)
    with _one_at_a_time:
        if work := _open.pop(batch, None):
            work.close()


def _work_on(batch: str, job: Job[Any, Any], item: Any, number: int, verbose: bool) -> None:
    """Work on the item, and say on the batch's topic what became of it.

    Not by the task's result: that lies in the worker until it is fetched, and if the worker is killed before, dask
    has the item worked on again.
    """
    from distributed import get_worker

    worker = get_worker()
    with _one_at_a_time:
        worker.log_event(batch, {"kind": "started", "item": number, "worker": str(worker.address)})
        sent = float("-inf")

        def report(done: int, total: int) -> None:
            nonlocal sent
            if batch in _stopped:
                raise _Stopped
            now = time.monotonic()
            if now - sent >= REPORT_EVERY_S:
                sent = now
                worker.log_event(batch, {"kind": "progress", "item": number, "done": done, "total": total})

        outcome = _outcome_of(batch, job, item, report, verbose)
        if outcome[0] == "lost":
            # Its nanny starts another process in its place, and the scheduler gives the item to one that can.
            log.critical("%s: this worker can do no more: %s", worker.address, outcome[1])
            logging.shutdown()
            time.sleep(FAREWELL_S)
            os._exit(1)
        worker.log_event(batch, {"kind": "ended", "item": number, "outcome": pickle.dumps(outcome)})


def _outcome_of(
    batch: str, job: Job[Any, Any], item: Any, report: Progress, verbose: bool
) -> tuple[str, Any]:
    """One word, and a result, an error or a text."""
    try:
        if batch not in _open:
            while _open:  # another batch's model need not stay in memory
                _open.popitem()[1].close()
            _open[batch] = job.open(0)
    except Exception as error:
        why = portable(error)
        return "cannot open", why if isinstance(why, WsiError) else JobError(
            f"a worker could not begin: {why}"
        )
    try:
        _open[batch].prefetch([item])
        return "done", _open[batch](item, report)
    except Busy as busy:
        return "busy", str(busy)
    except _Stopped:
        return "stopped", None
    except JobError as error:
        return "lost", str(error)
    except Exception as error:
        log.log(logging.ERROR if verbose else logging.DEBUG, "failed: %s", item, exc_info=error)
        return "failed", portable(error)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
