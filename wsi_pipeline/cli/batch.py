"""How a command runs its batch of slides: who works, what is recorded and printed, and how it ends."""

import argparse
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from wsi_pipeline.base.errors import (
    JobError,
    ListError,
    OutputError,
    RecipeError,
    ScaleError,
    UsageError,
    WsiError,
)
from wsi_pipeline.base.files import OutPath, check_writable, remove_leftovers
from wsi_pipeline.base.text import counted, on_one_line, printable
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.cli import watchdog
from wsi_pipeline.cli.common import ALL_DONE, INTERRUPTED, NOTHING_RUN, SOME_FAILED
from wsi_pipeline.cli.progress import BatchProgress, span
from wsi_pipeline.cli.streams import lasting_streams
from wsi_pipeline.cli.watchdog import Watchdog, ending_in_time
from wsi_pipeline.jobs import Outcome, run_local, run_sequential
from wsi_pipeline.jobs.cluster import run_cluster
from wsi_pipeline.jobs.events import LOCKS, EventLog, now
from wsi_pipeline.jobs.locks import clear_leftovers_of_locks
from wsi_pipeline.jobs.unended import begun_and_never_ended
from wsi_pipeline.pipeline.manifest import MANIFEST_NAME, Manifest, ManifestRow
from wsi_pipeline.pipeline.slide_jobs import InferJob, Staging, TileJob
from wsi_pipeline.results.run_folder import SlideResult, is_finished
from wsi_pipeline.slides.catalog import SlideEntry, SlideList, list_slides, shard_of
from wsi_pipeline.slides.names import MAX_NAME_BYTES, RESERVED, is_cut

log = logging.getLogger(__name__)

# The event log gets a line on each slide's progress this often.
EVENT_EVERY_S = 30.0

SlideOutcome = Outcome[SlideEntry, SlideResult]


def listed_slides(args: argparse.Namespace) -> SlideList:
    """The slides that the arguments name, of this shard; prints what was passed over.

    One that is not there fails by itself, with its reason, and spares the others. Raises ListError, also where none is.
    """
    found = list_slides(args.slides, args.mpp, args.mpp_if_missing, args.patient_pattern)
    if not args.scheduler:  # else they are looked for where the workers are
        _refuse_where_none_is_there(found)
    _say_patients(found, args.patient_pattern is not None)
    if found.passed_over:
        print(f"passed over: {on_one_line(str(found.passed_over))}", file=sys.stderr)
    if cut := [entry.path for entry in found if is_cut(entry.name)]:
        print(
            f"{counted(len(cut), 'name')} of over {MAX_NAME_BYTES} bytes, cut to end in a hash: manifest.csv has the "
            "paths",
            file=sys.stderr,
        )
    return SlideList(shard_of(found, args.shard), found.passed_over) if args.shard else found


def _refuse_where_none_is_there(found: SlideList) -> None:
    if not all(_is_gone(entry.path) for entry in found):
        return
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    raise ListError(
        f"{found[0].path}{others}: no such file or folder; check the path, or whether a disk is missing"
    )


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # whoever opens it says why
        return False
    return False


def _say_patients(found: SlideList, by_pattern: bool) -> None:
    """Of how many patients the slides are, and of how many slides that is not known, where any is."""
    patients, unknown = {entry.patient for entry in found if entry.patient}, sum(not e.patient for e in found)
    if not patients and not by_pattern:
        return
    line = f"{counted(len(found), 'slide')} of {counted(len(patients), 'patient')}"
    if unknown:
        line += f"; of {unknown} the patient is not known"
        line += ": --patient-pattern does not fit their names" if by_pattern else ""
    print(line, file=sys.stderr)


def staging_of(args: argparse.Namespace) -> Staging | None:
    """Where slides are copied ahead of use, if the arguments ask for it."""
    if args.stage_to is None:
        return None
    return Staging(args.stage_to, int(args.stage_limit_gb * 1e9 / (args.workers or 1)))


