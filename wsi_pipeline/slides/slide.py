"""One slide, opened: its true scale, its levels, and pixels at any scale.

The planes here: level-0 pixels (`x0`, `size0`); the pixels of one pyramid level; the pixels of the plane
that the caller wants. Every read states its plane.
"""

import errno
import hashlib
import logging
import math
import stat
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import (
    RegionReadError,
    SlideChangedError,
    SlideError,
    SlideOpenError,
    SlideReadError,
)
from wsi_pipeline.base.geometry import Box, Plane, Region, Size, cover
from wsi_pipeline.base.text import counted, printable
from wsi_pipeline.slides.levels import Level, Pyramid, Reader, find_pyramid
from wsi_pipeline.slides.names import fault_of_name, slide_name
from wsi_pipeline.slides.readers.formats import dicom_folder, slide_files
from wsi_pipeline.slides.readers.openslide import associated_names, read_associated
from wsi_pipeline.slides.readers.source import SourceFile, with_retries
from wsi_pipeline.slides.readers.tiff import open_reader
from wsi_pipeline.slides.readers.tile_cache import TiledLevels
from wsi_pipeline.slides.resample import resample
from wsi_pipeline.slides.scale import scale_of

log = logging.getLogger(__name__)

# A level this little off the wanted scale is taken as it is: pyramids round their sizes.
LEVEL_TOLERANCE = 0.005
# A level only a little finer than wanted gives each output pixel a share of one or two of its own, by turns
# sharp and blurred: scores then differ by 0.06 between slides of 0.23 and 0.25 um/px. From twice as fine on,
# the pattern is gone.
LEAST_REDUCTION = 2.0
# For looking at a slide as a whole that pattern does no harm if it is weak; a level four times as fine would
# have sixteen times the pixels to decode.
LEAST_REDUCTION_OF_WHOLE = 1.5
# Thumbnails are read in pieces of this many pixels a side of the level read, so that memory stays flat, on as many
# threads.
PIECE_PX = 4096
# A slide looked at as a whole: 150 x 100 mm at 8 um/px, the default, are 234 million, 0.7 GB.
MAX_WHOLE_PX = 2**28
PIECE_THREADS = 2


@dataclass(frozen=True, eq=False)
class Pixels:
    """What was read: uint8 RGB [row, column, 3], and bool [row, column], True where undecodable; None: nowhere.

    Pixels that could not be decoded are white in `rgb` and mean nothing.
    """

    rgb: NDArray[np.uint8]
    unreadable: NDArray[np.bool_] | None = None

    @property
    def readable(self) -> NDArray[np.bool_]:
        """bool [row, column], False where undecodable."""
        return np.ones(self.rgb.shape[:2], np.bool_) if self.unreadable is None else ~self.unreadable


@dataclass(frozen=True, eq=False)
class SourcePixels:
    """A level's pixels, and how the pixels of a box of another plane come from them: by `resample`."""

    rgb: NDArray[np.uint8]
    """[row, column, 3]."""

    start: tuple[float, float]
    """(x, y) of the box's corner, in pixels of the level from the first one here."""

    step: tuple[float, float]
    """(x, y) pixels of the level that one of the box is long."""

    unreadable: NDArray[np.bool_] | None
    """[row, column] of the box, True where undecodable; None: nowhere."""

    @property
    def is_same(self) -> bool:
        """Whether the box's pixels are the level's, as they are."""
        return self.step == (1, 1) and all(float(value).is_integer() for value in self.start)


@dataclass(frozen=True, eq=False)
class PlaneReader:
    """Reads boxes of one plane of a slide; called from several threads."""

    slide: "Slide"
    plane: Plane
    # The level that is read.
    level: int
    # How far boxes reach over those beside them, in the plane's pixels: what is there is kept for these.
    overlap_px: int = 0

    def __call__(self, box: Box) -> Pixels:
        """The box's pixels, as `Slide.read_readable`."""
        return self.slide._read(box, self.plane, self.level, self.overlap_px)

    def source(self, box: Box, memory: NDArray[np.uint8], threads: int = 1) -> SourcePixels:
        """What they are made of, for those who resample by themselves, in memory of so many bytes, uint8 [n].

        Decoded by so many threads, where the file's tiles can be decoded many in a call.
        """
        return self.slide._source(box, self.plane, self.level, memory, threads)

    @property
    def decodes_many(self) -> bool:
        """Whether many of the level's storage tiles are decoded in a call, by several threads."""
        return self.slide._decodes_many(self.level)

    @property
    def step(self) -> tuple[float, float]:
        """(x, y) pixels of the level read that one of the plane is long."""
        level = self.slide.levels[self.level].plane
        return self.plane.downsample_x / level.downsample_x, self.plane.downsample_y / level.downsample_y

    def source_size(self, box: Box) -> Size:
        """How large that is."""
        found, _ = self.slide._source_box(box, self.plane, self.level)
        return Size(found.width, found.height)


