"""One slide, opened: its true scale, its levels, and pixels at any scale.

The planes here: level-0 pixels (`x0`, `size0`); the pixels of one pyramid level; the pixels of the plane
that the caller wants. Every read states its plane.
"""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import (
    RegionReadError,
    ScaleError,
    SlideChangedError,
    SlideError,
    SlideOpenError,
)
from wsi_pipeline.base.geometry import Box, Plane, Region, Size, cover
from wsi_pipeline.slides.formats import slide_files
from wsi_pipeline.slides.readers.openslide import OpenSlideReader
from wsi_pipeline.slides.readers.tiff import TiffReader, open_reader
from wsi_pipeline.slides.readers.tile_cache import TiledLevels
from wsi_pipeline.slides.resample import resample

log = logging.getLogger(__name__)

Reader = OpenSlideReader | TiffReader

# No microscope samples below or above; what claims to is a wrong tag (DESIGN.md, section 2).
PLAUSIBLE_MPP = (0.05, 20.0)
# Square pixels are the rule, 5 % off is seen, 50 % is a wrong tag.
PLAUSIBLE_ANISOTROPY = 1.5
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
PIECE_THREADS = 2


@dataclass(frozen=True)
class Level:
    """One pyramid level: its size in its own pixels and its plane."""

    size: Size
    plane: Plane


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


