"""Tiles of slides, decoded on threads into one bounded cache over all slides, of which few are open at a time."""

import glob
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import SlideError, SlideOpenError
from wsi_pipeline.base.geometry import Box
from wsi_pipeline.slides.slide import PlaneReader, Slide, open_slide
from wsi_pipeline.viewer.deep_zoom import DeepZoom

# Each takes some 10 MB and a file or two.
OPEN_SLIDES = 32
CACHE_BYTES = 256 * 2**20
JPEG_QUALITY = 85
# Of tiles whose pixels are so many of the level long, or more.
COMPOSED_FROM = 8
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


@dataclass(eq=False)
class _Entry:
    """A slide that is open, or about to be."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    slide: Slide | None = None
    users: int = 0
    is_left: bool = False
    """Nobody finds it any more: the last of its users closes it."""


class OpenSlides:
    """Slides that are open, at most OPEN_SLIDES beside those in use; those that wait longest are closed.

    Each is opened under a lock of its own: one on a mount that does not answer keeps nobody from the others.
    """

    def __init__(self, most: int = OPEN_SLIDES):
        self._most = most
        self._open: OrderedDict[tuple[Path, float | None], _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, path: Path, mpp: float | None) -> Iterator[Slide]:
        """The slide at the path, which stays open in the block; `mpp` where the run was told its scale.

        Raises SlideError.
        """
        key = (path, mpp)
        with self._lock:
            entry = self._open.setdefault(key, _Entry())
            self._open.move_to_end(key)
            entry.users += 1
        try:
            with entry.lock:
                if entry.slide is None:
                    entry.slide = open_slide(path, mpp=mpp)
            yield entry.slide
        finally:
            with self._lock:
                entry.users -= 1
                going = self._beyond() if not entry.is_left else [entry] * (entry.users == 0)
            _close(going)

    def forget(self, path: Path) -> None:
        """Let it go: after a failed read, say, so that the next one opens it anew."""
        with self._lock:
            going = self._leave([key for key in self._open if key[0] == path])
        _close(going)

    def close(self) -> None:
        """Close all that are not in use; the others, when they are not any more."""
        with self._lock:
            going = self._leave(list(self._open))
        _close(going)

    def _beyond(self) -> list[_Entry]:
        """Entries taken out that nobody uses: beyond those that may stay, and such as could not be opened."""
        idle = [key for key, entry in self._open.items() if entry.users == 0]
        unopened = [key for key in idle if self._open[key].slide is None]
        return self._leave(list(dict.fromkeys(unopened + idle[: max(0, len(self._open) - self._most)])))

    def _leave(self, keys: list[tuple[Path, float | None]]) -> list[_Entry]:
        """Those of the entries, taken out, that nobody uses. Held: the lock."""
        entries = [self._open.pop(key) for key in keys]
        for entry in entries:
            entry.is_left = True
        return [entry for entry in entries if entry.users == 0]


def _close(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.slide is not None:
            entry.slide.close()


def slide_tile(
    slide: Slide, zoom: DeepZoom, level: int, column: int, row: int, tile: Callable[[int, int, int], bytes]
) -> bytes:
    """A tile that there is as a JPEG: white where there is no slide, and where the slide cannot be read.

    One for which much of the slide's level would have to be decoded is made of finer tiles, which `tile` gives by
    level, column and row. Raises SlideError where it would be so much that memory should not hold it.
    """
    box = zoom.box(level, column, row)
    assert box is not None
    plane = zoom.plane(level)
    reader = PlaneReader(slide, plane, slide.level_for(plane, least_reduction=1.0))
    needed = reader.source_size(box)
    if needed.area > MOST_PIXELS:
        raise SlideError(
            f"{slide.path}: for this tile {needed.width:,} x {needed.height:,} pixels would have to be decoded, at "
            f"most {MOST_PIXELS:,} are: the slide has no level that is coarse enough"
        )
    if min(reader.step) < COMPOSED_FROM or level + 1 >= zoom.levels:
        return jpeg_bytes(read_box(reader, box))
    side, twice = zoom.tile_px, Image.new("RGB", (2 * box.width, 2 * box.height), "white")
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        at = 2 * column + right, 2 * row + down
        if zoom.box(level + 1, *at) is not None:
            with Image.open(io.BytesIO(tile(level + 1, *at))) as image:
                twice.paste(image, (right * side, down * side))
    return jpeg_bytes(np.asarray(twice.reduce(2)))


def read_box(reader: PlaneReader, box: Box) -> NDArray[np.uint8]:
    """uint8 RGB [row, column, 3] of a box of the reader's plane; white where it cannot be read."""
    if (factor := _whole_factor(reader.step)) is None:
        return reader(box).rgb
    # What most tiles are: so many pixels of the level to one. By the same means as `resample`, five times as fast.
    needed = reader.source_size(box)
    source = reader.source(box, np.empty(3 * needed.area, np.uint8))
    if not all(float(value).is_integer() for value in source.start):
        return reader(box).rgb
    x, y = map(round, source.start)
    part = source.rgb[y : y + factor * box.height, x : x + factor * box.width]
    rgb = np.asarray(Image.fromarray(part).reduce(factor)).copy()
    if source.unreadable is not None:
        rgb[source.unreadable] = 255
    return rgb


def _whole_factor(step: tuple[float, float]) -> int | None:
    """How many pixels of a level one of the plane is, where it is the same whole number along x and y."""
    factor = round(step[0])
    return factor if factor > 1 and step == (factor, factor) else None


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
