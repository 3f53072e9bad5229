"""Many JPEG tiles of a file decoded in one call of our own C function, which holds no lock of Python's meanwhile.

Each tile by itself through Python costs as much as decoding it once sixteen threads do so: they wait for each other's
lock. The C function (_jpeg_tiles.c) is built where a compiler and libjpeg's headers are; where it is not, tiles are
decoded one by one, to the same pixels. A tile that it refuses is decoded again the usual way, which says why.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Size
from wsi_pipeline.slides.readers.source import SourceFile

try:
    from wsi_pipeline.slides.readers import _jpeg_tiles  # type: ignore[attr-defined]
except ImportError as error:
    _jpeg_tiles = None
    WHY_NOT = str(error)

log = logging.getLogger(__name__)

COLUMNS = ("offset", "count", "target", "start", "pitch", "x", "y", "width", "height")
"""What the C function is given of each tile, int64."""


@dataclass(frozen=True)
class JpegStreams:
    """What a page's JPEG tiles have in common."""

    head: bytes
    """Of every whole stream: the start, the page's tables, the colours it means; a tile's own start is dropped."""

    stored_as_rgb: bool
    """A tile's JFIF segment, which would mean YCbCr, is dropped too."""


@dataclass(frozen=True, eq=False)
class TileTarget:
    """Where pixels of one tile go: column and row of the tile, and which memory."""

    column: int
    row: int
    rgb: NDArray[np.uint8]
    """[height, width, 3], a view into `memory`, whose rows lie apart by `memory`'s own width."""

    memory: NDArray[np.uint8]
    """[rows, columns, 3], contiguous."""

    x: int = 0
    """The first of the tile's columns that is wanted."""

    y: int = 0
    """The first of its rows."""


DecodeTiles = Callable[[Sequence[TileTarget]], NDArray[np.bool_]]
"""Tiles of one level decoded in one call, each into its memory: bool [n], False where a tile could not be."""


def is_built() -> bool:
    """Whether the C function is there."""
    return _jpeg_tiles is not None


def log_decoder() -> None:
    """Say, once a process, how JPEG tiles are decoded."""
    global _is_logged
    if not _is_logged:
        how = (
            "many in a call, by our own C function"
            if is_built()
            else f"one by one, by simplejpeg ({WHY_NOT}; `make setup` builds the faster way where a C compiler and "
            "libjpeg's headers are)"
        )
        log.info("JPEG tiles are decoded %s", how)
    _is_logged = True


_is_logged = False


def decoder_of(
    file: SourceFile,
    streams: JpegStreams,
    tile: Size,
    columns: int,
    offsets: NDArray[np.int64],
    byte_counts: NDArray[np.int64],
) -> DecodeTiles | None:
    """What decodes tiles of a page of the file; None where the C function was not built.

    `offsets` and `byte_counts`, int64 [n], are those of the page's tiles in row order, `columns` of them in a row.
    """
    if _jpeg_tiles is None:
        return None
    function = _jpeg_tiles.decode_tiles

    def decode(targets: Sequence[TileTarget]) -> NDArray[np.bool_]:
        numbers: dict[int, int] = {}
        memory: list[NDArray[np.uint8]] = []
        rows = np.empty((len(targets), len(COLUMNS)), np.int64)
        for i, target in enumerate(targets):
            number = numbers.setdefault(id(target.memory), len(memory))
            if number == len(memory):
                memory.append(target.memory)
            index = target.row * columns + target.column
            start = _address(target.rgb) - _address(target.memory)
            height, width = target.rgb.shape[:2]
            place = (number, start, target.memory.strides[0], target.x, target.y, width, height)
            rows[i] = (offsets[index], byte_counts[index], *place)
        refused = np.ones(len(targets), np.uint8)
        size = (tile.width, tile.height)
        function(file.handle, streams.head, streams.stored_as_rgb, size, rows, tuple(memory), refused)
        decoded: NDArray[np.bool_] = refused == 0
        return decoded

    return decode


def same_pixels(
    decode: DecodeTiles, columns: int, tiles: Sequence[int], read: Callable[[int], NDArray[np.uint8]]
) -> bool:
    """Whether the tiles of these numbers, which `read` gives one by one, come out alike to the bit.

    Those that either refuses say nothing: a refused tile is left to `read` in any case.
    """
    for index in tiles:
        try:
            expected = read(index)
        except Exception:  # decoders raise what they like
            continue
        found = np.empty_like(expected)
        row, column = divmod(index, columns)
        if decode([TileTarget(column, row, found, found)])[0] and not np.array_equal(found, expected):
            return False
    return True


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])
