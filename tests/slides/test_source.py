"""Trouble on the way to a file is tried again, and never taken for damage of the file."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
from conftest import noise, write_slide

from wsi_pipeline.base.errors import RegionReadError, SlideOpenError, SlideReadError
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.slides.readers import jpeg_tiles, source
from wsi_pipeline.slides.readers.openslide import OpenSlideReader
from wsi_pipeline.slides.readers.source import SourceFile, with_retries
from wsi_pipeline.slides.slide import open_slide

EIO = OSError(errno.EIO, os.strerror(errno.EIO))
FAILED = "Cannot read raw tile, last error: TIFFReadRawTile: Read error at row 0, col 0; got 0 bytes, expected 27579"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, noted instead of slept."""
    noted: list[float] = []
    monkeypatch.setattr(source.time, "sleep", noted.append)
    return noted


def failing(times: int, error: OSError, then: Callable[..., bytes] = os.pread) -> Callable[..., bytes]:
    """`os.pread`, which fails so many times first."""
    left = [times]

    def pread(*args: int) -> bytes:
        if left[0]:
            left[0] -= 1
            raise error
        return then(*args)

    return pread


def test_a_read_that_fails_is_tried_again_with_growing_waits(waits: list[float]) -> None:
    answers: Iterator[OSError | str] = iter([EIO, EIO, "bytes"])

    def attempt() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert with_retries(Path("a.tiff"), attempt) == "bytes"
    assert waits == list(source.RETRY_WAITS_S[:2])
    assert sorted(waits) == waits


def test_a_read_that_keeps_failing_is_an_error_that_says_what_the_system_says(waits: list[float]) -> None:
    def attempt() -> None:
        raise EIO

    with pytest.raises(
        SlideReadError, match=r"a\.tiff: could not be read: Input/output error; .*run the same command"
    ):
        with_retries(Path("a.tiff"), attempt)
    assert waits == list(source.RETRY_WAITS_S)


