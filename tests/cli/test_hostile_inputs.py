"""Small files that would fill the memory, never end, or say nothing of what they are: each is a line, and quickly."""

import csv
import os
import resource
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_slide
from PIL import Image

from wsi_pipeline.base.errors import OutputError
from wsi_pipeline.base.files import LEFT_S, write_bytes
from wsi_pipeline.base.text import for_spreadsheet, from_spreadsheet
from wsi_pipeline.cli import classify_images, tile_slides

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MOST_BYTES = 512 * 2**20


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(
        tmp_path / "s.tiff", (noise(600, 600).astype(int) // 4 + 120).astype("uint8"), mpp=(4.0, 4.0)
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("grid: {patch_px: 50, mpp: 4.0}\n")
    return tmp_path / "config.yaml"


def bounded(*arguments: str | Path) -> tuple[int, str]:
    """tile-slides in a process that may not take more memory, and 20 s at most: its exit code and what it says."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))

    command = [sys.executable, "-m", "wsi_pipeline.cli.tile_slides", *map(str, arguments)]
    run = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=20,
        preexec_fn=bound,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    return run.returncode, run.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES + "grid: *a9\n", "values once its aliases are written out, at most 100,000 are read"),
        ("grid: &a {patch_px: *a}\n", "holds itself"),
        ("grid: " + "[" * 100_000 + "]" * 100_000, "recursion"),
        ("grid: {patch_px: " + "9" * 5000 + "}\n", "5000 digits"),
    ],
    ids=["aliases", "in itself", "deep", "digits"],
)
def test_a_config_that_would_never_end_is_refused(tmp_path: Path, slide: Path, text: str, words: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    code, printed = bounded(slide, "--out", tmp_path / "out", "--config", tmp_path / "bad.yaml")
    assert code == 2, printed
    assert words in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_aliases_in_a_config_are_fine(tmp_path: Path, slide: Path) -> None:
    config = tmp_path / "aliases.yaml"
    config.write_text("grid: {patch_px: &side 50, stride_px: *side, mpp: 4.0}\n")
    assert tile_slides.main([str(slide), "--out", str(tmp_path / "out"), "--config", str(config)]) == 0


def test_what_is_no_file_is_named_for_what_it_is(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    (tmp_path / "dangling.svs").symlink_to("nowhere.svs")
    paths = [str(tmp_path / f"{name}.svs") for name in ("pipe", "loop", "dangling")]
    began = time.monotonic()
    arguments = [*paths, "--out", str(tmp_path / "out"), "--config", str(config)]
    assert tile_slides.main([*arguments, "--no-isolate"]) == 1
    assert time.monotonic() - began < 5
    printed = capsys.readouterr().out
    for words in (
        "no file but a device, pipe or socket",
        "a link that leads to itself",
        "a link to nowhere.svs, which is not there",
    ):
        assert words in printed


def test_a_picture_as_large_as_a_slide_is_refused_before_it_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    data = (tmp_path / "small.png").read_bytes()
    header = b"IHDR" + (13_000).to_bytes(4, "big") * 2 + data[24:29]
    (tmp_path / "large.png").write_bytes(
        data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
    )
    assert classify_images.main([str(tmp_path / "large.png"), "--mpp", "4"]) == 1
    printed = "".join(capsys.readouterr())
    assert "found 13,000 x 13,000 pixels, expected at most 40,000,000 of a picture" in printed
    assert "map it with infer-slide" in printed


def test_a_name_that_a_spreadsheet_would_compute_is_text_there_and_comes_back(
    tmp_path: Path, slide: Path
) -> None:
    name = "=HYPERLINK(1)"
    shutil.copy(slide, tmp_path / f"{name}.tiff")
    out, config = tmp_path / "out", tmp_path / "c.yaml"
    config.write_text("grid: {patch_px: 50, mpp: 4.0}\n")
    for expected in ("done", "skipped"):
        assert (
            tile_slides.main([str(tmp_path / f"{name}.tiff"), "--out", str(out), "--config", str(config)])
            == 0
        )
        with (out / "manifest.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert (row["slide"], row["status"]) == (f"'{name}", expected)
        assert from_spreadsheet(row["slide"]) == name
    for text in ("=1", "'=1", "''+a", "plain", "'quoted'", "-", "@x", "a=b", ""):
        assert from_spreadsheet(for_spreadsheet(text)) == text


def test_what_a_killed_process_left_of_a_batchs_files_goes(tmp_path: Path, slide: Path, config: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    old, new, foreign = (
        out / name for name in (".manifest.csv.0a.part", ".manifest.csv.0b.part", ".mine.part")
    )
    for path in (old, new, foreign):
        path.write_text("half")
    for path in (old, foreign):
        os.utime(path, (time.time() - LEFT_S - 60,) * 2)
    assert tile_slides.main([str(slide), "--out", str(out), "--config", str(config)]) == 0
    assert not old.exists()
    assert new.exists()
    assert foreign.exists()


def test_a_lock_of_bad_bytes_is_a_lock_that_nobody_holds(
    tmp_path: Path, slide: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.jobs.locks.STALE_S", 0.2)
    monkeypatch.setattr("wsi_pipeline.jobs.sequential.BUSY_POLL_S", 0.1)
    lock = tmp_path / "out/.batch/locks/s.lock"
    lock.parent.mkdir(parents=True)
    lock.write_bytes(b"\xff\xfe\0\x9f")
    assert tile_slides.main([str(slide), "--out", str(tmp_path / "out"), "--config", str(config)]) == 0
    assert not lock.exists()


def test_no_inodes_is_not_a_full_disk(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs to mount a file system of few files")
    place = tmp_path / "few"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nr_inodes=4,size=1m", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("needs to mount a file system of few files, which is not allowed here")
    try:
        for i in range(3):  # the file system's own folder is one of its four
            write_bytes(place / f"{i}", b"x", durable=False)
        with pytest.raises(OutputError, match="holds no more files, though it has room"):
            write_bytes(place / "more", b"x")
    finally:
        subprocess.run(["umount", str(place)], check=True)
