"""Tiled TIFF and SVS, their storage tiles decoded directly: several times faster than OpenSlide's regions.

OpenSlide says which levels there are, and stays the measure: before a level's tiles are first decoded directly,
some of them must equal what OpenSlide gives. Where they do not, the file is read through OpenSlide. Missing tiles are
always left to it; those that are stored and that the direct decoder refuses are damaged, whatever OpenSlide, which
gives what it can, would make of them.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import RegionReadError, SlideOpenError, SlideReadError
from wsi_pipeline.base.geometry import Box, Size
from wsi_pipeline.slides.readers.detect import TIFF_MAGIC
from wsi_pipeline.slides.readers.jpeg_tiles import DecodeTiles, decoder_of, log_decoder, same_pixels
from wsi_pipeline.slides.readers.openslide import UNKNOWN, OpenSlideReader
from wsi_pipeline.slides.readers.source import SourceFile, with_retries
from wsi_pipeline.slides.readers.tiff_pages import faults_of_levels
from wsi_pipeline.slides.readers.tiff_tiles import TilesOfPage, tiles_of
from wsi_pipeline.slides.readers.tile_cache import TileDecoder

if TYPE_CHECKING:
    from tifffile import TiffPage

log = logging.getLogger(__name__)

# Both decode JPEG by libjpeg-turbo to the same bits. Aperio's JPEG 2000 with YCbCr (33003) is turned to RGB by two
# programs that round differently, and where OpenSlide reads between pixels its weights are rounded too.
TOLERANCE = 1
BETWEEN_PIXELS_TOLERANCE = 3
# Where the first few tiles of a level cannot be compared since they are damaged, so many others are tried.
MORE_TILES = 32
# No slide has more; a file of 60,000 takes seconds, and means harm.
MAX_PAGES = 1000


def open_reader(path: Path) -> "OpenSlideReader | TiffReader":
    """The fastest reader of a slide file. Raises SlideOpenError and SlideReadError as OpenSlideReader does."""
    file = SourceFile(path)
    is_tiff = file.read(0, min(4, file.size)) in TIFF_MAGIC
    try:
        reader = OpenSlideReader(path)
    except SlideOpenError as error:
        if is_tiff and isinstance(error.__cause__, UNKNOWN) and (found := _described(path)):
            raise SlideOpenError(
                f"{path}: {found}, which OpenSlide does not read; write it as a tiled pyramid of 8-bit RGB"
            ) from error
        raise
    return TiffReader(reader) if is_tiff and hasattr(os, "pread") else reader


def _described(path: Path) -> str | None:
    """What kind of TIFF it is; None where tifffile cannot read it either."""
    from tifffile import TiffFile, TiffPage

    try:
        with TiffFile(path) as tif:
            page, order = tif.pages.first, ", big-endian" if tif.byteorder == ">" else ""
            if not isinstance(page, TiffPage):
                return None
            kind = "tiles" if page.is_tiled else "strips"
            return f"a TIFF{order}, its first page of {page.imagewidth} x {page.imagelength} pixels in {kind}"
    except Exception as error:  # whatever tifffile makes of a file that is none
        log.debug("%s: %s", path, error)
        return None


class TiffReader:
    """Pixels of one TIFF, by storage tile where that proves right, else by region through OpenSlide.

    Safe to use from several threads.
    """

    def __init__(self, openslide: OpenSlideReader):
        """Raises SlideReadError when the file's tables of tiles cannot be read."""
        self.path = openslide.path
        self.properties = openslide.properties
        self.level_sizes = openslide.level_sizes
        self.tile_sizes = openslide.tile_sizes
        self.level_faults: Mapping[int, str] = openslide.level_faults
        self._openslide = openslide
        self._lock = threading.Lock()
        self._pages: dict[Size, TilesOfPage] = {}
        self._file = SourceFile(self.path)
        self._decoders: dict[int, TileDecoder | None] = {}
        self._many: dict[int, DecodeTiles | None] = {}
        self._stepped_aside = False
        self._logged = False
        with_retries(self.path, self._read_pages)
        openslide.before_reading = self._check_counts

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Pixels of the box through OpenSlide; see OpenSlideReader.read."""
        return self._openslide.read(level, box)

    def close(self) -> None:
        """Close the file; no read may be under way. Reading raises SlideError from then on."""
        self._openslide.close()
        self._file.close()

    def tile_decoder(self, level: int) -> TileDecoder | None:
        """What decodes one storage tile of the level, once it has proved itself, else as OpenSlide's.

        The first call for a level reads a handful of tiles twice.
        """
        with self._lock:
            if level not in self._decoders and not self._stepped_aside:
                self._decoders[level] = self._proved(level)
            proved = None if self._stepped_aside else self._decoders[level]
            return proved or self._openslide.tile_decoder(level)

    def tiles_decoder(self, level: int) -> DecodeTiles | None:
        """What decodes many storage tiles of the level in one call, once the level has proved itself; else None."""
        with self._lock:
            return None if self._stepped_aside else self._many.get(level)

    def _in_one_call(self, page: TilesOfPage) -> DecodeTiles | None:
        """The page's tiles many at a time, if some come out as they do one by one."""
        if page.streams is None:
            return None
        log_decoder()
        many = decoder_of(
            self._file, page.streams, page.tile_size, page.columns, page.offsets, page.byte_counts
        )
        if many is None or same_pixels(
            many, page.columns, _telling_tiles(page), lambda index: page.read(self._file, index)
        ):
            return many
        log.warning(
            "%s: JPEG tiles are decoded one by one: the libjpeg that our C function was built with gives other pixels "
            "than simplejpeg's; build it with libjpeg-turbo",
            self.path,
        )
        return None

    def _proved(self, level: int) -> TileDecoder | None:
        page = self._pages.get(self.level_sizes[level])
        if page is None or page.tile_size != self.tile_sizes[level]:
            self._tell(logging.INFO, f"level {level} is no page of 8-bit RGB tiles")
            return None
        if reason := disagreement(page, self._file, self._openslide, level):
            self._stepped_aside = True
            self._tell(logging.WARNING, f"level {level}: {reason}")
            return None

        self._many[level] = self._in_one_call(page)

        def decode(column: int, row: int) -> NDArray[np.uint8]:
            index = row * page.columns + column
            if not page.byte_counts[index]:
                return self._openslide.read(level, page.box(index))
            try:
                return page.read(self._file, index)
            except (SlideReadError, MemoryError):
                raise
            except Exception as error:  # decoders raise what they like at damaged bytes
                log.debug("%s: level %d, tile (%d, %d): %s", self.path, level, column, row, error)
                raise RegionReadError(
                    f"{self.path}: level {level}, storage tile ({column}, {row}) cannot be decoded: {error}"
                ) from error

        return decode

    def _read_pages(self) -> None:
        """Find the storage tiles, and what is wrong with the pages. Raises OSError where the system cannot read it."""
        from tifffile import TiffFile, TiffPage

        try:
            with TiffFile(self.path) as tif:
                pages = [page for page in islice(tif.pages, MAX_PAGES) if isinstance(page, TiffPage)]
                self.level_faults = {**self._openslide.level_faults, **self._faults(pages)}
                for page in pages:
                    if tiles := tiles_of(page):
                        self._pages.setdefault(tiles.size, tiles)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever tifffile makes of a file that OpenSlide can open
            self._stepped_aside = True
            self._tell(logging.WARNING, f"tifffile cannot read it: {error}")

    def _check_counts(self, level: int, box: Box) -> None:
        if page := self._pages.get(self.level_sizes[level]):
            page.check_counts(box)

    def _faults(self, pages: "Sequence[TiffPage]") -> dict[int, str]:
        return faults_of_levels(pages, self.level_sizes, self.properties.get("openslide.vendor", ""))

    def _tell(self, how_loud: int, reason: str) -> None:
        """Say it once a file: a warning where the file is odd, not where it is of another kind."""
        if not self._logged:
            log.log(how_loud, "%s is read through OpenSlide, which is slower: %s", self.path, reason)
        self._logged = True