def run_batch(job: TileJob | InferJob, entries: SlideList, args: argparse.Namespace) -> int:
    """Work on each slide, tell and record what becomes of it; the command's exit code.

    Slides that cannot be worked on do not stop the others. Raises JobError when what becomes of them cannot be
    recorded, a full disk for one; where its lines cannot be printed any more, it goes on without them.
    """
    try:
        with lasting_streams():
            return _run_batch(job, entries, args)
    except OSError as error:
        raise JobError(
            f"{error.filename or job.out}: {error.strerror or error}: the batch cannot be recorded; mend that, and the "
            f"same command goes on from here"
        ) from error


def _run_batch(job: TileJob | InferJob, entries: SlideList, args: argparse.Namespace) -> int:
    if not entries:
        raise ListError(f"--shard {args.shard}: no slides left for this part; take fewer parts")
    suspects = _begun_before(job.out, entries)
    entries = SlideList(sorted(entries, key=suspects.__contains__), entries.passed_over)
    batch = _Batch(job.out, entries, args.slide_timeout)
    outcomes = _outcomes(job, entries, args, batch, suspects)
    try:
        with interruptible(), closing(outcomes):
            for outcome in outcomes:
                batch.take(outcome)
    except KeyboardInterrupt:
        batch.close("interrupted", INTERRUPTED)
        print(f"interrupted: {batch.standing}; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except WsiError as error:
        batch.close("broken_off", NOTHING_RUN if isinstance(error, UsageError) else SOME_FAILED)
        raise
    batch.close("ended", batch.exit_code)
    return batch.exit_code


def _begun_before(out: OutPath, entries: SlideList) -> set[SlideEntry]:
    """Those of the slides that an earlier process began and never ended; says so."""
    try:
        names = begun_and_never_ended(out)
    except Exception as error:  # a store raises what it likes, and that it cannot be written to is said soon
        log.debug("%s: its events cannot be read", out, exc_info=error)
        return set()
    found = [entry for entry in entries if entry.name in names and not is_finished(out / entry.name)]
    if found:
        listed = ", ".join(entry.name for entry in found[:5]) + " ..." * (len(found) > 5)
        print(
            on_one_line(
                f"begun in an earlier run that never ended them, and so tried last and apart: {listed}"
            ),
            file=sys.stderr,
        )
    return set(found)


def _outcomes(
    job: TileJob | InferJob,
    entries: Sequence[SlideEntry],
    args: argparse.Namespace,
    batch: "_Batch",
    suspects: set[SlideEntry],
) -> Generator[SlideOutcome]:
    if args.scheduler:
        everywhere = [replace(entry, path=entry.path.absolute()) for entry in entries]
        return run_cluster(
            job.everywhere(), everywhere, args.scheduler, batch, args.worker_resources, args.slide_timeout
        )
    isolate = len(entries) > 1 or bool(suspects) if args.isolate is None else args.isolate
    # What ends a process, and a read that hangs, then costs a worker and not the batch.
    if workers := args.workers or int(isolate or args.slide_timeout is not None):
        return run_local(job, entries, workers, batch, timeout_s=args.slide_timeout, begun_before=suspects)
    return run_sequential(job, entries, batch)


class _Batch:
    """A batch on its way: hears what happens, records it, and tells it.

    Nothing is written before its first slide is begun: by then arguments, config and model have proved right. A
    watchdog looks at it from a thread of its own, hence the lock.
    """

    def __init__(self, out: OutPath, entries: SlideList, slide_timeout_s: float | None = None):
        self._out, self._count, self._passed_over = out, len(entries), entries.passed_over
        self._began, self._since = time.monotonic(), now()
        self._keys = [_key(entry) for entry in entries]
        self._log: EventLog | None = None
        self._failures: list[Exception] = []
        self._ended = 0
        self._logged: dict[SlideEntry, float] = {}  # when its progress last went to the log
        self._waiting: set[SlideEntry] = set()
        self._attempts: dict[SlideEntry, int] = {}  # the numbers of their events
        self._kept = 0  # refused slides whose row of an earlier result stays
        self._timeout_s, self._standstill = slide_timeout_s, ""
        self._lock = threading.RLock()

    @property
    def standing(self) -> str:
        """How far it is, in words."""
        failed = len(self._failures)
        return f"{self._ended - failed} of {counted(self._count, 'slide')} done, {failed} failed"

    @property
    def exit_code(self) -> int:
        """What its end means to a shell."""
        refused = [error for error in self._failures if isinstance(error, ScaleError | RecipeError)]
        if len(refused) == self._count:
            return NOTHING_RUN
        return SOME_FAILED if self._failures else ALL_DONE

    def started(self, entry: SlideEntry, attempt: int, worker: str) -> None:
        """A worker has begun with the slide."""
        with self._lock:
            if self._log is None:
                self._begin()
            assert self._log
            self._watchdog.moved()
            self._progress.started(entry.name)
            self._attempts[entry] = self._manifest.started(
                entry.name, path=str(entry.path.absolute()), attempt=attempt, worker=worker
            )

    def progressed(self, entry: SlideEntry, done: int, total: int) -> None:
        """`done` of `total` patches of the slide."""
        with self._lock:
            self._progress.progressed(entry.name, done, total)
            moment = time.monotonic()
            if not self._log:
                return
            self._watchdog.moved()
            if moment - self._logged.setdefault(entry, moment) > EVENT_EVERY_S:
                self._logged[entry] = moment
                self._log.write("slide_progress", slide=entry.name, done=done, total=total)

    def lost(self, entry: SlideEntry, attempt: int, reason: str) -> None:
        """The slide's worker is gone; it is tried again."""
        with self._lock:
            self._progress.left(entry.name)
            self._progress.say(f"{entry.name}: its worker was {reason}; attempt {attempt + 1} follows")
            if self._log:
                self._log.write("worker_lost", slide=entry.name, attempt=attempt, reason=reason)

    def waits(self, entry: SlideEntry, reason: str) -> None:
        """Another process works on the slide."""
        with self._lock:
            self._progress.left(entry.name)
            if entry in self._waiting:
                return
            self._waiting.add(entry)
            self._progress.say(f"{entry.name}: left for later, {reason}")
            if self._log:
                self._log.write("slide_waits", slide=entry.name, reason=reason)

    def stands(self, reason: str) -> None:
        """Why no slide can be begun now; empty once one can."""
        self._standstill = reason
        if reason and self._log is None:
            with self._lock:
                self._begin()

    def take(self, outcome: SlideOutcome) -> None:
        """Record and tell what became of a slide."""
        with self._lock:
            self._take(outcome)

    def _take(self, outcome: SlideOutcome) -> None:
        refused = isinstance(outcome.error, ScaleError | RecipeError)  # before anything there was touched
        began = self._attempts.pop(outcome.item, 0)
        if not self._manifest.record(_row(outcome), began, refused) and refused:
            self._kept += 1
        result = outcome.result
        self._ended += 1
        self._watchdog.moved()
        if outcome.error:
            self._failures.append(outcome.error)
        worked = result is not None and not result.skipped and not result.drawn_again
        self._progress.ended(outcome.item.name, _line(outcome), result is None, worked)
        for warning in result.warnings if result and not result.skipped else ():
            self._progress.say(f"    {warning}")
        self._logged.pop(outcome.item, None)
        self._waiting.discard(outcome.item)

    def _tick(self) -> None:
        with self._lock:
            self._progress.tick()

    def _still(self, seconds: float) -> None:
        """Say what is waited for, since nothing has moved for so long."""
        with self._lock:
            waited = self._waited_for()
            self._progress.say(f"nothing has moved for {span(seconds)}: {waited}")
            if self._log:
                with suppress(OutputError):  # the batch itself meets it at its next event, and says so
                    self._log.write("batch_waits", seconds=round(seconds), reason=waited)

    def _waited_for(self) -> str:
        if running := self._progress.running:
            words = f"waiting for {'; '.join(running)}"
            if self._timeout_s is None:
                words += "; --slide-timeout SECONDS would give up a slide that takes longer"
            return words
        if self._standstill:
            return self._standstill
        if self._waiting:
            names = sorted(entry.name for entry in self._waiting)
            return f"other processes work on what is left: {', '.join(names[:5])}{' ...' * (len(names) > 5)}"
        return "waiting for workers to begin"

    def close(self, how: str, exit_code: int) -> None:
        """No more outcomes: bring the manifest up to date."""
        if self._log is None:
            return
        self._watchdog.close()
        self._progress.close()
        self._manifest.write()
        seconds = round(time.monotonic() - self._began, 1)
        failed = len(self._failures)
        self._log.write(
            f"batch_{how}",
            done=self._ended - failed,
            failed=failed,
            of=self._count,
            seconds=seconds,
            exit_code=exit_code,
            passed_over=dict(self._passed_over.counts),
            unreadable_folders=self._passed_over.unreadable,
        )
        self._log.close()
        if self._failures and how == "ended":
            where = f"reasons in {self._out / MANIFEST_NAME}"
            if self._kept:
                where += (
                    f", but for {self._kept} refused (reasons above), of which it keeps the earlier results"
                )
            print(f"{failed} of {counted(self._count, 'slide')} failed; {where}", file=sys.stderr)

    def _begin(self) -> None:
        check_writable(self._out)
        remove_leftovers(self._out, RESERVED)
        if isinstance(self._out, Path):
            clear_leftovers_of_locks(self._out / LOCKS)
        log = EventLog(self._out)
        log.write(
            "batch_started",
            command=sys.argv,
            slides=self._count,
            version=VERSION,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self._manifest = Manifest(self._out, log, self._since, self._keys)
        self._progress = BatchProgress(self._count)
        self._log = log
        self._watchdog = Watchdog(self._tick, self._still)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C, or the SIGTERM of a cluster's time limit, ends the block with a KeyboardInterrupt; a second one at once.

    So does the first one after GRACE_S, where the block waits for something that does not end: a read that hangs.
    At once means: the workers are killed, and this process ends without another instruction. Nothing is half-written
    then either, for every file is written beside and renamed; only locks stay, which the next run takes over.

    A terminal that is gone (SIGHUP) ends nothing: the batch goes on, in all processes that are started here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = 0

    def press(signum: int, _: object) -> NoReturn:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            _end_at_once("stopped at once")
        os.write(2, b"\nstopping; once more stops at once\n")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
    if hasattr(signal, "SIGHUP"):  # not on Windows
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_in_time(
            lambda: _end_at_once(f"what it waited for did not end within {watchdog.GRACE_S:.0f} s")
        ):
            yield
    finally:
        if not pressed:  # else the next one still means at once, until the process has ended
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_at_once(why: str) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(OSError):  # nobody reads it any more
        os.write(2, f"\n{why}; the same command goes on from here\n".encode())
    os._exit(INTERRUPTED)


def _key(entry: SlideEntry) -> tuple[str, str]:
    return entry.name, printable(str(entry.path.absolute()))


def _row(outcome: SlideOutcome) -> ManifestRow:
    result = outcome.result
    name, path = _key(outcome.item)
    row = ManifestRow(
        name,
        path,
        "failed",
        on_one_line(outcome.reason),
        attempt=outcome.attempt,
        worker=outcome.worker,
        finished=now(),
        version=VERSION,
        patient=outcome.item.patient,
    )
    if result is None:
        return row
    return replace(
        row,
        status="skipped" if result.skipped else "done",
        reason=_already_done(result),
        patches=result.patches,
        idc_mm2="" if result.idc_mm2 is None else result.idc_mm2,
        seconds=result.seconds,
        map_key=result.map_key,
        report_key=result.report_key,
    )


def _already_done(result: SlideResult) -> str:
    """What of the slide was there before; empty where all was worked on."""
    if result.skipped:
        return "already done"
    return f"drawn again ({result.drawn_again})" if result.drawn_again else ""


def _line(outcome: SlideOutcome) -> str:
    name, result = outcome.item.name, outcome.result
    if result is None:
        return f"{name}: failed: {outcome.reason}"
    if result.skipped:
        return f"{name}: skipped, already done: {result.folder}"
    if result.drawn_again:
        return f"{name}: {_already_done(result)} in {result.seconds:.1f} s: {result.folder}"
    found = "" if result.idc_mm2 is None else f", {result.idc_mm2:.2f} mm2 IDC"
    if (labels := result.labels) is not None:
        found = (
            f" ({labels['idc']:,} IDC, {labels['not_idc']:,} not, {labels.get('unlabelled', 0):,} unlabelled)"
        )
    return f"{name}: {counted(result.patches, 'patch')}{found} in {result.seconds:.1f} s: {result.folder}"
