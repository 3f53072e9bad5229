"""What befalls a run from outside: tried for real, on a full disk, a read-only one, and slides that change."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import noise, write_slide
from test_infer import classifier, section

from wsi_pipeline.base.errors import OutputError, RecipeError, SlideChangedError, SlideReadError
from wsi_pipeline.cli import tile_slides
from wsi_pipeline.jobs import Busy
from wsi_pipeline.pipeline.config import InferConfig, TileConfig, TileGridOptions
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.pipeline.slide_jobs import SlideWork, TileJob
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.results.run_folder import SlideResult
from wsi_pipeline.results.store import SlideStore
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.readers import jpeg_tiles, source
from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.tiling.grid import GridOptions

FINE = InferConfig(grid=GridOptions(stride_px=25, block_px=256))
TILES = TileConfig(grid=TileGridOptions(patch_px=50, mpp=4.0, block_px=256))


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", *options, folder], check=False).returncode:
        pytest.skip("needs to be root, to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def same_tree(first: Path, second: Path) -> bool:
    trees = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (first, second)]
    return trees[0] == trees[1]


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide, and what comes of it where nothing befalls it, in `infer/a` and `tile/a`."""
    folder = tmp_path_factory.mktemp("peace")
    slide = write_slide(folder / "a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1, 4))
    infer_slide(slide, folder / "infer", FINE, classifier())
    tile_slide(slide, folder / "tile", TILES, export=True)
    return folder


@pytest.fixture
def slide(peace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy2(peace / "a.tiff", tmp_path))


def remount_read_only(disk: Path) -> None:
    """Refused as busy while another thread of the run has a file open for writing."""
    for _ in range(100):
        if subprocess.run(["mount", "-o", "remount,ro", disk], check=False).returncode == 0:
            return
        time.sleep(0.05)
    pytest.fail("the disk cannot be made read-only")


def fill(disk: Path) -> None:
    with (disk / "ballast").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("stage", ["write", "classify", "pictures"])
def test_a_full_disk_ends_the_run_with_what_to_do_and_with_room_it_goes_on(
    slide: Path, peace: Path, tmp_path: Path, stage: str
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as disk:

        def fill_at(done: int, total: int) -> None:
            if done and (stage == "classify" or done == total):
                fill(disk)

        if stage == "write":
            fill(disk)
        with pytest.raises(
            OutputError, match=r"the disk is full; free some space, and run the same command again"
        ):
            infer_slide(slide, disk / "out", FINE, classifier(), RunOptions(progress=fill_at))
        files = [p for p in (disk / "out").rglob("*") if p.is_file()]
        assert not [p for p in files if not p.stat().st_size or p.suffix in (".part", ".partial")]
        begun: list[int] = []
        (disk / "ballast").unlink()
        listening = RunOptions(progress=lambda done, total: begun.append(done))
        infer_slide(slide, disk / "out", FINE, classifier(), listening)
        assert (begun[0] > 0) == (stage != "write")
        assert same_tree(peace / "infer/a/slide.zarr", disk / "out/a/slide.zarr")


def test_a_full_disk_is_a_line_and_no_traceback(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "idc.yaml").write_text("grid: {patch_px: 50, mpp: 4.0}\n")
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64k", "tmpfs") as small:
        arguments = [
            str(slide),
            "--config",
            str(tmp_path / "idc.yaml"),
            "--out",
            str(small / "out"),
            "--export",
        ]
        assert tile_slides.main(arguments) == 1
    said = capsys.readouterr()
    assert "the disk is full" in said.out + said.err
    assert "Traceback" not in said.out + said.err


def test_a_read_only_folder_is_refused_before_anything_runs(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "out", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs") as out:
        for folder in (out, out / "maps"):
            assert tile_slides.main([str(slide), "--out", str(folder)]) == 2
            said = capsys.readouterr().err
            assert "read-only" in said.lower()
            assert "choose another --out" in said


def test_a_file_system_that_turns_read_only_ends_the_run_and_writable_again_it_goes_on(
    slide: Path, peace: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as disk:

        def fail_at(done: int, total: int) -> None:
            if done:
                remount_read_only(disk)

        with pytest.raises(OutputError, match="the file system is read-only"):
            infer_slide(slide, disk / "out", FINE, classifier(), RunOptions(progress=fail_at))
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        infer_slide(slide, disk / "out", FINE, classifier())
        assert same_tree(peace / "infer/a/slide.zarr", disk / "out/a/slide.zarr")


def replaced(slide: Path) -> None:
    write_slide(slide.with_name("other.tiff"), noise(700, 900), mpp=(4.0, 4.0)).replace(slide)


def overwritten(slide: Path) -> None:
    data = slide.read_bytes()
    time.sleep(0.02)  # the clock of some file systems is coarse
    slide.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def cut_short(slide: Path) -> None:
    os.truncate(slide, slide.stat().st_size // 2)


@pytest.mark.parametrize(
    ("command", "harm"),
    [("infer", replaced), ("infer", cut_short), ("tile", Path.unlink), ("tile", overwritten)],
)
def test_a_slide_that_changes_while_it_is_read_fails_and_put_back_it_goes_on(
    slide: Path, peace: Path, tmp_path: Path, command: str, harm: Callable[[Path], None]
) -> None:
    def run(progress: Callable[[int, int], None] | None = None) -> None:
        if command == "infer":
            infer_slide(slide, tmp_path / "out", FINE, classifier(), RunOptions(progress=progress))
        else:
            tile_slide(slide, tmp_path / "out", TILES, export=True, run=RunOptions(progress=progress))

    calls = 0

    def harm_once(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            harm(slide)

    with pytest.raises(SlideChangedError, match=r"a\.tiff: (changed|gone) since the slide was opened"):
        run(harm_once)
    assert not (tmp_path / "out/a/summary.json").exists()
    if harm is replaced:
        with pytest.raises(RecipeError, match="--overwrite"):
            run()
    shutil.copy2(peace / "a.tiff", slide)
    begun: list[int] = []
    run(lambda done, total: begun.append(done))
    assert begun[0] > 0
    for name in ("slide.zarr", "export"):
        assert same_tree(peace / command / "a" / name, tmp_path / "out/a" / name)


def test_a_mount_that_stumbles_changes_nothing_of_the_map(
    slide: Path, peace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, pread = [0], os.pread

    def stumbling(*args: int) -> bytes:
        calls[0] += 1
        if calls[0] % 5 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(*args)

    monkeypatch.setattr(source.time, "sleep", lambda _: None)
    monkeypatch.setattr(source.os, "pread", stumbling)
    result = infer_slide(slide, tmp_path / "out", FINE, classifier())
    assert calls[0] > 20
    for part in ("heatmap", "labels"):
        assert same_tree(peace / "infer/a/slide.zarr" / part, result.folder / "slide.zarr" / part)


def test_a_mount_that_goes_away_fails_the_slide_and_is_not_taken_for_damage(
    slide: Path, peace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, last, pread = [0], [10**6], os.pread

    def going(*args: int) -> bytes:
        reads[0] += 1
        if reads[0] > last[0]:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return pread(*args)

    # The function in C reads by itself, from a disk that is whole here.
    monkeypatch.setattr(jpeg_tiles, "_jpeg_tiles", None)
    monkeypatch.setattr(jpeg_tiles, "WHY_NOT", "left out by the test", raising=False)
    monkeypatch.setattr(source.time, "sleep", lambda _: None)
    monkeypatch.setattr(source.os, "pread", going)

    def goes_away(done: int, total: int) -> None:
        last[0] = reads[0]

    with pytest.raises(SlideReadError, match=os.strerror(errno.ENOTCONN)):
        infer_slide(slide, tmp_path / "out", FINE, classifier(), RunOptions(progress=goes_away))
    status = SlideStore(tmp_path / "out/a/slide.zarr").array("labels/status/0")
    assert not (status == Status.UNREADABLE).any()
    last[0] = 10**6
    result = infer_slide(slide, tmp_path / "out", FINE, classifier())
    for part in ("heatmap", "labels"):
        assert same_tree(peace / "infer/a/slide.zarr" / part, result.folder / "slide.zarr" / part)


def test_what_fails_since_another_process_took_the_slide_over_is_no_failure(tmp_path: Path) -> None:
    entry, locked = SlideEntry(tmp_path / "a.svs", "a"), tmp_path / "out/.batch/locks/a.lock"

    def fails_after(taken_over: bool) -> SlideWork:
        def one(entry: SlideEntry, run: RunOptions) -> SlideResult:
            if taken_over:
                locked.unlink()
            raise OutputError("slide.zarr: cannot be written: No such file or directory")

        return SlideWork(TileJob(tmp_path / "out", TILES), TILES, one)

    with pytest.raises(Busy, match="taken over by another process"):
        fails_after(True)(entry, lambda done, total: None)
    with pytest.raises(OutputError, match="cannot be written"):
        fails_after(False)(entry, lambda done, total: None)
