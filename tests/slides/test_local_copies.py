import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import write_slide
from test_infer import section

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.cli import tile_slides
from wsi_pipeline.slides import local_copies as staging
from wsi_pipeline.slides.local_copies import Stager
from wsi_pipeline.slides.slide import open_slide

MB = 2**20


def file(path: Path, size: int = MB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def staged_bytes(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # removed meanwhile
                total += Path(parent, name).stat().st_size
    return total


def settled(folder: Path, size: int, seconds: float = 20) -> bool:
    give_up = time.monotonic() + seconds
    while staged_bytes(folder) != size and time.monotonic() < give_up:
        time.sleep(0.01)
    return staged_bytes(folder) == size


def test_slides_are_copied_ahead_of_use_and_removed_after_it(tmp_path: Path) -> None:
    slides = [file(tmp_path / f"slow/{i}.svs") for i in range(3)]
    with Stager(tmp_path / "fast", 10 * MB) as stager:
        for slide in slides:
            stager.begin(slide)
        assert settled(tmp_path / "fast", 3 * MB)
        with stager.copy_of(slides[1]) as copy:
            assert copy is not None
            assert copy.name == "1.svs"
            assert copy.read_bytes() == slides[1].read_bytes()
        assert staged_bytes(tmp_path / "fast") == 2 * MB
    assert list((tmp_path / "fast").iterdir()) == []


def test_copies_never_exceed_the_limit(tmp_path: Path) -> None:
    slides = [file(tmp_path / f"slow/{i}.svs") for i in range(8)]
    most, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, staged_bytes(tmp_path / "fast"))

    watcher = threading.Thread(target=watch)
    with Stager(tmp_path / "fast", int(2.5 * MB)) as stager:
        watcher.start()
        for slide in slides:
            stager.begin(slide)
        for slide in slides:
            with stager.copy_of(slide) as copy:
                assert copy is not None
                assert copy.read_bytes() == slide.read_bytes()
                most = max(most, staged_bytes(tmp_path / "fast"))  # a busy machine may let the watcher sleep
        stop.set()
        watcher.join()
    assert MB <= most <= 2.5 * MB


def test_a_slide_that_nobody_came_for_makes_room_for_one_that_is_waited_for(tmp_path: Path) -> None:
    slides = [file(tmp_path / f"slow/{i}.svs") for i in range(4)]
    with Stager(tmp_path / "fast", 2 * MB) as stager:
        for slide in slides:
            stager.begin(slide)
        with stager.copy_of(slides[3]) as copy:
            assert copy is not None
        with stager.copy_of(slides[0]) as copy:
            assert copy is not None


def test_a_slide_larger_than_the_limit_or_gone_is_read_in_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = file(tmp_path / "slow/large.svs", 3 * MB)
    with Stager(tmp_path / "fast", 2 * MB) as stager:
        with stager.copy_of(large) as copy:
            assert copy is None
        with stager.copy_of(tmp_path / "gone.svs") as copy:
            assert copy is None
    assert "large.svs: not staged, read in place: 0.00 GB, room for 0.00 GB" in caplog.text
    assert "gone.svs: not staged, read in place" in caplog.text


def test_a_full_staging_disk_falls_back_to_reading_in_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=False).returncode
    ):
        pytest.skip("needs to be root, to mount a small disk")
    try:
        slide = file(tmp_path / "slow/a.svs", 3 * MB)
        for spare in (staging.SPARE_BYTES, -100 * MB):  # seen beforehand, and met while writing
            monkeypatch.setattr(staging, "SPARE_BYTES", spare)
            with Stager(small, 10 * MB) as stager, stager.copy_of(slide) as copy:
                assert copy is None
                assert staged_bytes(small) == 0
        assert caplog.text.count("a.svs: not staged, read in place") == 2
        assert "No space left" in caplog.text
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    slide = file(tmp_path / "slow/a.svs")
    code = """
import os, sys
from pathlib import Path
from wsi_pipeline.slides.local_copies import Stager
stager = Stager(Path(sys.argv[1]), 10**9)
stager.get(Path(sys.argv[2]))
os.kill(os.getpid(), 9)
"""
    fast = tmp_path / "fast"
    with Stager(fast, 10 * MB) as living:
        assert living.get(slide)
        run = subprocess.run([sys.executable, "-c", code, fast, slide], check=False)
        assert run.returncode == -signal.SIGKILL
        assert staged_bytes(fast) == 2 * MB
        with Stager(fast, 10 * MB):
            assert staged_bytes(fast) == MB
        assert living.get(slide)
    assert list(fast.iterdir()) == []


def test_files_that_belong_to_a_slide_are_copied_with_it(tmp_path: Path, shared: Path) -> None:
    for name in ("Slidedat.ini", "deep/Data0001.dat"):
        file(tmp_path / "slow/a" / name, 100)
    mirax = file(tmp_path / "slow/a.mrxs", 100)
    file(tmp_path / "slow/b.mrxs", 100)
    dicom = tmp_path / "slow/dicom"
    shutil.copytree(shared / "data/slides/cmu_1_small_region_dicom", dicom)
    with Stager(tmp_path / "fast", 100 * MB) as stager:
        with stager.copy_of(mirax) as copy:
            assert copy is not None
            found = {p.relative_to(copy.parent).as_posix() for p in copy.parent.rglob("*") if p.is_file()}
            assert found == {"a.mrxs", "a/Slidedat.ini", "a/deep/Data0001.dat"}
        with stager.copy_of(dicom) as copy:
            assert copy is not None
            there, here = open_slide(dicom), open_slide(dicom, copy=copy)
            assert (here.path, here.name, here.fingerprint()) == (there.path, there.name, there.fingerprint())
            shutil.rmtree(dicom)
            assert here.read(here.bounds, here.levels[0].plane).any()


def test_a_staged_slides_results_and_reasons_are_the_originals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = file(tmp_path / "slow/bad.tiff")
    good = write_slide(tmp_path / "slow/good.tiff", section(), mpp=(4.0, 4.0))
    (tmp_path / "idc.yaml").write_text("grid: {patch_px: 50, mpp: 4.0}\n")
    arguments = [str(good), str(bad), "--config", str(tmp_path / "idc.yaml"), "--out", str(tmp_path / "out")]
    assert tile_slides.main([*arguments, "--stage-to", str(tmp_path / "fast")]) == 1
    assert "fast" not in (tmp_path / "out/good/summary.json").read_text()
    assert "fast" not in (tmp_path / "out/manifest.csv").read_text()
    assert f"{bad}: no slide format" in capsys.readouterr().out
    assert tile_slides.main(arguments) == 1  # without staging it is the same result
    assert "good: skipped" in capsys.readouterr().out
    assert list((tmp_path / "fast").iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--stage-to"):
        Stager(tmp_path / "file/fast", MB)
