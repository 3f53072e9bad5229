"""Tiles of slides, decoded on threads into one bounded cache over all slides, of which few are open at a time."""

import glob
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import SlideError, SlideOpenError
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.slides.slide import PlaneReader, Slide, open_slide
from wsi_pipeline.viewer.deep_zoom import DeepZoom

OPEN_SLIDES = 16
CACHE_BYTES = 256 * 2**20
JPEG_QUALITY = 85
# Of a level, at most so many pixels are decoded for one tile: a slide without a pyramid has no tile of the whole.
MOST_PIXELS = 2**27


class BoundedCache:
    """Bytes by key, the least recently used forgotten beyond so many bytes. From any thread."""

    def __init__(self, most_bytes: int):
        self._most = most_bytes
        self._kept: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making: dict[tuple[object, ...], threading.Lock] = {}

    @property
    def used_bytes(self) -> int:
        """What it holds."""
        return self._bytes

    def get(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """The bytes of that key, made by one of those who ask at a time."""
        if (found := self._find(key)) is not None:
            return found
        with self._lock:
            gate = self._making.setdefault(key, threading.Lock())
        try:
            with gate:
                if (found := self._find(key)) is not None:
                    return found
                made = make()
                self._keep(key, made)
                return made
        finally:
            with self._lock:
                self._making.pop(key, None)

    def _find(self, key: tuple[object, ...]) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: tuple[object, ...], data: bytes) -> None:
        with self._lock:
            self._bytes += len(data) - len(self._kept.pop(key, b""))
            self._kept[key] = data
            while self._bytes > self._most and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._bytes -= len(old)


class OpenSlides:
    """Slides that are open, at most OPEN_SLIDES; those that wait longest are closed."""

    def __init__(self, most: int = OPEN_SLIDES):
        self._most = most
        self._open: OrderedDict[tuple[Path, float | None], Slide] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, mpp: float | None) -> Slide:
        """The slide at the path; `mpp` where the run was told its scale. Raises SlideError."""
        with self._lock:
            key = (path, mpp)
            if key not in self._open:
                self._open[key] = open_slide(path, mpp=mpp)
            self._open.move_to_end(key)
            while len(self._open) > self._most:
                self._open.popitem(last=False)[1].close()
            return self._open[key]

    def forget(self, path: Path) -> None:
        """Close it: after a failed read, say, so that the next one opens it anew."""
        with self._lock:
            for key in [key for key in self._open if key[0] == path]:
                self._open.pop(key).close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def slide_tile(slide: Slide, zoom: DeepZoom, level: int, box: Box) -> bytes:
    """A tile as a JPEG: white where there is no slide, and where the slide cannot be read.

    Raises SlideError where the whole level would have to be decoded for it.
    """
    return jpeg_bytes(read_box(slide, box, zoom.plane(level)))


def read_box(slide: Slide, box: Box, plane: Plane) -> NDArray[np.uint8]:
    """uint8 RGB [row, column, 3] of a box of the plane, from the coarsest level that is as fine. Raises SlideError."""
    reader = PlaneReader(slide, plane, slide.level_for(plane, least_reduction=1.0))
    needed = reader.source_size(box)
    if needed.area > MOST_PIXELS:
        raise SlideError(
            f"{slide.path}: for this tile {needed.width:,} x {needed.height:,} pixels would have to be decoded, at "
            f"most {MOST_PIXELS:,} are: the slide has no level that is coarse enough"
        )
    return reader(box).rgb


def jpeg_bytes(rgb: NDArray[np.uint8]) -> bytes:
    """The picture as a JPEG."""
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, format="JPEG", quality=JPEG_QUALITY)
    return content.getvalue()


def find_slide(recorded: str, folders: list[Path]) -> Path:
    """Where the slide of a run lies: in one of the folders, or, where none is given, where the run read it.

    Raises SlideOpenError where it is not there, or would be outside of the folders.
    """
    path = Path(recorded)
    if not folders:
        if not path.exists():
            raise SlideOpenError(
                f"{path} is not there any more: the pictures are shown (--slides DIR where it lies)"
            )
        return path
    for folder in folders:
        for candidate in (path, folder / path.name):
            resolved = candidate.resolve()
            if resolved.is_relative_to(folder.resolve()) and resolved.exists():
                return candidate
        found = sorted(folder.rglob(glob.escape(path.name)))
        for candidate in found:
            if candidate.resolve().is_relative_to(folder.resolve()):
                return candidate
    listed = ", ".join(map(str, folders))
    raise SlideOpenError(f"{path.name} was not found in {listed}: the pictures are shown")
