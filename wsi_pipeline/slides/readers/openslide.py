"""Every format that OpenSlide reads, through openslide-python.

A handle on which one read failed refuses all later ones, so each thread has a handle of its own, and a
handle that failed is thrown away.
"""

import logging
import threading
import weakref
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_pipeline.base.errors import RegionReadError, SlideError, SlideOpenError
from wsi_pipeline.base.geometry import Box, Size
from wsi_pipeline.slides.readers.tile_cache import TileDecoder

log = logging.getLogger(__name__)

# Where a format names no storage tiles (MRXS, for one), regions of this size are read and cached instead.
UNTILED_PX = 512


class OpenSlideReader:
    """Pixels and metadata of one file; safe to read from several threads."""

    def __init__(self, path: Path):
        """Raises SlideOpenError naming the file and OpenSlide's reason."""
        self.path = path
        self._local = threading.local()
        self._handles: weakref.WeakSet[openslide.OpenSlide] = weakref.WeakSet()  # of all threads
        self._is_closed = False
        handle = self._handle()
        self.properties: dict[str, str] = dict(handle.properties)
        self.level_sizes = [Size(*size) for size in handle.level_dimensions]
        self.tile_sizes = [self._tile_size(level) for level in range(len(self.level_sizes))]
        self._downsamples = handle.level_downsamples
        self._background = np.array(_background(self.properties), np.float32)

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Pixels of `box` (level pixels; may lie partly outside) as uint8 [row, column, RGB].

        What the slide does not hold (outside of it, transparent) has the background colour that the file
        names, else white. Raises RegionReadError when anything inside cannot be decoded.
        """
        location = self._location(level, box)
        try:
            rgba = np.asarray(self._handle().read_region(location, level, (box.width, box.height)))
        except openslide.OpenSlideError as error:
            self._local.handle = None
            raise RegionReadError(
                f"{self.path}: level {level}, pixels ({box.x}, {box.y}) to ({box.right}, {box.bottom}) "
                f"cannot be decoded: {error}"
            ) from error
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

    def _handle(self) -> openslide.OpenSlide:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            if self._is_closed:
                raise SlideError(f"{self.path}: read after it was closed; open the slide again")
            try:
                handle = openslide.OpenSlide(self.path)
            except openslide.OpenSlideUnsupportedFormatError as error:
                raise SlideOpenError(
                    f"{self.path}: no slide format that OpenSlide {openslide.__library_version__} knows "
                    f"({self.path.stat().st_size:,} bytes); is it cut short, or no slide?"
                ) from error
            except (openslide.OpenSlideError, OSError) as error:
                raise SlideOpenError(f"{self.path}: cannot be opened as a slide: {error}") from error
            self._local.handle = handle
            self._handles.add(handle)
        return handle

    def _tile_size(self, level: int) -> Size:
        width = int(self.properties.get(f"openslide.level[{level}].tile-width", UNTILED_PX))
        height = int(self.properties.get(f"openslide.level[{level}].tile-height", UNTILED_PX))
        # A strip as wide as the slide, or a one-tile image, would defeat reading by blocks.
        return Size(min(width, 4096), min(height, 4096))


def _background(properties: dict[str, str]) -> tuple[int, int, int]:
    colour = properties.get("openslide.background-color", "FFFFFF")
    return int(colour[0:2], 16), int(colour[2:4], 16), int(colour[4:6], 16)
