"""Every format that OpenSlide reads, through openslide-python.

A handle on which one read failed refuses all later ones, so each thread has a handle of its own, and a
handle that failed is thrown away.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_pipeline.base.errors import RegionReadError, SlideError, SlideOpenError
from wsi_pipeline.base.geometry import Box, Size
from wsi_pipeline.slides.readers.formats import slide_files
from wsi_pipeline.slides.readers.source import BYTES_DID_NOT_COME, check_readable, with_retries
from wsi_pipeline.slides.readers.tile_cache import TileDecoder

log = logging.getLogger(__name__)

# What OpenSlide raises at files of none of its formats.
UNKNOWN = openslide.OpenSlideUnsupportedFormatError
# Where a format names no storage tiles (MRXS, for one), regions of this size are read and cached instead.
UNTILED_PX = 512
# OpenSlide decodes a storage tile whole, into four bytes a pixel, and ends the process where there is no room: 268 MB.
MAX_TILE_PX = 8192 * 8192


class OpenSlideReader:
    """Pixels and metadata of one file; safe to read from several threads."""

    def __init__(self, path: Path):
        """Raises SlideOpenError naming the file and OpenSlide's reason, SlideReadError when it cannot be read."""
        self.path = path
        self._local = threading.local()
        self._is_cut_short = False
        self._handles: weakref.WeakSet[openslide.OpenSlide] = weakref.WeakSet()  # of all threads
        self._is_closed = False
        handle = self._handle()
        self.properties: dict[str, str] = dict(handle.properties)
        self.level_sizes = [Size(*size) for size in handle.level_dimensions]
        declared = [self._declared_tile(level) for level in range(len(self.level_sizes))]
        # A strip as wide as the slide, or a one-tile image, would defeat reading by blocks.
        self.tile_sizes = [Size(min(tile.width, 4096), min(tile.height, 4096)) for tile in declared]
        self.level_faults: Mapping[int, str] = {
            level: f"its storage tiles have {tile.width} x {tile.height} pixels, more than {MAX_TILE_PX:,}"
            for level, tile in enumerate(declared)
            if tile.area > MAX_TILE_PX
        }
        """Why a level cannot be used, by its number."""
        self._downsamples = handle.level_downsamples
        self._background = np.array(_background(self.properties), np.float32)
        self.before_reading: Callable[[int, Box], None] = lambda level, box: None
        """Raises RegionReadError where a box of a level had better not be read."""

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Pixels of `box` (level pixels; may lie partly outside) as uint8 [row, column, RGB].

        What the slide does not hold (outside of it, transparent) has the background colour that the file
        names, else white. Raises RegionReadError when anything inside cannot be decoded, SlideReadError when it
        cannot be read.
        """
        self.before_reading(level, box)
        try:
            rgba = self._read_region(self._handle(), level, box)
        except openslide.OpenSlideError:
            rgba = self._read_again(level, box)
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min(initial=255) == 255:
            return np.ascontiguousarray(rgb)
        opacity = alpha.astype(np.float32) / 255
        return (rgb * opacity + self._background * (1 - opacity) + 0.5).astype(np.uint8)

    def close(self) -> None:
        """Close the handles of all threads; no read may be under way. Reading raises SlideError from then on."""
        self._is_closed = True
        for handle in list(self._handles):
            handle.close()
        self._local = threading.local()

    def tile_decoder(self, level: int) -> TileDecoder | None:
        """None: OpenSlide reads boxes; but where it reads between pixels (`read_offset`), tile by tile.

        What it blends there depends on the box: read in boxes, a tile's pixels would depend on its neighbours.
        """
        if float(self._downsamples[level]).is_integer():
            return None
        size, tile = self.level_sizes[level], self.tile_sizes[level]

        def decode(column: int, row: int) -> NDArray[np.uint8]:
            box = Box(column * tile.width, row * tile.height, tile.width, tile.height)
            return self.read(level, box.intersect(Box(0, 0, size.width, size.height)))

        return decode

    def tiles_decoder(self, level: int) -> None:
        """None: OpenSlide decodes no tiles by themselves."""

    def read_offset(self, level: int, box: Box) -> tuple[float, float]:
        """How far right and below of the box (level pixels, under 1) its pixels are really read.

        OpenSlide takes whole level-0 pixels, and divides them by the level's mean downsample. Where that is no
        whole number (sizes were rounded), it reads between pixels, and blends them.
        """
        ds, (x0, y0) = self._downsamples[level], self._location(level, box)
        return x0 / ds - box.x, y0 / ds - box.y

    def _location(self, level: int, box: Box) -> tuple[int, int]:
        ds = self._downsamples[level]
        return round(box.x * ds), round(box.y * ds)

    def _read_region(self, handle: openslide.OpenSlide, level: int, box: Box) -> NDArray[np.uint8]:
        try:
            return np.asarray(handle.read_region(self._location(level, box), level, (box.width, box.height)))
        except openslide.OpenSlideError:
            self._local.handle = None
            raise

    def _read_again(self, level: int, box: Box) -> NDArray[np.uint8]:
        """A box that OpenSlide failed at, on new handles: what failed for a moment is not damaged."""

        def attempt() -> NDArray[np.uint8]:
            try:
                return self._read_region(self._opened(), level, box)
            except openslide.OpenSlideError as error:
                if BYTES_DID_NOT_COME.search(str(error)):
                    self._check_bytes()
                cause = error
            try:
                return self._read_region(self._opened(), level, box)  # what failed may have passed meanwhile
            except openslide.OpenSlideError:
                raise RegionReadError(
                    f"{self.path}: level {level}, pixels ({box.x}, {box.y}) to ({box.right}, {box.bottom}) "
                    f"cannot be decoded: {cause}"
                ) from cause

        return with_retries(self.path, attempt)

    def _check_bytes(self) -> None:
        """Raises OSError where the system cannot read the slide's files.

        OpenSlide says the same of bytes that the system did not give and of a file that was cut short. Once all bytes
        could be read, it is cut short; from then on a look at the files' ends has to do.
        """
        check_readable(slide_files(self.path), whole=not self._is_cut_short)
        self._is_cut_short = True

    def _handle(self) -> openslide.OpenSlide:
        """This thread's own. Raises SlideOpenError and SlideReadError."""
        handle: openslide.OpenSlide | None = getattr(self._local, "handle", None)
        return handle if handle is not None else with_retries(self.path, self._opened)

    def _opened(self) -> openslide.OpenSlide:
        """A new handle for this thread. Raises OSError where the system does not give the file, else SlideOpenError.

        OpenSlide does not tell a file that it could not read from one of no slide format.
        """
        if self._is_closed:
            raise SlideError(f"{self.path}: read after it was closed; open the slide again")
        try:
            handle = openslide.OpenSlide(self.path)
        except (openslide.OpenSlideError, OSError):
            check_readable(slide_files(self.path))
            try:
                handle = openslide.OpenSlide(self.path)  # what failed may have passed meanwhile
            except UNKNOWN as error:
                raise SlideOpenError(
                    f"{self.path}: no slide format that OpenSlide {openslide.__library_version__} knows "
                    f"({self.path.stat().st_size:,} bytes); is it cut short, or no slide?"
                ) from error
            except openslide.OpenSlideError as error:
                raise SlideOpenError(f"{self.path}: cannot be opened as a slide: {error}") from error
        self._local.handle = handle
        self._handles.add(handle)
        return handle

    def _declared_tile(self, level: int) -> Size:
        width = int(self.properties.get(f"openslide.level[{level}].tile-width", UNTILED_PX))
        height = int(self.properties.get(f"openslide.level[{level}].tile-height", UNTILED_PX))
        return Size(width, height)


def _background(properties: dict[str, str]) -> tuple[int, int, int]:
    colour = properties.get("openslide.background-color", "FFFFFF")
    return int(colour[0:2], 16), int(colour[2:4], 16), int(colour[4:6], 16)


def associated_names(path: Path) -> list[str]:
    """Names of the pictures beside a slide's pixels ("macro", "label"); none where OpenSlide does not read it."""
    try:
        with openslide.OpenSlide(path) as handle:
            return sorted(handle.associated_images)
    except (openslide.OpenSlideError, OSError):
        return []


def read_associated(path: Path, name: str) -> NDArray[np.uint8]:
    """Such a picture, uint8 RGB [row, column, 3]. Raises SlideError where it cannot be read."""
    try:
        with openslide.OpenSlide(path) as handle:
            return np.asarray(handle.associated_images[name].convert("RGB"))
    except (openslide.OpenSlideError, OSError, KeyError) as error:
        raise SlideError(f"{path}: its picture '{name}' cannot be read ({error})") from error
