"""The levels of a pyramid: where each lies on level 0, proved by its pixels.

A file says of a level how large it is, not how coarse. Sizes are rounded down, or up, or padded to whole storage tiles,
and a level may be no level: a label, an overview, another focus. Taken at its word, such a file is mapped up to half as
large as it is, or its label is searched for tumours. So a level is used where the factors of x and y agree up to
rounding, or a whole factor fits that padding explains, and where its pixels are those of the next finer level.
"""

import logging
import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import RegionReadError, SlideOpenError
from wsi_pipeline.base.geometry import Box, Plane, Size, cover
from wsi_pipeline.slides.readers.openslide import OpenSlideReader
from wsi_pipeline.slides.readers.tiff import TiffReader
from wsi_pipeline.slides.resample import resample

log = logging.getLogger(__name__)

Reader = OpenSlideReader | TiffReader
Grey = NDArray[np.float32]

# Squares that are compared: so many pixels of the coarser level a side, and no more of the finer one.
SPOT_PX, MOST_FINE_PX = 96, 1024
# Tries at finding squares with anything to compare on them: tissue may be a twentieth of a slide.
SPOTS = 24
# A square of which less is stored in both levels says nothing.
LEAST_SHARE = 0.25
# So many that say nothing clear are enough.
MOST_COMPARED = 6
# How far from the corner a square lies, of the whole: at the corner all factors agree.
LEAST_FAR = 0.3
# Rounding moves a level by up to a pixel, and programs that reduce by half a pixel more.
REACH_PX = 2
# Standard deviation of grey values: less is glass and its noise.
LEAST_CONTRAST = 4.0
# Correlation of a square and the same of the finer level, reduced: 0.95 and more where they are the same, however the
# level was made; below a half where they are not.
AGREES, DIFFERS = 0.8, 0.5
# Where one tile holds a level, its size does not bound how coarse it is: factors up to so many times its ratio are
# tried.
ONE_TILE_TIMES = 8


@dataclass(frozen=True)
class Level:
    """One pyramid level: its size in its own pixels, its plane, and its number in the file."""

    size: Size
    plane: Plane
    index: int


@dataclass(frozen=True)
class Pyramid:
    """The levels that can be used, finest first, and what was left out, in words."""

    levels: tuple[Level, ...]
    warnings: tuple[str, ...]


class _Verdict(Enum):
    SAME = "the same pixels"
    SIMILAR = "pixels that could be the same"
    OTHER = "other pixels"
    UNKNOWN = "nothing to compare"


def find_pyramid(reader: Reader, path: Path, bounds: Box) -> Pyramid:
    """The levels of the file; those that are not reductions of level 0 are left out, and named.

    Raises SlideOpenError where level 0 itself cannot be what it seems: nothing of a pyramid belongs to it. `path` is
    what messages call the slide, `bounds` the scanned area in level-0 pixels.
    """
    sizes, tiles = reader.level_sizes, reader.tile_sizes
    levels, warnings, strangers = [Level(sizes[0], Plane(1.0, 1.0), 0)], [], 0
    for index in range(1, len(sizes)):
        size = sizes[index]
        fault = reader.level_faults.get(index)
        if not fault:
            planes = _planes(sizes[0], tiles[0], size, tiles[index])
            plane, fault = _proved(reader, bounds, levels[-1], size, index, planes)
            if plane:
                levels.append(Level(size, plane, index))
                continue
            strangers += 1
        warnings.append(
            f"level {index} of the file ({size.width} x {size.height} pixels) is not used: {fault}"
        )
        log.warning("%s: %s", path, warnings[-1])
    if strangers > 1 and len(levels) == 1:
        raise SlideOpenError(
            f"{path}: none of its {len(sizes) - 1} lower levels is a reduction of its level 0 ({sizes[0].width} x "
            f"{sizes[0].height} pixels): is that the slide, or an overview or a label? {warnings[0]}; write the "
            f"slide's pyramid alone"
        )
    return Pyramid(tuple(levels), tuple(warnings))


@dataclass(frozen=True)
class _Guess:
    """A plane that sizes allow; `by_rounding`: without padding, one factor for both axes."""

    plane: Plane
    by_rounding: bool


def _planes(size0: Size, tile0: Size, size: Size, tile: Size) -> list[_Guess]:
    """What the level's plane can be by its size, the likeliest first."""
    guesses = []
    factors = (downsample(size0.width, size.width), downsample(size0.height, size.height))
    if _agree(size0, size, factors):
        guesses.append(_Guess(Plane(*factors), True))
    if not (
        size0.width % tile0.width
        or size0.height % tile0.height
        or size.width % tile.width
        or size.height % tile.height
    ):
        padded = [
            factor
            for factor in range(2, _most_padded(size0, size, tile) + 1)
            if all(
                (full - full_tile) / factor < reduced and reduced - tile_px < full / factor
                for full, full_tile, reduced, tile_px in (
                    (size0.width, tile0.width, size.width, tile.width),
                    (size0.height, tile0.height, size.height, tile.height),
                )
            )
        ]
        likely = sorted(padded, key=lambda factor: (not _is_power_of_2(factor), factor))
        guesses += [
            _Guess(Plane(float(factor), float(factor)), False)
            for factor in likely
            if (factor, factor) != factors
        ]
    return guesses


def _agree(size0: Size, size: Size, factors: tuple[float, float]) -> bool:
    """Whether one factor explains both axes, where sizes may be a pixel off."""
    least = max(size0.width / (size.width + 1), size0.height / (size.height + 1))
    most = min(size0.width / max(size.width - 1, 0.5), size0.height / max(size.height - 1, 0.5))
    return (
        size.width <= size0.width
        and size.height <= size0.height
        and (least <= most or factors[0] == factors[1])
    )


