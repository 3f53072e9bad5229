"""Items on processes of this machine: one that is killed costs an attempt of its item, and nothing else.

Each worker is a process of its own with a pipe to this one, so that its end, whatever its cause, is seen as the
end of the pipe. (A ProcessPoolExecutor breaks as a whole when one of its processes is killed.)
"""

import logging
import multiprocessing as mp
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NoReturn

from wsi_pipeline.base.errors import JobError, WorkerLostError, WsiError
from wsi_pipeline.base.text import counted
from wsi_pipeline.jobs.protocols import (
    ATTEMPTS,
    BUSY_POLL_S,
    Busy,
    Item,
    Job,
    Listener,
    Outcome,
    Result,
    portable,
    took_too_long,
)

log = logging.getLogger(__name__)

# Progress comes from each worker at most this often.
REPORT_EVERY_S = 0.5
# A worker that is asked to leave has so long before it is killed.
LEAVE_S = 5.0
# What numerical libraries ask for how many threads to start.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Task(Generic[Item]):
    item: Item
    attempt: int = 1
    not_before: float = 0.0


@dataclass
class _Worker(Generic[Item]):
    number: int
    process: Any  # multiprocessing's SpawnProcess
    pipe: Connection
    ready: bool = False
    task: _Task[Item] | None = None
    next: _Task[Item] | None = None  # kept for it, that it may prefetch it
    begun: float = 0.0  # when it was given its task
    why: str = ""  # what it gave as the reason of its end

    @property
    def name(self) -> str:
        return f"worker {self.number + 1} (pid {self.process.pid})"


def run_local(
    job: Job[Item, Result],
    items: Iterable[Item],
    workers: int,
    listener: Listener[Item],
    attempts: int = ATTEMPTS,
    timeout_s: float | None = None,
    begun_before: Container[Item] = (),
) -> Generator[Outcome[Item, Result]]:
    """The outcomes of the items as they come, from `workers` processes that share this machine's cores.

    An item whose worker dies is given to a new one, after the others and while nobody else works, at most `attempts`
    times in all; then it has failed with a WorkerLostError. `begun_before`: those that had one attempt already. An
    item that takes longer than `timeout_s` fails with a SlideTimeoutError, and its worker is replaced. Raises what
    opening the job raises, and JobError when workers die while they open it. However it is left, no worker stays
    behind.
    """
    pool = _Pool(
        job,
        deque(_Task(item, 1 + (item in begun_before)) for item in items),
        workers,
        listener,
        attempts,
        timeout_s,
    )
    try:
        yield from pool.run()
    finally:
        pool.leave()


