"""Tiled TIFF and SVS, their storage tiles decoded directly: several times faster than OpenSlide's regions.

OpenSlide says which levels there are, and stays the measure: before a level's tiles are first decoded directly,
some of them must equal what OpenSlide gives. Where they do not, the file is read through OpenSlide. Missing tiles,
and those that the direct decoder refuses, are always left to it.
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Box, Size
from wsi_pipeline.slides.readers.openslide import OpenSlideReader
from wsi_pipeline.slides.readers.tiff_tiles import TilesOfPage, tiles_of
from wsi_pipeline.slides.readers.tile_cache import TileDecoder

log = logging.getLogger(__name__)

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Both decode JPEG by libjpeg-turbo to the same bits. Aperio's JPEG 2000 with YCbCr (33003) is turned to RGB by two
# programs that round differently, and where OpenSlide reads between pixels its weights are rounded too.
TOLERANCE = 1
BETWEEN_PIXELS_TOLERANCE = 3


def open_reader(path: Path) -> "OpenSlideReader | TiffReader":
    """The fastest reader of a slide file. Raises SlideOpenError as OpenSlideReader does."""
    reader = OpenSlideReader(path)
    with path.open("rb") as file:
        is_tiff = file.read(4) in TIFF_MAGIC
    return TiffReader(reader) if is_tiff and hasattr(os, "pread") else reader


class TiffReader:
    """Pixels of one TIFF, by storage tile where that proves right, else by region through OpenSlide.

    Safe to use from several threads.
    """

    def __init__(self, openslide: OpenSlideReader):
        self.path = openslide.path
        self.properties = openslide.properties
        self.level_sizes = openslide.level_sizes
        self.tile_sizes = openslide.tile_sizes
        self._openslide = openslide
        self._lock = threading.Lock()
        self._pages: dict[Size, TilesOfPage] | None = None
        self._file = -1
        self._close_file: Callable[[], object] = lambda: None
        self._decoders: dict[int, TileDecoder | None] = {}
        self._stepped_aside = False
        self._logged = False

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Pixels of the box through OpenSlide; see OpenSlideReader.read."""
        return self._openslide.read(level, box)

    def close(self) -> None:
        """Close the file; no read may be under way. Reading raises SlideError from then on."""
        self._openslide.close()
        self._close_file()
        self._file = -1

    def tile_decoder(self, level: int) -> TileDecoder | None:
        """What decodes one storage tile of the level, once it has proved itself, else as OpenSlide's.

        The first call for a level reads a handful of tiles twice.
        """
        with self._lock:
            if level not in self._decoders and not self._stepped_aside:
                self._decoders[level] = self._proved(level)
            proved = None if self._stepped_aside else self._decoders[level]
            return proved or self._openslide.tile_decoder(level)

    def _proved(self, level: int) -> TileDecoder | None:
        if self._pages is None:
            try:
                self._pages = self._open()
            except Exception as error:  # whatever tifffile makes of a file that OpenSlide can open
                self._stepped_aside = True
                self._tell(logging.WARNING, f"tifffile cannot read it: {error}")
                return None
        page = self._pages.get(self.level_sizes[level])
        if page is None or page.tile_size != self.tile_sizes[level]:
            self._tell(logging.INFO, f"level {level} is no page of 8-bit RGB tiles")
            return None
        if reason := disagreement(page, self._file, self._openslide, level):
            self._stepped_aside = True
            self._tell(logging.WARNING, f"level {level}: {reason}")
            return None

        def decode(column: int, row: int) -> NDArray[np.uint8]:
            index = row * page.columns + column
            if page.byte_counts[index]:
                try:
                    return page.read(self._file, index)
                except Exception as error:  # decoders raise what they like at damaged bytes
                    log.debug("%s: level %d, tile (%d, %d): %s", self.path, level, column, row, error)
            return self._openslide.read(level, page.box(index))

        return decode

    def _open(self) -> dict[Size, TilesOfPage]:
        from tifffile import TiffFile, TiffPage

        pages: dict[Size, TilesOfPage] = {}
        with TiffFile(self.path) as tif:
            for page in tif.pages:
                if isinstance(page, TiffPage) and (tiles := tiles_of(page)):
                    pages.setdefault(tiles.size, tiles)
        self._file = os.open(self.path, os.O_RDONLY)
        self._close_file = weakref.finalize(self, os.close, self._file)
        return pages

    def _tell(self, how_loud: int, reason: str) -> None:
        """Say it once a file: a warning where the file is odd, not where it is of another kind."""
        if not self._logged:
            log.log(how_loud, "%s is read through OpenSlide, which is slower: %s", self.path, reason)
        self._logged = True


def disagreement(page: TilesOfPage, file: int, openslide: OpenSlideReader, level: int) -> str | None:
    """How some of the page's tiles differ from what OpenSlide reads of the level; None where they do not.

    Tiles that one of the two cannot decode say nothing; if that is all of them, that is the reason.
    """
    compared, refused = 0, ""
    for index in _telling_tiles(page):
        box = page.box(index)
        try:
            theirs = openslide.read(level, box)
            ours = page.read(file, index)
        except Exception as error:  # decoders raise what they like
            refused = f": {error}"
            continue
        off = _difference(ours, theirs, openslide.read_offset(level, box))
        if off:
            return f"the storage tile at ({box.x}, {box.y}) decodes to other pixels, by up to {off} of 255"
        compared += 1
    return None if compared else f"no storage tile could be compared{refused}"


def _telling_tiles(page: TilesOfPage) -> Sequence[int]:
    """The first tile, that of the most bytes (where all have as many, the middle one), the last of its row and column.

    Few, as OpenSlide takes up to 30 ms for one.
    """
    present = np.flatnonzero(page.byte_counts)
    if not len(present):
        return ()
    counts = page.byte_counts[present]
    fullest = present[len(present) // 2 if counts.min() == counts.max() else int(counts.argmax())]
    row, column = divmod(fullest, page.columns)
    of_row = present[present // page.columns == row]
    of_column = present[present % page.columns == column]
    return list(dict.fromkeys(map(int, (present[0], fullest, of_row[-1], of_column[-1]))))


def _difference(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], offset: tuple[float, float]) -> int:
    """By how much two tiles differ at most; 0 within the tolerance. `theirs` was read `offset` pixels further."""
    if offset == (0, 0):
        most = int(np.abs(ours.astype(np.int16) - theirs).max(initial=0))
        return most if most > TOLERANCE else 0
    expected = _between(_between(ours.astype(np.float32), offset[1], 0), offset[0], 1)
    # At the rim the neighbouring tiles' pixels come in.
    most = int(np.abs(expected - theirs)[1:-1, 1:-1].max(initial=0))
    return most if most > BETWEEN_PIXELS_TOLERANCE else 0


def _between(pixels: NDArray[np.float32], offset: float, axis: int) -> NDArray[np.float32]:
    """The pixels linearly between, `offset` further along the axis; wrong where the array ends."""
    neighbour = np.roll(pixels, -1 if offset > 0 else 1, axis)
    return pixels + (neighbour - pixels) * np.float32(abs(offset))
