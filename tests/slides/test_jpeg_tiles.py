"""Many JPEG tiles decoded in one call of C are what they are one by one, and damaged ones are refused alike."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_tiff import DAMAGES, KINDS, write_tiff
from tifffile import TiffFile, TiffPage

from wsi_pipeline.base.geometry import Box
from wsi_pipeline.slides.readers import jpeg_tiles
from wsi_pipeline.slides.readers.jpeg_tiles import (
    DecodeTiles,
    TileTargets,
    copy_rectangles,
    decoder_of,
    same_pixels,
)
from wsi_pipeline.slides.readers.source import SourceFile
from wsi_pipeline.slides.readers.tiff import open_reader
from wsi_pipeline.slides.readers.tiff_tiles import JPEG, TilesOfPage, tiles_of
from wsi_pipeline.slides.readers.tile_cache import TiledLevels

JPEG_KINDS = [kind for kind in KINDS if kind.startswith("JPEG") and "2000" not in kind]


@pytest.fixture
def built() -> None:
    if not jpeg_tiles.is_built():
        pytest.skip("the C function was not built here: no compiler or no jpeglib.h")


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_tiles, "_jpeg_tiles", None)
    monkeypatch.setattr(jpeg_tiles, "WHY_NOT", "left out by the test", raising=False)
    monkeypatch.setattr(jpeg_tiles, "_is_logged", False)


def pages_of(path: Path) -> Iterator[tuple[TilesOfPage, SourceFile, DecodeTiles]]:
    """Each page of JPEG tiles, the open file, and what decodes many of its tiles."""
    file = SourceFile(path)
    with TiffFile(path) as tif:
        for page in tif.pages:
            if isinstance(page, TiffPage) and page.compression == JPEG and (tiles := tiles_of(page)):
                assert tiles.streams
                counts, offsets = tiles.byte_counts, tiles.offsets
                decode = decoder_of(file, tiles.streams, tiles.tile_size, tiles.columns, offsets, counts)
                assert decode
                yield tiles, file, decode


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", ["breast_40x.svs", "cmu_1_small_region.svs"])
def test_tiles_of_real_slides_come_out_alike_to_the_bit(shared: Path, name: str) -> None:
    compared = 0
    for tiles, file, decode in pages_of(shared / "data/slides" / name):
        n = len(tiles.offsets)
        for index in {0, n - 1, tiles.columns - 1, *np.linspace(0, n - 1, 40).astype(int).tolist()}:
            expected = tiles.read(file, index)  # cut where the page ends
            row, column = divmod(index, tiles.columns)
            found = np.empty_like(expected)
            assert decode(TileTargets.whole([(column, row)], [found]), 1).all()
            assert np.array_equal(found, expected)
            compared += 1
    assert compared > 20


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_any_part_of_a_tile_goes_where_it_is_wanted(tmp_path: Path, kind: str) -> None:
    ((tiles, file, decode),) = pages_of(write_tiff(tmp_path / "a.tiff", **KINDS[kind]))
    canvas, alone = np.full((500, 600, 3), 7, np.uint8), np.empty((256, 256, 3), np.uint8)
    expected = canvas.copy()
    expected[10:110, 20:220] = tiles.read(file, 1)[30:130, 40:240]
    first = (1, 0, 0, (10 * 600 + 20) * 3, 600 * 3, 40, 30, 200, 100)
    second = (0, 1, 1, 0, 256 * 3, 0, 0, 256, 256)
    assert decode(TileTargets(np.array([first, second]), [canvas, alone]), 1).all()
    assert np.array_equal(canvas, expected)
    assert np.array_equal(alone, tiles.read(file, tiles.columns))


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("threads", [1, 3, 1000])
def test_a_tile_that_is_refused_one_by_one_is_refused_among_many_and_no_other(
    tmp_path: Path, kind: str, damage: str, threads: int
) -> None:
    path = write_tiff(tmp_path / "a.tiff", **KINDS[kind])
    with TiffFile(path) as tif:
        start, length = tif.pages[0].dataoffsets[5], tif.pages[0].databytecounts[5]
    data = bytearray(path.read_bytes())
    data[start : start + length] = DAMAGES[damage](bytes(data[start : start + length]))
    path.write_bytes(data)
    ((tiles, file, decode),) = pages_of(path)
    memory = np.empty((len(tiles.offsets), 256, 256, 3), np.uint8)
    places = [divmod(index, tiles.columns)[::-1] for index in range(len(memory))]
    boxes = [tiles.box(index) for index in range(len(memory))]
    parts = [own[: box.height, : box.width] for own, box in zip(memory, boxes, strict=True)]
    targets = TileTargets.whole(places, list(memory))
    targets.places[:, 7:] = [(box.width, box.height) for box in boxes]
    decoded = decode(targets, threads)
    for index, part in enumerate(parts):
        try:
            expected = tiles.read(file, index)
        except Exception:  # simplejpeg raises what it likes
            assert not decoded[index]
        else:
            assert decoded[index]
            assert np.array_equal(part, expected)
    assert decoded.sum() >= len(decoded) - 1


@pytest.mark.usefixtures("built")
def test_memory_that_is_too_small_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    ((_, _, decode),) = pages_of(write_tiff(tmp_path / "a.tiff", **KINDS["JPEG 4:2:0"]))
    small = np.empty((100, 256, 3), np.uint8)
    too_high, not_there = TileTargets.whole([(0, 0)], [small]), TileTargets.whole([(0, 0)], [small])
    too_high.places[0, 8] = 256
    not_there.places[0, 6] = 200
    with pytest.raises(ValueError, match="do not fit into their memory"):
        decode(too_high, 1)
    with pytest.raises(ValueError, match="not all in the tile"):
        decode(not_there, 1)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("column", range(7))
def test_a_rectangle_that_is_not_within_its_memory_is_not_copied(column: int) -> None:
    source, target = np.arange(60, dtype=np.uint8).reshape(5, 4, 3), np.zeros((6, 7, 3), np.uint8)
    right = np.array([[0, 12 + 3, 12, 21 + 6, 21, 9, 4]])
    copy_rectangles(right, [source], target)
    expected = np.zeros_like(target)
    expected[1:5, 2:5] = source[1:5, 1:4]
    assert np.array_equal(target, expected)
    for off in (-1, 1000):
        wrong = right.copy()
        wrong[0, column] = off
        with pytest.raises(ValueError, match="does not lie within its memory"):
            copy_rectangles(wrong, [source], target)
    assert np.array_equal(target, expected)


def test_a_library_that_gives_other_pixels_is_found_out(tmp_path: Path) -> None:
    right = {0: np.zeros((4, 4, 3), np.uint8), 1: np.full((4, 4, 3), 9, np.uint8)}

    def off_by_one(targets: TileTargets, _: int) -> np.ndarray:
        for (column, *_), rgb in zip(targets.places, targets.memory, strict=True):
            rgb[:] = right[column] + (column == 1)
        return np.ones(len(targets.places), np.bool_)

    assert same_pixels(off_by_one, 2, [0], right.__getitem__)
    assert not same_pixels(off_by_one, 2, [0, 1], right.__getitem__)


@pytest.mark.parametrize("built_here", [True, False])
def test_a_slide_reads_the_same_with_the_c_function_and_without_and_the_log_says_which(
    shared: Path,
    built_here: bool,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "wsi_pipeline")
    path, box = shared / "data/slides/cmu_1_small_region.svs", Box(-10, 300, 2300, 1500)
    request.getfixturevalue("built" if built_here else "not_built")
    monkeypatch.setattr(jpeg_tiles, "_is_logged", False)
    rgb, lost = TiledLevels(open_reader(path)).read(0, box)
    assert not lost
    reader = open_reader(path)
    monkeypatch.setattr(reader, "tiles_decoder", lambda level: None)
    assert np.array_equal(rgb, TiledLevels(reader).read(0, box)[0])
    said = "many in a call, by our own C function" if built_here else "one by one, by simplejpeg (left out"
    assert sum(said in record.getMessage() for record in caplog.records) == 1


def test_a_c_function_of_another_version_is_left_out_and_the_log_says_why(tmp_path: Path) -> None:
    code = """
import logging, sys, types
old = types.ModuleType("wsi_pipeline.slides.readers._jpeg_tiles")
sys.modules[old.__name__] = old
import wsi_pipeline.slides.readers as readers
readers._jpeg_tiles = old
logging.basicConfig(level=logging.INFO)
from wsi_pipeline.slides.readers import jpeg_tiles
assert not jpeg_tiles.is_built()
jpeg_tiles.log_decoder()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "one by one, by simplejpeg (it was built from the source of another version; `make setup`"
        in run.stderr
    )