def _most_padded(size0: Size, size: Size, tile: Size) -> int:
    """The largest whole factor that padding could explain."""
    by_size = [
        full / (reduced - tile_px) if reduced > tile_px else ONE_TILE_TIMES * full / reduced
        for full, reduced, tile_px in (
            (size0.width, size.width, tile.width),
            (size0.height, size.height, tile.height),
        )
    ]
    return math.ceil(min(by_size))


def _is_power_of_2(value: int) -> bool:
    return value & (value - 1) == 0


def _proved(
    reader: Reader, bounds: Box, finer: Level, size: Size, index: int, guesses: list[_Guess]
) -> tuple[Plane | None, str]:
    """The guess that the pixels bear out; else None, and why there is none."""
    if not guesses:
        return None, "its width and height are reduced by different factors; a label or an overview?"
    verdict = _Verdict.OTHER
    for guess in guesses:
        verdict = _compare(reader, bounds, finer, Level(size, guess.plane, index))
        if verdict is _Verdict.SAME or (verdict is _Verdict.SIMILAR and guess.by_rounding):
            return guess.plane, ""
        if verdict is _Verdict.UNKNOWN:
            break
    if verdict is not _Verdict.UNKNOWN:
        return None, "it shows other pixels than level 0; a label, an overview or another focus?"
    first = guesses[0]
    # Nothing to compare is nothing against a whole factor; what padding explains, several factors may.
    if first.by_rounding and (len(guesses) == 1 or first.plane.downsample_x.is_integer()):
        return first.plane, ""
    return None, "it is padded, and holds nothing that shows how coarse it is"


def _compare(reader: Reader, bounds: Box, finer: Level, coarser: Level) -> _Verdict:
    """Whether squares of the coarser level are those of the finer one, reduced."""
    found: list[float] = []
    for box in _spots(coarser, finer, bounds):
        try:
            seen = _grey(reader.read(coarser.index, box))
            if seen.std() < LEAST_CONTRAST:
                continue
            best = _correlation(seen, _reduced(reader, finer, coarser.plane, box))
        except RegionReadError:  # damaged there: another square will do
            continue
        if best is None:
            continue
        if best >= AGREES:
            return _Verdict.SAME
        found.append(best)
        if len(found) >= MOST_COMPARED:
            break
    if not found:
        return _Verdict.UNKNOWN
    return _Verdict.OTHER if float(np.median(found)) < DIFFERS else _Verdict.SIMILAR


def _spots(coarser: Level, finer: Level, bounds: Box) -> list[Box]:
    """Squares of the coarser level, scattered over the scanned area, away from its corner."""
    inside = cover(coarser.plane.from_level0(bounds)).intersect(
        Box(0, 0, coarser.size.width, coarser.size.height)
    )
    step = coarser.plane.downsample_x / finer.plane.downsample_x
    side = max(1, min(SPOT_PX, max(8, int(MOST_FINE_PX / step)), inside.width, inside.height))
    scattered = ((i * 0.7549 % 1, i * 0.5698 % 1) for i in range(1, 4 * SPOTS))  # evenly, on no grid
    far = [place for place in scattered if max(place) >= LEAST_FAR][:SPOTS]
    boxes = [
        Box(inside.x + int(x * (inside.width - side)), inside.y + int(y * (inside.height - side)), side, side)
        for x, y in far
    ]
    return list(dict.fromkeys(boxes))


def _reduced(reader: Reader, finer: Level, plane: Plane, box: Box) -> Grey:
    """The box of the coarser plane, and REACH_PX around it, from the finer level."""
    wide = Box(box.x - REACH_PX, box.y - REACH_PX, box.width + 2 * REACH_PX, box.height + 2 * REACH_PX)
    region = finer.plane.from_level0(plane.to_level0(wide))
    source = cover(region)
    start = (region.left - source.x, region.top - source.y)
    step = (plane.downsample_x / finer.plane.downsample_x, plane.downsample_y / finer.plane.downsample_y)
    return _grey(resample(reader.read(finer.index, source), wide.width, wide.height, start, step))


def _grey(rgb: NDArray[np.uint8]) -> Grey:
    grey: Grey = rgb.mean(axis=2, dtype=np.float32)
    return grey


def _correlation(seen: Grey, expected: Grey) -> float | None:
    """The best correlation of `seen` with what is expected, moved by up to REACH_PX; None: nothing to compare.

    What is white in either has no say: it may be missing there.
    """
    height, width = seen.shape
    moves = [(y, x) for y in range(2 * REACH_PX + 1) for x in range(2 * REACH_PX + 1)]
    best = None
    for y, x in sorted(moves, key=lambda move: abs(move[0] - REACH_PX) + abs(move[1] - REACH_PX)):
        theirs = expected[y : y + height, x : x + width]
        both = (seen < 255) & (theirs < 255)
        if both.mean() < LEAST_SHARE or min(seen[both].std(), 4 * theirs[both].std()) < LEAST_CONTRAST:
            continue
        found = float(np.corrcoef(seen[both], theirs[both])[0, 1])
        best = found if best is None else max(best, found)
        if best >= AGREES:
            break
    return best


def downsample(full: int, reduced: int) -> float:
    """The whole factor that explains the reduced size up to rounding; where none does, the plain ratio."""
    ratio = full / reduced
    whole = round(ratio)
    return float(whole) if whole and abs(full / whole - reduced) <= 1 else ratio
