"""A process that slept longer than its lock's heartbeat allows, and wakes when another one has taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tissue_texture

# Beats and their end within a second, and blocks slow enough to be stopped between two of them.
QUICK = """
import sys, time
from wsi_pipeline.jobs import locks, protocols
locks.BEAT_S, locks.STALE_S, protocols.BUSY_POLL_S = 0.05, 0.4, 0.1
from wsi_pipeline.results import store
write = store.SlideStore.write_block
def slowly(*args, **kwargs):
    time.sleep(float(sys.argv[1]))
    return write(*args, **kwargs)
store.SlideStore.write_block = slowly
from wsi_pipeline.cli import infer_slide
sys.exit(infer_slide.main(sys.argv[2:]))
"""


def start(out: Path, slide: Path, pause: float, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", QUICK, str(pause), str(slide), "--out", str(out), "--device", "cpu"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False], ids=["the same recipe", "another recipe"])
def test_who_wakes_after_a_take_over_changes_nothing_of_the_others_result(
    tmp_path: Path, make_slide, same: bool
) -> None:
    image = np.full((1000, 1000, 3), 243, np.uint8)
    image[50:-50, 50:-50] = tissue_texture(900, 900)
    slide, out = make_slide("a.tiff", image, mpp=(4.0, 4.0)), tmp_path / "out"
    (tmp_path / "one.yaml").write_text("grid: {block_px: 256}\nclassify: {precision: fp32}\n")
    (tmp_path / "two.yaml").write_text("grid: {block_px: 256, stride_px: 25}\nclassify: {precision: fp32}\n")
    first = start(out, slide, 0.3, "--config", str(tmp_path / "one.yaml"))
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and len(list(out.glob("a/slide.zarr/labels/status/0/c/*/*"))) < 1:
            assert first.poll() is None, first.stdout and first.stdout.read()
            time.sleep(0.02)
        time.sleep(0.4)
        os.kill(first.pid, signal.SIGSTOP)
        config = tmp_path / ("one.yaml" if same else "two.yaml")
        second = start(out, slide, 0.0, "--config", str(config), *([] if same else ["--overwrite"]))
        said, _ = second.communicate(timeout=180)
        assert second.returncode == 0, said
        before = contents(out / "a")
        os.kill(first.pid, signal.SIGCONT)
        woken, _ = first.communicate(timeout=120)
    finally:
        first.kill()
    assert contents(out / "a") == before
    assert "taken over by another process" in woken
    # Then it finds the same map done, or another one in its place; it never says that it failed to write.
    assert first.returncode == (0 if same else 2), woken
    summary = json.loads((out / "a/summary.json").read_text())
    assert summary["counts"]["cells"]["scored"] > 0
