"""Reads that never end or end the process: the batch says what it waits for, gives a slide up, and goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import noise, write_slide

from wsi_pipeline.cli import watchdog
from wsi_pipeline.cli.watchdog import Watchdog

# A read beyond a file's first bytes waits for ever, as on a mount whose server is gone, or ends the process, as a fault
# in a library does; by the file's name.
HANGING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int is(int fd, const char *wanted) {
  char link[64], name[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, name, sizeof name - 1);
  if (n < 0) return 0;
  name[n] = 0;
  return strstr(name, wanted) != NULL;
}
ssize_t pread(int fd, void *buf, size_t count, off_t at) {
  static ssize_t (*real)(int, void *, size_t, off_t);
  if (!real) real = dlsym(RTLD_NEXT, "pread");
  if (at > 20000 && is(fd, "hanging.tiff")) for (;;) pause();
  if (at > 20000 && is(fd, "aborting.tiff")) abort();
  return real(fd, buf, count, at);
}
ssize_t pread64(int fd, void *buf, size_t count, off_t at) { return pread(fd, buf, count, at); }
"""
# With clocks in seconds instead of minutes.
QUICK = """
import sys
from wsi_pipeline.cli import progress, watchdog
watchdog.STILL_S, watchdog.GRACE_S, progress.LOG_EVERY_S = 1.5, 2.0, 1.0
from wsi_pipeline.cli import tile_slides
sys.exit(tile_slides.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux, to make reads hang")
    folder = tmp_path_factory.mktemp("preload")
    (folder / "hanging.c").write_text(HANGING)
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-o",
        str(folder / "hanging.so"),
        str(folder / "hanging.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return str(folder / "hanging.so")


@pytest.fixture(params=["hanging"])
def slides(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """Arguments: three slides, the second of which cannot be read, and where their results go."""
    config = tmp_path / "config.yaml"
    config.write_text("grid: {patch_px: 50, mpp: 4.0}\n")
    paths = []
    for name in ("a", request.param, "z"):
        image = noise(700, 700).astype(int) // 4 + 120
        paths.append(str(write_slide(tmp_path / f"{name}.tiff", image.astype("uint8"), mpp=(4.0, 4.0))))
    return [*paths, "--out", str(tmp_path / "out"), "--config", str(config), "--export"]


def start(preload: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"LD_PRELOAD": preload, "OMP_NUM_THREADS": "1"},
    )


def read_until(run: subprocess.Popen[str], words: str) -> list[str]:
    assert run.stdout
    lines = []
    for line in run.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"'{words}' never came: {lines}")


def test_a_slide_that_hangs_is_given_up_and_the_others_are_done(preload: str, slides: list[str]) -> None:
    run = start(preload, *slides, "--slide-timeout", "6")
    printed, _ = run.communicate(timeout=90)
    assert run.returncode == 1, printed
    assert "hanging: failed: " in printed
    assert "not done after 6 s (--slide-timeout), and its worker was ended" in printed
    assert "1 of 3 slides failed" in printed
    out = Path(slides[slides.index("--out") + 1])
    assert {path.parent.name for path in out.glob("*/summary.json")} == {"a", "z"}


@pytest.mark.parametrize("slides", ["aborting"], indirect=True)
def test_a_slide_at_which_the_process_breaks_costs_no_other(preload: str, slides: list[str]) -> None:
    run = start(preload, *slides)
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 1, printed
    assert "its worker was lost in each of 3 attempts, the last killed by signal 6 (SIGABRT)" in printed
    out = Path(slides[slides.index("--out") + 1])
    assert {path.parent.name for path in out.glob("*/summary.json")} == {"a", "z"}


@pytest.mark.parametrize("slides", ["aborting"], indirect=True)
def test_a_slide_that_was_begun_and_never_ended_is_tried_last_and_apart(
    preload: str, slides: list[str]
) -> None:
    run = start(preload, *slides[1:], "--no-isolate")
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGABRT
    run = start(preload, *slides[1:])
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 1, printed
    assert "begun in an earlier run that never ended them, and so tried last and apart: aborting" in printed
    assert printed.index("[1/2] z: ") < printed.index("[2/2] aborting: failed: ")
    assert "lost in each of 3 attempts" in printed


def test_a_batch_that_waits_says_for_what_and_ends_when_asked_whatever_a_read_does(
    preload: str, slides: list[str]
) -> None:
    run = start(preload, *slides, "--no-isolate")
    try:
        lines = read_until(run, "nothing has moved for")
        assert (
            "waiting for hanging; --slide-timeout SECONDS would give up a slide that takes longer"
            in lines[-1]
        )
        state = "1 of 3 slides; working on hanging"
        if not any(state in line for line in lines):
            read_until(run, state)
        asked = time.monotonic()
        run.send_signal(signal.SIGTERM)
        rest, _ = run.communicate(timeout=30)
    finally:
        run.kill()
    assert run.returncode == 130, rest
    assert time.monotonic() - asked < 8
    assert "what it waited for did not end within 2 s; the same command goes on from here" in rest
    events = "".join(
        p.read_text() for p in (Path(slides[slides.index("--out") + 1]) / ".batch/events").iterdir()
    )
    assert '"event": "batch_waits"' in events


def test_what_does_not_move_is_said_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "STILL_S", 0.1)
    said: list[float] = []
    watched = Watchdog(lambda: None, said.append)
    time.sleep(1.0)
    still = list(said)
    assert len(still) >= 2
    assert all(seconds >= 0.1 * 2**i for i, seconds in enumerate(still))  # after 0.1, 0.2, 0.4, 0.8 s
    watched.moved()
    end = time.monotonic() + 10
    while len(said) == len(still) and time.monotonic() < end:
        time.sleep(0.02)
    watched.close()
    assert 0.1 <= said[len(still)] < still[-1]  # from the beginning again
    count = len(said)
    time.sleep(0.5)
    assert len(said) == count