class Slide:
    """An open slide; made by `open_slide`. Safe to read from several threads.

    A context manager, which closes it at the end. Geometry is (x, y), arrays are [row, column].

    Example::

        with wp.open_slide("demo/sample.tiff") as slide:
            plane = slide.plane_at(4.0)  # 4 um per pixel
            size = slide.size_on(plane)
            rgb = slide.read(wp.Box(0, 0, 100, 50), plane)  # uint8 [50, 100, 3]
    """

    def __init__(self, path: Path, reader: Reader, mpp: tuple[float, float], mpp_overridden: bool):
        self.path = path
        self.name = slide_name(path)
        self.mpp = mpp  # um per level-0 pixel, along x and along y
        self.mpp_overridden = mpp_overridden
        self.scale_note = ""  # where it is not the file's own: what it is, and what the file says
        self.properties = reader.properties
        self.size0 = reader.level_sizes[0]
        self.bounds = _bounds(reader.properties, self.size0)  # level-0 box that holds the scanned area
        self._reader = reader
        self._tiles = TiledLevels(reader)
        self._files = _file_states(reader.path)
        self._lock = threading.Lock()
        self._found: Pyramid | None = None
        self._gate = threading.Condition()
        self._reads = 0  # under way, in all threads
        self._is_closed = False

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its files and the handles of all threads, once reads under way have ended.

        Reading raises SlideError from then on; name, scale and sizes stay known. Closing twice does nothing.
        """
        with self._gate:
            self._is_closed = True
            self._gate.wait_for(lambda: self._reads == 0)
        self._reader.close()

    @property
    def levels(self) -> Sequence[Level]:
        """The levels that can be used, finest first; the first call compares their pixels.

        Raises SlideOpenError where level 0 is not the slide.
        """
        return self._pyramid().levels

    @property
    def tile_sizes(self) -> Sequence[Size]:
        """Each such level's storage tiles' size in its pixels."""
        return [self._reader.tile_sizes[level.index] for level in self.levels]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the file is not used, and why."""
        return self._pyramid().warnings

    def _pyramid(self) -> Pyramid:
        with self._lock:
            if self._found is None:
                with self._open():
                    self._found = find_pyramid(self._reader, self.path, self.bounds)
            return self._found

    def plane_at(self, mpp: float) -> Plane:
        """The plane of square pixels of `mpp` um that starts at the scanned area's upper left corner."""
        return Plane(mpp / self.mpp[0], mpp / self.mpp[1], self.bounds.x, self.bounds.y)

    def size_on(self, plane: Plane) -> Size:
        """Pixels of the plane, from its origin, that the scanned area reaches into."""
        box = cover(plane.from_level0(self.bounds))
        return Size(max(1, box.right), max(1, box.bottom))

    def level_for(self, plane: Plane, least_reduction: float = LEAST_REDUCTION, finer: bool = False) -> int:
        """The coarsest level of the plane's own scale, or of at least twice as fine a one, along x and y.

        `least_reduction` is another factor than two. With `finer`, a level of the plane's own scale does not count
        where there is a finer one: it was compressed once more, and nothing averages that away. Where there is none,
        level 0: up-sampled only if even that is coarser than the plane.
        """

        def serves(level: Level) -> bool:
            steps = (
                plane.downsample_x / level.plane.downsample_x,
                plane.downsample_y / level.plane.downsample_y,
            )
            if all(step >= least_reduction for step in steps):
                return True
            is_own = all(step >= least_reduction or abs(step - 1) <= LEVEL_TOLERANCE for step in steps)
            return is_own and not finer

        levels = self.levels
        serving = [i for i, level in enumerate(levels) if serves(level)]
        return max(serving, key=lambda i: levels[i].plane.downsample_x, default=0)

    def read(self, box: Box, plane: Plane) -> NDArray[np.uint8]:
        """uint8 RGB [row, column, 3] of `box`, pixels of `plane`; white outside of the slide.

        From the best level, area-averaged when reduced, linear when enlarged, x and y each for itself.
        Raises RegionReadError when any storage tile it needs cannot be decoded, SlideError once it is closed.
        """
        pixels = self.read_readable(box, plane)
        if pixels.unreadable is not None:
            lost = plane.to_level0(box)
            raise RegionReadError(
                f"{self.path}: storage tiles between level-0 points ({lost.left:.0f}, {lost.top:.0f}) and "
                f"({lost.right:.0f}, {lost.bottom:.0f}) cannot be decoded"
            )
        return pixels.rgb

    def read_readable(self, box: Box, plane: Plane) -> Pixels:
        """The same, but what cannot be decoded is marked instead of raised."""
        return self._read(box, plane, self.level_for(plane))

    def reader(self, plane: Plane, finer: bool = False, overlap_px: int = 0) -> "PlaneReader":
        """What reads boxes of one plane, from the level that `level_for` gives.

        overlap_px: how far the boxes reach over those beside them, where that is known beforehand.
        """
        return PlaneReader(self, plane, self.level_for(plane, finer=finer), overlap_px)

    def _read(self, box: Box, plane: Plane, index: int, overlap_px: int = 0) -> Pixels:
        source = self._source(box, plane, index, overlap_px=overlap_px)
        out = resample(source.rgb, box.width, box.height, source.start, source.step)
        if source.unreadable is not None:
            out[source.unreadable] = 255
        return Pixels(out, source.unreadable)

    def _source_box(self, box: Box, plane: Plane, index: int) -> tuple[Box, Region]:
        """The level's pixels that a box of the plane is made of, and where the box lies among them exactly."""
        level = self.levels[index].plane
        wanted = level.from_level0(plane.to_level0(box))
        source = cover(wanted)
        step_x = plane.downsample_x / level.downsample_x
        step_y = plane.downsample_y / level.downsample_y
        if step_x < 1 or step_y < 1:  # linear weights reach half a pixel further
            source = Box(source.x - 1, source.y - 1, source.width + 2, source.height + 2)
        return source, wanted

    def _source(
        self,
        box: Box,
        plane: Plane,
        index: int,
        memory: NDArray[np.uint8] | None = None,
        threads: int = 1,
        overlap_px: int = 0,
    ) -> "SourcePixels":
        level = self.levels[index].plane
        step_x = plane.downsample_x / level.downsample_x
        step_y = plane.downsample_y / level.downsample_y
        source, wanted = self._source_box(box, plane, index)
        shape = (source.height, source.width, 3)
        out = None if memory is None else memory[: math.prod(shape)].reshape(shape)
        with self._open():
            overlap = math.ceil(overlap_px * max(step_x, step_y))
            rgb, lost = self._tiles.read(self.levels[index].index, source, out, threads, overlap)
        start = (_snap(wanted.left - source.x), _snap(wanted.top - source.y))
        step = (_snap(step_x), _snap(step_y))
        if not lost:
            return SourcePixels(rgb, start, step, None)
        unreadable = np.zeros((box.height, box.width), np.bool_)
        for tile in lost:
            touched = _touched(tile, source, start, (step_x, step_y)).intersect(
                Box(0, 0, box.width, box.height)
            )
            unreadable[touched.y : touched.bottom, touched.x : touched.right] = True
        return SourcePixels(rgb, start, step, unreadable if unreadable.any() else None)

    def _decodes_many(self, index: int) -> bool:
        level = self.levels[index].index
        with self._open():
            return (
                self._reader.tile_decoder(level) is not None and self._reader.tiles_decoder(level) is not None
            )

    @contextmanager
    def _open(self) -> Iterator[None]:
        """`close` waits for the end of the block. Raises SlideError where it came first."""
        with self._gate:
            if self._is_closed:
                raise SlideError(f"{self.path}: read after it was closed; open the slide again")
            self._reads += 1
        try:
            yield
        finally:
            with self._gate:
                self._reads -= 1
                self._gate.notify_all()

    def read_whole(self, plane: Plane) -> Pixels:
        """The scanned area on a low-power plane, read piece by piece.

        Raises SlideError where it would have more pixels than memory should hold.
        """
        size = self.size_on(plane)
        if size.area > MAX_WHOLE_PX:
            mpp = plane.downsample_x * self.mpp[0]
            raise SlideError(
                f"{self.path}: the slide at {mpp:g} um per pixel would have {size.width:,} x {size.height:,} pixels, "
                f"at most {MAX_WHOLE_PX:,} are looked at together; is its scale right ({self.mpp[0]:g} um per pixel: "
                f"it would be {size.width * mpp / 1e3:,.0f} mm wide)? Else choose a coarser tissue.mpp"
            )
        rgb = np.empty((size.height, size.width, 3), np.uint8)
        unreadable = np.zeros((size.height, size.width), np.bool_)
        index = self.level_for(plane, LEAST_REDUCTION_OF_WHOLE)
        boxes = list(_pieces(size, plane, self.levels[index].plane))
        with ThreadPoolExecutor(PIECE_THREADS, thread_name_prefix="reader") as pool:
            for box, part in zip(boxes, pool.map(lambda b: self._read(b, plane, index), boxes), strict=True):
                rgb[box.y : box.bottom, box.x : box.right] = part.rgb
                if part.unreadable is not None:
                    unreadable[box.y : box.bottom, box.x : box.right] = part.unreadable
        return Pixels(rgb, unreadable if unreadable.any() else None)

    @cached_property
    def associated(self) -> list[str]:
        """Names of the pictures that lie beside its pixels, "macro" and "label" say: they may show a patient's name."""
        return associated_names(self._reader.path)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Such a picture, uint8 RGB [row, column, 3]. Raises SlideError."""
        return read_associated(self._reader.path, name)

    def fingerprint(self) -> str:
        """What tells this slide's content from another's: file size, its ends, and OpenSlide's quickhash.

        The quickhash covers the files beside a MRXS or DICOM one; the ends catch a file replaced in place.
        """
        file = SourceFile(self._reader.path)
        digest = hashlib.sha256(f"{file.size} {self.properties.get('openslide.quickhash-1')}".encode())
        end_bytes = min(2**20, file.size)
        digest.update(file.read(0, end_bytes))
        digest.update(file.read(file.size - end_bytes, end_bytes))
        return digest.hexdigest()

    @contextmanager
    def fails_if_changed(self) -> Iterator[None]:
        """Raises SlideChangedError at the end of the block if a file of the slide changed, whatever came of it."""
        try:
            yield
        except (SlideError, OSError):
            self.check_unchanged()
            raise
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raises SlideChangedError if a file of the slide is not what it was when it was opened.

        Called when pixels were read and before what became of them is kept.
        """
        found = _file_states(self._reader.path)
        changed = [path for path, state in self._files.items() if found.get(path) != state]
        if changed:
            raise SlideChangedError(
                f"{changed[0]}: {'changed' if found.get(changed[0]) else 'gone'} since the slide was opened; what was "
                f"mapped until then is kept; put the file back as it was, and the same command goes on, or map "
                f"the new one with --overwrite"
            )


