"""What a batch may meet at night, one fault after another, and that nothing is lost: the table in docs/storage.md.

    python -m scripts.bench.torture_faults SLIDE --work runs/faults --tries 10 --page docs/storage.md

Runs tile-slides --export once in peace, then again and again with a fault in it at a random instant: after each the
run folder must be that of the run in peace, file by file and byte by byte, as `torture.py` compares them. Needs Linux
and a C compiler: reads that fail, and libraries that break, are put under the command by LD_PRELOAD. Ends with 1 and
says where anything was lost. What lies in --work is replaced.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
# The command, with heartbeats of fractions of a second, and a clock that may be off.
COMMAND = """
import os, sys, time
off, real = float(os.environ.get("CLOCK_OFF", 0)), time.time
time.time = lambda: real() + off
from wsi_pipeline.jobs import locks, protocols
locks.BEAT_S, locks.STALE_S, protocols.BUSY_POLL_S = 0.1, 1.0, 0.1
from wsi_pipeline.cli import tile_slides
sys.exit(tile_slides.main(sys.argv[1:]))
"""
STALE_S = 1.0


@dataclass
class Bench:
    """Where the runs lie, how long one takes in peace, and chance."""

    work: Path
    slide: Path
    chance: random.Random
    seconds: float = 0.0

    @property
    def out(self) -> Path:
        """The run folder in which faults are made."""
        return self.work / "out"

    def start(
        self, out: Path, *slides: Path, lines: str = os.devnull, **more: str
    ) -> subprocess.Popen[bytes]:
        """The command; `more` is put into its environment, `lines` is where its lines go."""
        command = [sys.executable, "-c", COMMAND, *map(str, slides or [self.slide]), "--out", str(out)]
        environment = os.environ | {"LD_PRELOAD": str(self.work / "faults.so"), "OMP_NUM_THREADS": "1"} | more
        command += ["--config", str(self.work / "config.yaml"), "--export"]
        with Path(lines).open("wb") as stream:
            return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)

    def wait(self, *runs: subprocess.Popen[bytes], code: int = 0) -> list[str]:
        """What of their exit codes is not as it should be."""
        codes = [run.wait(PATIENCE_S) for run in runs]
        return [f"ended with {found}, not {code}" for found in codes if found != code]

    def instant(self) -> None:
        """Wait until somewhere in a run."""
        time.sleep(self.chance.uniform(0.2, 0.95) * self.seconds)


def reads_fail(bench: Bench) -> list[str]:
    """Each read of the slide's tiles fails (EIO), from the first on, for half a second."""
    flag, log = bench.work / "eio", bench.work / "eio.log"
    flag.touch()
    run = bench.start(bench.out, lines=str(log), EIO_WHILE=str(flag))
    while run.poll() is None and b"a read failed" not in log.read_bytes():
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
    run.wait()
    return bench.wait(bench.start(bench.out, CLOCK_OFF=str(bench.chance.uniform(-600, 600))))


def streams_end(bench: Bench) -> list[str]:
    """Both streams of its lines are full."""
    return bench.wait(bench.start(bench.out, lines="/dev/full"))


def sleeps(bench: Bench) -> list[str]:
    """Stopped for longer than its heartbeat, taken over, and woken."""
    first = bench.start(bench.out)
    bench.instant()
    first.send_signal(signal.SIGSTOP)
    time.sleep(STALE_S)
    second = bench.start(bench.out)
    time.sleep(bench.chance.uniform(0.5, 1.5) * bench.seconds)
    first.send_signal(signal.SIGCONT)
    return bench.wait(first, second)


def two_write(bench: Bench) -> list[str]:
    """Two processes into one folder, begun at one moment."""
    return bench.wait(bench.start(bench.out), bench.start(bench.out))


def breaks(bench: Bench) -> list[str]:
    """A slide among good ones at which the process aborts."""
    bad = bench.work / "slides/bad.tiff"
    slides = [bad, bench.slide] if bench.chance.random() < 0.5 else [bench.slide, bad]
    return bench.wait(bench.start(bench.out, *slides), code=1)


FAULTS: dict[str, Callable[[Bench], list[str]]] = {
    "reads of the slide fail (EIO) for half a second": reads_fail,
    "killed, then gone on with by a clock up to 10 minutes off": clock_steps,
    "stdout and stderr full": streams_end,
    "stopped for longer than the heartbeat, taken over, woken": sleeps,
    "two processes write into one OUT": two_write,
    "a slide at which the process aborts, among good ones": breaks,
}


def main() -> int:
    """The exit code: 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; emptied")
    parser.add_argument("--tries", type=int, default=3, help="of each fault (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="put the table into this page")
    args = parser.parse_args()
    bench = prepare(args.slide, args.work.absolute(), args.seed)
    rows, lost = ["| fault | tries | nothing lost |", "| --- | --- | --- |"], []
    for name, fault in FAULTS.items():
        wrong = [line for number in range(args.tries) if (line := tried(bench, fault, f"{name}, {number}"))]
        rows.append(f"| {name} | {args.tries} | {args.tries - len(wrong)} |")
        print(rows[-1], flush=True)
        lost += wrong
    for line in lost:
        print(line)
    if args.page:
        put_section(args.page, "faults", "\n".join(rows))
    return 1 if lost else 0


def prepare(slide: Path, work: Path, seed: int) -> Bench:
    """The library of faults, the slides, and a run in peace."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "slides").mkdir(parents=True)
    (work / "faults.c").write_text(PRELOADED)
    library = ["-shared", "-fPIC", "-o", str(work / "faults.so"), str(work / "faults.c"), "-ldl"]
    subprocess.run([os.environ.get("CC", "cc"), *library], check=True)
    for name in ("a", "bad"):
        shutil.copy(slide, work / f"slides/{name}.tiff")
    (work / "config.yaml").write_text(CONFIGS["tile-slides"])
    bench = Bench(work, work / "slides/a.tiff", random.Random(seed))
    began = time.monotonic()
    if wrong := bench.wait(bench.start(work / "peace")):
        raise SystemExit(f"the run in peace {wrong[0]}")
    bench.seconds = time.monotonic() - began
    return bench


def tried(bench: Bench, fault: Callable[[Bench], list[str]], name: str) -> str:
    """What was lost, in a line; empty where nothing was."""
    shutil.rmtree(bench.out, ignore_errors=True)
    wrong = fault(bench)
    wrong += [
        line
        for line in differences(bench.work / "peace", bench.out)
        if not line.startswith("manifest: ") or "'slide': 'bad'" not in line
    ]
    return f"{name}: {'; '.join(wrong)}" if wrong else ""


if __name__ == "__main__":
    sys.exit(main())
