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

# Of what the C functions take, the same number as in _jpeg_tiles.c: one that was built before may lie there still.
INTERFACE = 2
if _jpeg_tiles is not None and getattr(_jpeg_tiles, "INTERFACE", 1) != INTERFACE:
    _jpeg_tiles = None
    WHY_NOT = "it was built from the source of another version"

log = logging.getLogger(__name__)

PLACES = ("column", "row", "target", "start", "pitch", "x", "y", "width", "height")
"""What says of a tile which it is and where its pixels go, int64: its column and row; the number of the memory, the
byte of it that the first pixel wanted goes to, and the bytes of a row there; the first column and row of the tile that
is wanted, and how many. The C function takes the tile's offset and bytes in the file instead of column and row."""

COPIED = ("source", "from", "source_pitch", "to", "pitch", "width", "height")
"""What the C function that copies rectangles is given of each, int64; all but the number of the source in bytes."""


@dataclass(frozen=True)
class JpegStreams:
    """What a page's JPEG tiles have in common."""

    head: bytes
    """Of every whole stream: the start, the page's tables, the colours it means; a tile's own start is dropped."""

    stored_as_rgb: bool
    """A tile's JFIF segment, which would mean YCbCr, is dropped too."""


@dataclass(frozen=True, eq=False)
class TileTargets:
    """Tiles of one level, and where pixels of them go."""

    places: NDArray[np.int64]
    """[n, 9], as PLACES says."""

    memory: Sequence[NDArray[np.uint8]]
    """What they go to, each [rows, columns, 3] and contiguous."""

    @classmethod
    def whole(cls, tiles: Sequence[tuple[int, int]], memory: Sequence[NDArray[np.uint8]]) -> "TileTargets":
        """The tiles of these columns and rows, each from its own first pixel on, as much as its memory holds."""
        places = np.zeros((len(tiles), len(PLACES)), np.int64)
        places[:, :2] = np.array(tiles).reshape(-1, 2)
        places[:, 2] = np.arange(len(tiles))
        places[:, 7:] = [(rgb.shape[1], rgb.shape[0]) for rgb in memory]
        places[:, 4] = places[:, 7] * 3
        return cls(places, memory)


DecodeTiles = Callable[[TileTargets, int], NDArray[np.bool_]]
"""Tiles of one level decoded in one call, each into its memory, by so many threads: bool [n], False where a tile could
not be."""


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

    size = (tile.width, tile.height)

    def decode(targets: TileTargets, threads: int) -> NDArray[np.bool_]:
        rows = targets.places.copy()
        index = rows[:, 1] * columns + rows[:, 0]
        rows[:, 0], rows[:, 1] = offsets[index], byte_counts[index]
        refused = np.ones(len(rows), np.uint8)
        function(
            file.handle,
            streams.head,
            streams.stored_as_rgb,
            size,
            rows,
            tuple(targets.memory),
            refused,
            threads,
        )
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
        if decode(TileTargets.whole([(column, row)], [found]), 1)[0] and not np.array_equal(found, expected):
            return False
    return True


def copy_rectangles(
    rectangles: NDArray[np.int64], sources: Sequence[NDArray[np.uint8]], target: NDArray[np.uint8]
) -> None:
    """Copy rectangles, [n, 7] as COPIED says, out of contiguous sources into a contiguous target.

    Without Python's lock, by the C function, which must be there.
    """
    assert _jpeg_tiles is not None
    _jpeg_tiles.copy_rectangles(rectangles, tuple(sources), target)