def _file_states(path: Path) -> dict[Path, tuple[int, int, int]]:
    """What shows that a file of the slide was replaced or written to: inode, size and time, by its path."""

    def attempt() -> dict[Path, tuple[int, int, int]]:
        states = {}
        with suppress(FileNotFoundError, NotADirectoryError):  # gone
            for file in slide_files(path):
                found = file.stat()
                states[file] = (found.st_ino, found.st_size, found.st_mtime_ns)
        return states

    return with_retries(path, attempt)


def open_slide(
    path: str | Path,
    mpp: float | None = None,
    name: str | None = None,
    copy: Path | None = None,
    mpp_if_missing: float | None = None,
) -> Slide:
    """The slide at `path`: a file, or a folder of the DICOM files of one slide.

    `mpp`, um per level-0 pixel, overrides what the file says, `mpp_if_missing` is taken where it says nothing; `name`
    overrides the name that it gets from its path. Pixels are
    read from `copy`, where there is one of the slide's file (staging.py); the slide keeps its own path. Raises
    SlideOpenError when OpenSlide cannot open it or it is no slide, SlideReadError when it cannot be read, ScaleError
    when the scale is unknown or implausible: it is never guessed.

    Example::

        with wp.open_slide("demo/sample.tiff") as slide:
            print(slide.name, slide.size0, slide.mpp, [level.size for level in slide.levels])
    """
    path = Path(path)
    file = slide_file(path)
    try:
        reader = open_reader(copy or file)
    except SlideOpenError as error:
        raise SlideOpenError(str(error).replace(str(copy or file), str(file))) from error
    if fault := reader.level_faults.get(0):
        raise SlideOpenError(f"{file}: cannot be read as a slide: {fault}")
    scale = scale_of(file, reader.properties, mpp, mpp_if_missing)
    slide = Slide(file, reader, scale.mpp, scale.is_given)
    slide.name, slide.scale_note = name or slide_name(path), scale.note
    if fault := fault_of_name(slide.name):
        raise SlideOpenError(f"{path}: {fault}; rename it, or give it a name of its own")
    if slide.bounds.is_empty:
        raise SlideOpenError(
            f"{file}: the file says that nothing of it is scanned: it holds no pixels; get it again"
        )
    log.debug("opened %s: %s, %s um/px, %d levels", file, slide.size0, slide.mpp, len(reader.level_sizes))
    return slide


