"""Slides are closed: their files and handles, those of all threads."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_scn

from wsi_pipeline.base.errors import RegionReadError, SlideError
from wsi_pipeline.base.geometry import Box
from wsi_pipeline.slides.slide import Slide, open_slide

MakeSlide = Callable[..., Path]
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc, to see open files")


def open_files(path: Path) -> int:
    """How many handles of this process are of the file."""
    links = []
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            links.append(handle.readlink())
    return links.count(path.resolve())


@pytest.fixture(params=["tiff", "scn"])
def path(request: pytest.FixtureRequest, make_slide: MakeSlide, tmp_path: Path) -> Path:
    """A slide of each kind of reader: by storage tile, and through OpenSlide."""
    if request.param == "tiff":
        return make_slide("a.tiff", noise(1024, 1024))
    return write_scn(tmp_path / "a.scn", noise(512, 512), 256, 256, (1500, 1500))


def fail_after(pixels: np.ndarray) -> None:
    raise RegionReadError(f"of {pixels.shape}")


def read(slide: Slide, x: int = 0) -> np.ndarray:
    return slide.read(Box(x, 0, 64, 64), slide.plane_at(slide.mpp[0]))


@needs_proc
def test_closing_closes_the_files_of_all_threads(path: Path) -> None:
    slide = open_slide(str(path))
    together = threading.Barrier(4)

    def read_at(x: int) -> np.ndarray:
        together.wait(10)
        slide._reader.read(0, Box(x, 0, 8, 8))  # a handle of OpenSlide's for this thread
        return read(slide, x)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_at, range(0, 256, 64)))
        assert open_files(path) > 0
        slide.close()  # while the threads still live
        assert open_files(path) == 0


@needs_proc
def test_a_slide_closes_at_the_end_of_its_block_whatever_comes_of_it(path: Path) -> None:
    with pytest.raises(RegionReadError), open_slide(path) as slide:
        fail_after(read(slide))
    assert open_files(path) == 0


def test_reading_a_closed_slide_is_an_error_and_no_damage(path: Path) -> None:
    with open_slide(path) as slide:
        before = read(slide)
    assert before.shape == (64, 64, 3)
    plane = slide.plane_at(1.0)
    for attempt in (
        lambda: read(slide),
        lambda: slide.read_readable(Box(0, 0, 8, 8), plane),
        lambda: slide.read_whole(plane),
        lambda: slide._reader.read(0, Box(0, 0, 8, 8)),
    ):
        with pytest.raises(SlideError, match="after it was closed") as caught:
            attempt()
        assert not isinstance(caught.value, RegionReadError)
    slide.close()  # again: nothing


def test_closing_waits_for_reads_under_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, begun, ended = open_slide(path), threading.Event(), threading.Event()
    whole = slide._tiles.read

    def slow(
        level: int, box: Box, out: np.ndarray | None = None, threads: int = 1, overlap_px: int = 0
    ) -> tuple[np.ndarray, tuple[Box, ...]]:
        begun.set()
        time.sleep(0.2)
        pixels = whole(level, box, out, threads, overlap_px)
        ended.set()
        return pixels

    monkeypatch.setattr(slide._tiles, "read", slow)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, slide)
        assert begun.wait(10)
        slide.close()
        assert ended.is_set()
        assert reading.result().shape == (64, 64, 3)