class _Pool(Generic[Item, Result]):
    def __init__(
        self,
        job: Job[Item, Result],
        queue: deque[_Task[Item]],
        size: int,
        listener: Listener[Item],
        attempts: int,
        timeout_s: float | None,
    ):
        self._job, self._queue, self._size = job, queue, size
        self._listener, self._attempts, self._timeout_s = listener, attempts, timeout_s
        self._workers: dict[Connection, _Worker[Item]] = {}
        self._failed_starts = 0  # workers that died one after the other while they opened the job

    def run(self) -> Generator[Outcome[Item, Result]]:
        while self._queue or any(worker.task or worker.next for worker in self._workers.values()):
            self._spawn()
            self._assign()
            for pipe in wait(list(self._workers), timeout=BUSY_POLL_S):
                assert isinstance(pipe, Connection)
                if outcome := self._hear(self._workers[pipe]):
                    yield outcome
            yield from self._end_the_late()

    def _end_the_late(self) -> Iterator[Outcome[Item, Result]]:
        """The failures of items that took too long, whose workers are ended."""
        if self._timeout_s is None:
            return
        latest = time.monotonic() - self._timeout_s
        for worker in [worker for worker in self._workers.values() if worker.task and worker.begun < latest]:
            task = worker.task
            assert task
            del self._workers[worker.pipe]
            worker.process.kill()
            worker.pipe.close()
            worker.process.join(LEAVE_S)
            if worker.next:
                self._queue.appendleft(worker.next)
            error = took_too_long(task.item, self._timeout_s)
            yield Outcome(task.item, None, error, task.attempt, worker.name)

    def leave(self) -> None:
        """Ask every worker to leave, and end those that do not, at once where this process is told to stop."""
        try:
            self._ask_to_leave()
        finally:  # one that is stopped (SIGSTOP) does nothing it is asked for, and would be waited for at the exit
            for worker in self._workers.values():
                worker.process.kill()
            for worker in self._workers.values():
                worker.process.join()
            self._workers.clear()

    def _ask_to_leave(self) -> None:
        for worker in self._workers.values():
            worker.pipe.close()  # who waits for an item leaves by itself
            if worker.task or not worker.ready:
                worker.process.terminate()
        end = time.monotonic() + LEAVE_S
        for worker in self._workers.values():
            worker.process.join(max(0.0, end - time.monotonic()))

    def _spawn(self) -> None:
        working = sum(worker.task is not None for worker in self._workers.values())
        numbers = {worker.number for worker in self._workers.values()}
        for number in range(min(self._size, working + len(self._queue))):
            if number not in numbers:
                worker: _Worker[Item] = _start(self._job, number, self._size)
                self._workers[worker.pipe] = worker

    def _assign(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            # An item that may have killed its worker is tried alone: so it takes no other one with it.
            alone = any(other.task and other.task.attempt > 1 for other in self._workers.values())
            if not worker.ready or worker.task or alone:
                continue
            task = worker.next or self._due(now)
            if task is None:
                continue
            # Not where the queue nears its end: a task kept for a slow worker would wait for it.
            many = task.attempt == 1 and sum(queued.attempt == 1 for queued in self._queue) > self._size
            following = self._due(now) if many else None
            try:
                worker.pipe.send([task.item] if following is None else [task.item, following.item])
            except OSError:  # just died: heard of when its pipe is read
                self._queue.extendleft(kept for kept in (following, task) if kept)
                worker.next = None
                continue
            worker.task, worker.next, worker.begun = task, following, time.monotonic()
            self._listener.started(task.item, task.attempt, worker.name)

    def _due(self, now: float) -> _Task[Item] | None:
        """The first task that may begin, off the queue; one that was tried before only where nobody works."""
        due = [task for task in self._queue if task.not_before <= now]
        task = next((task for task in due if task.attempt == 1), None)
        if task is None and due and not any(worker.task for worker in self._workers.values()):
            task = due[0]
        if task:
            self._queue.remove(task)
        return task

    def _hear(self, worker: _Worker[Item]) -> Outcome[Item, Result] | None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            return self._on_exit(worker)
        task = worker.task
        if kind == "ready":
            worker.ready, self._failed_starts = True, 0
        elif kind == "cannot open":
            if isinstance(value, WsiError):
                raise value
            raise JobError(f"{worker.name} could not begin: {value}")
        elif task is None:
            raise JobError(f"{worker.name} sent '{kind}' without a task")
        elif kind == "lost":  # its last word
            worker.why = f"ended by itself: {value}"
        elif kind == "progress":
            self._listener.progressed(task.item, *value)
        else:
            worker.task = None
            if kind == "busy":
                self._listener.waits(task.item, value)
                self._queue.append(_Task(task.item, task.attempt, time.monotonic() + BUSY_POLL_S))
            elif kind == "done":
                return Outcome(task.item, value, None, task.attempt, worker.name)
            else:
                return Outcome(task.item, None, value, task.attempt, worker.name)
        return None

    def _on_exit(self, worker: _Worker[Item]) -> Outcome[Item, Result] | None:
        del self._workers[worker.pipe]
        worker.pipe.close()
        worker.process.join(LEAVE_S)
        how = worker.why or _how_it_ended(worker.process.exitcode)
        task = worker.task
        if worker.next:
            self._queue.appendleft(worker.next)
        if task is None:
            self._failed_starts += 1
            if self._failed_starts >= self._attempts:
                raise JobError(
                    f"{counted(self._failed_starts, 'worker')} died while starting, the last {how}"
                )
            return None
        if task.attempt < self._attempts:
            self._listener.lost(task.item, task.attempt, how)
            self._queue.append(_Task(task.item, task.attempt + 1))
            return None
        error = WorkerLostError(
            f"{task.item}: its worker was lost in each of {task.attempt} attempts, the last {how}"
        )
        return Outcome(task.item, None, error, task.attempt, worker.name)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed by signal 9, as the kernel does when memory runs out: fewer --workers need less"
    if exit_code is not None and exit_code < 0:
        return f"killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"ended by itself with exit code {exit_code}"


def _start(job: Job[Any, Any], number: int, workers: int) -> _Worker[Any]:
    """A new worker; its libraries start no more threads than its share of the cores."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    level = logging.getLogger().getEffectiveLevel()
    process = context.Process(target=_serve, args=(theirs, job, number, level), daemon=True)
    share = str(
        max(1, (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1) // workers)
    )
    # One alone has all cores, as this process would have them, and computes as it would.
    unset = [name for name in THREAD_VARIABLES if name not in os.environ] if workers > 1 else []
    os.environ.update(dict.fromkeys(unset, share))
    try:
        process.start()
    finally:
        for name in unset:
            del os.environ[name]
    theirs.close()
    return _Worker(number, process, ours)


def _serve(pipe: Connection, job: Job[Any, Any], number: int, log_level: int) -> None:
    """A worker's life: open the job, then one item after another until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the parent decides
    signal.signal(signal.SIGTERM, _leave)
    logging.basicConfig(level=log_level, format="%(levelname)s %(name)s: %(message)s")
    try:
        try:
            work = job.open(number)
        except Exception as error:
            log.debug("cannot open the job", exc_info=error)
            pipe.send(("cannot open", portable(error)))
            return
        with closing(work):
            pipe.send(("ready", None))
            while True:
                item, *following = pipe.recv()
                try:
                    work.prefetch([item, *following])
                    message = ("done", work(item, _Reporter(pipe)))
                except Busy as busy:
                    message = ("busy", str(busy))
                except JobError as error:
                    log.error("this worker can do no more: %s", error)
                    pipe.send(("lost", str(error)))
                    return
                except Exception as error:
                    log.debug("failed: %s", item, exc_info=error)
                    message = ("failed", portable(error))
                pipe.send(message)
    except (EOFError, OSError):
        return  # nobody listens any more


class _Reporter:
    """Sends progress now and then."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self._sent = float("-inf")

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._sent >= REPORT_EVERY_S or done >= total:
            self._sent = now
            self._pipe.send(("progress", (done, total)))


def _leave(signum: int, _: object) -> NoReturn:
    """End at the next instruction, by way of every `finally`."""
    sys.exit(128 + signum)