def slide_file(path: Path) -> Path:
    """The file to open: `path` itself, or the first of a folder of one DICOM slide.

    Raises SlideOpenError, and SlideReadError where the system cannot read it.
    """
    try:
        return with_retries(path, lambda: _slide_file(path))
    except SlideReadError as error:
        if isinstance(error.__cause__, PermissionError):
            raise SlideOpenError(f"{path}: permission denied; ask for the right to read it") from error
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ELOOP:
            raise SlideOpenError(f"{path}: a link that leads to itself; give the slide's file") from error
        raise


def _slide_file(path: Path) -> Path:
    try:
        if path.is_dir():
            path = _first_of_dicom(path)
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            target = printable(str(path.readlink()))
            raise SlideOpenError(f"{path}: a link to {target}, which is not there") from error
        raise SlideOpenError(f"{path}: no such file") from error
    if not stat.S_ISREG(found.st_mode):
        raise SlideOpenError(f"{path}: no file but a device, pipe or socket; give the slide's file")
    if found.st_size == 0:
        raise SlideOpenError(f"{path}: the file is empty (0 bytes); copy it again")
    with path.open("rb"):  # what may not be read fails here, by that reason
        return path


def _first_of_dicom(folder: Path) -> Path:
    found = dicom_folder(folder)
    if len(found.series) != 1:
        others = "".join(f", {counted(count, 'file')} of {what}" for what, count in found.others.items())
        what = f"with {len(found.series)} DICOM slides" if found.series else "without .dcm files of a slide"
        raise SlideOpenError(
            f"{folder}: a folder {what}{others}; expected the files of one; give the slide files one by one"
        )
    return next(iter(found.series.values()))[0]