def test_a_file_is_read_on_through_a_new_handle(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file, stale = SourceFile(tmp_path / "a"), set()

    def pread(handle: int, count: int, offset: int) -> bytes:
        stale.add(handle)
        if handle == min(stale):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(handle, count, offset)

    real = os.pread
    monkeypatch.setattr(source.os, "pread", pread)
    assert file.read(2, 3) == b"234"
    assert not waits  # the first new handle answers
    assert file.read(5, 5) == b"56789"


def test_bytes_past_the_end_of_the_file_are_damage_and_those_that_were_cut_off_since_are_trouble(
    tmp_path: Path, waits: list[float]
) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file = SourceFile(tmp_path / "a")
    with pytest.raises(RegionReadError, match="ends after 2 of 5 bytes"):
        file.read(8, 5)
    os.truncate(tmp_path / "a", 6)
    with pytest.raises(SlideReadError, match="became shorter: it now ends at byte 6"):
        file.read(4, 5)


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_trouble_that_passes_costs_no_pixel(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    image = noise(700, 900)
    slide = open_slide(write_slide(tmp_path / "a.tiff", image, factors=(1,), compression="deflate"))
    slide.read(Box(0, 0, 10, 10), Plane(1, 1))
    monkeypatch.setattr(source.os, "pread", failing(4, OSError(error, os.strerror(error))))
    pixels = slide.read_readable(Box(0, 0, 900, 700), Plane(1, 1))
    assert pixels.unreadable is None
    assert np.array_equal(pixels.rgb, image)
    assert waits


def test_trouble_that_stays_fails_the_slide_and_marks_nothing_unreadable(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The function in C reads by itself, from a disk that is whole here.
    monkeypatch.setattr(jpeg_tiles, "_jpeg_tiles", None)
    monkeypatch.setattr(jpeg_tiles, "WHY_NOT", "left out by the test", raising=False)
    slide = open_slide(write_slide(tmp_path / "a.tiff", noise(700, 900), factors=(1,), compression="jpeg"))
    slide.read(Box(0, 0, 10, 10), Plane(1, 1))
    monkeypatch.setattr(source.os, "pread", failing(10**6, EIO))
    with pytest.raises(SlideReadError, match="Input/output error"):
        slide.read_readable(Box(0, 0, 900, 700), Plane(1, 1))


def through_failing_openslide(monkeypatch: pytest.MonkeyPatch, times: int, text: str = FAILED) -> list[int]:
    """OpenSlide's reads fail so many times with this text; gives the count of those that were asked for."""
    real, asked = openslide.OpenSlide.read_region, [0]

    def read_region(handle: openslide.OpenSlide, *args: object) -> object:
        asked[0] += 1
        if asked[0] <= times:
            raise openslide.OpenSlideError(text)
        return real(handle, *args)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", read_region)
    return asked


def test_openslide_is_asked_again_on_a_new_handle(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(300, 300)
    reader = OpenSlideReader(write_slide(tmp_path / "a.tiff", image, factors=(1,)))
    asked = through_failing_openslide(monkeypatch, 2)
    assert np.array_equal(reader.read(0, Box(0, 0, 300, 300)), image)
    assert asked == [3]


def test_what_openslide_could_not_read_is_trouble_while_the_system_cannot_read_the_file(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = OpenSlideReader(write_slide(tmp_path / "a.tiff", noise(300, 300), factors=(1,)))
    through_failing_openslide(monkeypatch, 10**6)
    monkeypatch.setattr(source.os, "pread", failing(10**6, EIO))
    with pytest.raises(SlideReadError, match="Input/output error"):
        reader.read(0, Box(0, 0, 300, 300))
    monkeypatch.setattr(source.os, "pread", os.pread)


def test_what_openslide_could_not_read_is_damage_where_the_system_reads_every_byte(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = OpenSlideReader(write_slide(tmp_path / "a.tiff", noise(300, 300), factors=(1,)))
    through_failing_openslide(monkeypatch, 10**6)
    for _ in range(2):
        with pytest.raises(RegionReadError, match="cannot be decoded: Cannot read raw tile"):
            reader.read(0, Box(0, 0, 300, 300))
    assert not waits


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EIO])
def test_a_header_that_the_system_does_not_give_is_not_called_no_slide(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    path = write_slide(tmp_path / "a.tiff", noise(300, 300), factors=(1,))

    def unsupported(_: Path) -> None:
        raise openslide.OpenSlideUnsupportedFormatError("Unsupported or missing image file")

    monkeypatch.setattr(openslide, "OpenSlide", unsupported)
    with pytest.raises(SlideOpenError, match=r"a TIFF, .* which OpenSlide does not read"):
        open_slide(path)
    real = os.open

    def failing_open(file: Path, *args: int) -> int:
        if file == path:
            raise OSError(error, os.strerror(error))
        return real(file, *args)

    monkeypatch.setattr(source.os, "open", failing_open)
    with pytest.raises(SlideReadError, match=os.strerror(error)):
        open_slide(path)
    assert waits


def test_a_file_without_the_right_to_read_it_is_named_as_such_at_once(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "a.tiff", noise(300, 300), factors=(1,))

    def denied(*_: object, **__: object) -> None:  # a superuser may read all
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(SlideOpenError, match=r"a\.tiff: permission denied"):
        open_slide(path)
    assert not waits


def test_a_pipe_is_no_slide_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tiff")
    with pytest.raises(SlideOpenError, match="pipe"):
        open_slide(tmp_path / "a.tiff")


def test_a_file_whose_state_cannot_be_asked_for_has_not_changed(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(write_slide(tmp_path / "a.tiff", noise(300, 300), factors=(1,)))

    def stat(*_: object, **__: object) -> None:
        raise EIO

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(SlideReadError, match="Input/output error"):
        slide.check_unchanged()


def test_no_socket_is_opened_to_read_a_slide(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tiff", noise(300, 300), factors=(1, 4), compression="jpeg")
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('a socket is opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "class Refused(socket.socket):\n"
        "    def __init__(self, *a, **k): refuse()\n"
        "socket.socket = Refused\n"
        "from pathlib import Path\n"
        "from wsi_pipeline.base import images\n"
        "from wsi_pipeline.slides.slide import open_slide\n"
        "slide = open_slide(Path(sys.argv[1]))\n"
        "assert slide.read_whole(slide.plane_at(4)).unreadable is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