def disagreement(page: TilesOfPage, file: SourceFile, openslide: OpenSlideReader, level: int) -> str | None:
    """How some of the page's tiles differ from what OpenSlide reads of the level; None where they do not.

    Tiles that one of the two cannot decode say nothing; if that is all of them, that is the reason. But where those
    that were looked at are known to be damaged, OpenSlide is no way out, and there is no disagreement.
    """
    outcomes = [_compare(page, file, openslide, level, index) for index in _telling_tiles(page)]
    if not any(outcome.compared for outcome in outcomes) and any(outcome.is_damaged for outcome in outcomes):
        present = np.flatnonzero(page.byte_counts)
        for index in present[:: max(1, len(present) // MORE_TILES)]:
            outcomes.append(_compare(page, file, openslide, level, int(index)))
            if outcomes[-1].compared:
                break
    for outcome in outcomes:
        if outcome.compared and outcome.text:
            return outcome.text
    if any(outcome.compared or outcome.is_damaged for outcome in outcomes):
        return None
    return "no storage tile could be compared" + "".join(f": {outcome.text}" for outcome in outcomes[-1:])


@dataclass(frozen=True)
class _Outcome:
    """Of one tile: whether it could be compared, and how it differs or why it could not; is it known to be damaged."""

    compared: bool
    text: str = ""
    is_damaged: bool = False


def _compare(
    page: TilesOfPage, file: SourceFile, openslide: OpenSlideReader, level: int, index: int
) -> _Outcome:
    box = page.box(index)
    try:
        ours = page.read(file, index)
    except (SlideReadError, MemoryError):
        raise
    except Exception as error:  # decoders raise what they like
        return _Outcome(False, str(error), isinstance(error, RegionReadError))
    try:
        theirs = openslide.read(level, box)
    except RegionReadError as error:
        return _Outcome(False, str(error))
    off = _difference(ours, theirs, openslide.read_offset(level, box))
    where = f"the storage tile at ({box.x}, {box.y}) decodes to other pixels, by up to {off} of 255"
    return _Outcome(True, where if off else "")


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