def _bounds(properties: dict[str, str], size0: Size) -> Box:
    """The scanned area: formats with a sparse canvas (MRXS, Leica) name it, others fill theirs."""
    keys = ("x", "y", "width", "height")
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{key}"]) for key in keys)
    except KeyError:
        return Box(0, 0, size0.width, size0.height)
    return Box(x, y, width, height).intersect(Box(0, 0, size0.width, size0.height))


def _snap(value: float) -> float:
    """The whole number that float arithmetic just missed, else the value."""
    return float(round(value)) if abs(value - round(value)) < 1e-6 else value


def _touched(tile: Box, source: Box, start: tuple[float, float], step: tuple[float, float]) -> Box:
    """Output pixels that take anything from the tile (level pixels)."""
    reach = [0 if s >= 1 else 1 for s in step]
    region = Region(
        (tile.x - source.x - start[0] - reach[0]) / step[0],
        (tile.y - source.y - start[1] - reach[1]) / step[1],
        (tile.right - source.x - start[0] + reach[0]) / step[0],
        (tile.bottom - source.y - start[1] + reach[1]) / step[1],
    )
    return cover(region)


def _pieces(size: Size, plane: Plane, level: Plane) -> Iterator[Box]:
    """Boxes that cover the size, each of at most PIECE_PX a side of the level's pixels."""
    width, height = (
        max(1, int(PIECE_PX / max(1, step)))
        for step in (plane.downsample_x / level.downsample_x, plane.downsample_y / level.downsample_y)
    )
    for y in range(0, size.height, height):
        for x in range(0, size.width, width):
            yield Box(x, y, min(width, size.width - x), min(height, size.height - y))