class Slide:
    """An open slide; made by `open_slide`. Safe to read from several threads."""

    def __init__(self, path: Path, reader: Reader, mpp: tuple[float, float], mpp_overridden: bool):
        self.path = path
        self.name = slide_name(path)
        self.mpp = mpp  # um per level-0 pixel, along x and along y
        self.mpp_overridden = mpp_overridden
        self.properties = reader.properties
        self.size0 = reader.level_sizes[0]
        self.bounds = _bounds(reader.properties, self.size0)  # level-0 box that holds the scanned area
        self.levels = [Level(size, _level_plane(self.size0, size)) for size in reader.level_sizes]
        self.tile_sizes = reader.tile_sizes
        self._reader = reader
        self._tiles = TiledLevels(reader)
        self._files = _file_states(reader.path)

    def plane_at(self, mpp: float) -> Plane:
        """The plane of square pixels of `mpp` um that starts at the scanned area's upper left corner."""
        return Plane(mpp / self.mpp[0], mpp / self.mpp[1], self.bounds.x, self.bounds.y)

    def size_on(self, plane: Plane) -> Size:
        """Pixels of the plane, from its origin, that the scanned area reaches into."""
        box = cover(plane.from_level0(self.bounds))
        return Size(max(1, box.right), max(1, box.bottom))

    def level_for(self, plane: Plane, least_reduction: float = LEAST_REDUCTION) -> int:
        """The coarsest level of the plane's own scale, or of at least twice as fine a one, along x and y.

        `least_reduction` is another factor than two. Where there is none, level 0: up-sampled only if even that is
        coarser than the plane.
        """

        def serves(level: Level) -> bool:
            steps = (
                plane.downsample_x / level.plane.downsample_x,
                plane.downsample_y / level.plane.downsample_y,
            )
            return all(step >= least_reduction or abs(step - 1) <= LEVEL_TOLERANCE for step in steps)

        serving = [i for i, level in enumerate(self.levels) if serves(level)]
        return max(serving, key=lambda i: self.levels[i].plane.downsample_x, default=0)

    def read(self, box: Box, plane: Plane) -> NDArray[np.uint8]:
        """uint8 RGB [row, column, 3] of `box`, pixels of `plane`; white outside of the slide.

        From the best level, area-averaged when reduced, linear when enlarged, x and y each for itself.
        Raises RegionReadError when any storage tile it needs cannot be decoded.
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

    def _read(self, box: Box, plane: Plane, index: int) -> Pixels:
        level = self.levels[index].plane
        wanted = level.from_level0(plane.to_level0(box))
        step_x = plane.downsample_x / level.downsample_x
        step_y = plane.downsample_y / level.downsample_y
        source = cover(wanted)
        if step_x < 1 or step_y < 1:  # linear weights reach half a pixel further
            source = Box(source.x - 1, source.y - 1, source.width + 2, source.height + 2)
        rgb, lost = self._tiles.read(index, source)
        start = (_snap(wanted.left - source.x), _snap(wanted.top - source.y))
        out = resample(rgb, box.width, box.height, start, (_snap(step_x), _snap(step_y)))
        if not lost:
            return Pixels(out)
        unreadable = np.zeros(out.shape[:2], np.bool_)
        for tile in lost:
            touched = _touched(tile, source, start, (step_x, step_y)).intersect(
                Box(0, 0, box.width, box.height)
            )
            unreadable[touched.y : touched.bottom, touched.x : touched.right] = True
        out[unreadable] = 255
        return Pixels(out, unreadable if unreadable.any() else None)

    def read_whole(self, plane: Plane) -> Pixels:
        """The scanned area on a low-power plane, read piece by piece."""
        size = self.size_on(plane)
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

    def fingerprint(self) -> str:
        """What tells this slide's content from another's: file size, its ends, and OpenSlide's quickhash.

        The quickhash covers the files beside a MRXS or DICOM one; the ends catch a file replaced in place.
        """
        digest = hashlib.sha256()
        end_bytes = 2**20
        path = self._reader.path
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{size} {self.properties.get('openslide.quickhash-1')}".encode())
            digest.update(file.read(end_bytes))
            file.seek(max(0, size - end_bytes))
            digest.update(file.read(end_bytes))
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
    states = {}
    with suppress(OSError):  # gone
        for file in slide_files(path):
            found = file.stat()
            states[file] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return states


def open_slide(
    path: Path, mpp: float | None = None, name: str | None = None, copy: Path | None = None
) -> Slide:
    """The slide at `path`: a file, or a folder of the DICOM files of one slide.

    `mpp`, um per level-0 pixel, overrides what the file says; `name` the name that it gets from its path. Pixels are
    read from `copy`, where there is one of the slide's file (staging.py); the slide keeps its own path. Raises
    SlideOpenError when OpenSlide cannot open it, ScaleError when the scale is unknown or implausible: it is never
    guessed.
    """
    file = slide_file(path)
    try:
        reader = open_reader(copy or file)
    except SlideOpenError as error:
        raise SlideOpenError(str(error).replace(str(copy or file), str(file))) from error
    slide = Slide(file, reader, _scale(file, reader.properties, mpp), mpp is not None)
    slide.name = name or slide_name(path)
    log.debug("opened %s: %s, %s um/px, %d levels", file, slide.size0, slide.mpp, len(slide.levels))
    return slide


def slide_name(path: Path) -> str:
    """The name its run folder has: the file's without its ending, or the DICOM folder's."""
    return path.name if path.is_dir() else path.stem


def slide_file(path: Path) -> Path:
    """The file to open: `path` itself, or the first of a folder of DICOM files. Raises SlideOpenError."""
    if path.is_dir():
        files = sorted(path.glob("*.dcm"))
        if not files:
            raise SlideOpenError(f"{path}: a folder without .dcm files; give the slide files one by one")
        return files[0]
    if not path.is_file():
        raise SlideOpenError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise SlideOpenError(f"{path}: the file is empty (0 bytes); copy it again")
    return path


def _scale(path: Path, properties: dict[str, str], override: float | None) -> tuple[float, float]:
    low, high = PLAUSIBLE_MPP
    if override is not None:
        mpp = (override, override)
        source = "--mpp"
    else:
        try:
            mpp = (float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"]))
        except (KeyError, ValueError):
            raise ScaleError(
                f"{path}: the file does not say its scale (um per pixel){_objective_hint(properties)}; "
                f"give it with --mpp if you know it"
            ) from None
        source = "the file"
    if not all(low <= value <= high for value in mpp):
        raise ScaleError(
            f"{path}: {source} says {mpp[0]:g} x {mpp[1]:g} um per level-0 pixel; expected between {low} and "
            f"{high:g} (40x is about 0.25); give the true scale with --mpp"
        )
    if max(mpp) / min(mpp) > PLAUSIBLE_ANISOTROPY:
        raise ScaleError(
            f"{path}: {source} says {mpp[0]:g} x {mpp[1]:g} um per level-0 pixel; expected pixels nearly "
            f"square; give the true scale with --mpp"
        )
    return mpp


def _objective_hint(properties: dict[str, str]) -> str:
    """What the objective that a file names would mean; nothing where it names none, or 0 as some do."""
    try:
        power = float(properties["openslide.objective-power"])
        return f"; it names a {power:g}x objective, often {10 / power:g} um/px"
    except (KeyError, ValueError, ZeroDivisionError):
        return ""


def _bounds(properties: dict[str, str], size0: Size) -> Box:
    """The scanned area: formats with a sparse canvas (MRXS, Leica) name it, others fill theirs."""
    keys = ("x", "y", "width", "height")
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{key}"]) for key in keys)
    except KeyError:
        return Box(0, 0, size0.width, size0.height)
    return Box(x, y, width, height).intersect(Box(0, 0, size0.width, size0.height))


def _level_plane(size0: Size, size: Size) -> Plane:
    return Plane(_downsample(size0.width, size.width), _downsample(size0.height, size.height))


def _downsample(full: int, reduced: int) -> float:
    """The whole factor that explains the reduced size up to rounding; where none does, the plain ratio."""
    ratio = full / reduced
    whole = round(ratio)
    return float(whole) if abs(full / whole - reduced) <= 1 else ratio


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
