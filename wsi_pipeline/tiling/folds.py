"""Where tissue lies folded over itself, as far as one low-power plane shows.

Two or three layers absorb more than one. That alone does not tell a fold from dense carcinoma, but a fold is three
things besides: a long straight band with tissue on both sides; darker in eosin as well as in haematoxylin than either
side, where carcinoma is in haematoxylin mostly; and darker all along. So a band is measured in three pieces, one after
the other, each against both its sides and in both stains, and the least of these twelve ratios counts. The sides must
be tissue throughout: between the cells of fat any septum is darker than what lies beside it.

Darkness of folds as evidence: Bautista and Yagi 2010, "Improving the visualization and detection of tissue folds in
whole slide images through color enhancement"; Kothari, Phan and Wang 2013, "Eliminating tissue-fold artifacts in
histopathological whole-slide images for improved image-based prediction of cancer grade".
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.base.types import Mask, RgbImage
from wsi_pipeline.tiling.blur import block_sums
from wsi_pipeline.tiling.tissue import Glass, channel_od

Floats = NDArray[np.float32]

# Folds are looked for in pixels of this size: the narrowest are two or three of them wide.
PIXEL_UM = 24.0
# Half the widths that are tried: folds are from 50 um to 0.3 mm wide.
HALF_WIDTHS_UM = (28.0, 48.0, 80.0, 128.0)
DIRECTIONS = 12
# Between a band and its sides, where a fold's rim may lie, and the width of the sides.
GAP_UM, SIDE_UM = 24.0, 64.0
PIECES = 3
# The middle of a band is where its ratio is nearly the highest of all so near: beside it, wider bands still hold some.
OF_HIGHEST, NEIGHBOURS_PX = 0.95, 7
# Green absorbs so much wherever there is tissue, however pale; and so much of a side must be such.
MIN_SOLID_OD, MIN_SOLID = 0.15, 0.7
# Sides with less eosin say nothing of how many layers of it there are, and with less haematoxylin count as this.
MIN_EOSIN_OD, LEAST_HAEMATOXYLIN_OD = 0.08, 0.03
# Haematoxylin absorbs so much of red for each unit of green (Ruifrok and Johnston 2001); eosin hardly any red.
RED_OF_HAEMATOXYLIN = 0.93
# Directions looked at together.
THREADS = 2
# Rows of coarser pixels worked out together.
BLOCKS_AT_ONCE = 128


def find_folds(
    rgb: RgbImage,
    mpp: tuple[float, float],
    tissue: Mask,
    glass: Glass,
    least_ratio: float,
    length_um: float,
) -> Mask:
    """Tissue in folds, bool [row, col].

    rgb: the whole plane, uint8 [row, col, 3]. mpp: micrometres per pixel of it, along x and along y.
    tissue: [row, col], what is looked at, as band and as its sides.
    least_ratio: of optical density in the band to that beside it, from which it is a fold.
    length_um: of the shortest fold that is found.
    """
    step = (max(1, round(PIXEL_UM / mpp[1])), max(1, round(PIXEL_UM / mpp[0])))
    size_um = (step[0] * mpp[1], step[1] * mpp[0])
    stains = _reduced_stains(rgb, tissue, glass, step)
    best = np.full(stains.shape[1:], least_ratio, np.float32)
    band_of = np.zeros(best.shape, np.int16)  # 0: none, else one of `bands`
    bands = [_Band(math.pi * turn / DIRECTIONS, size_um, length_um) for turn in range(DIRECTIONS)]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="folds") as pool:
        for first in range(0, DIRECTIONS, THREADS):  # no more at once: each takes memory
            together = bands[first : first + THREADS]
            for i, ratios in enumerate(pool.map(lambda band: list(band.ratios(stains)), together), first):
                for j, ratio in enumerate(ratios):
                    np.copyto(band_of, i * len(HALF_WIDTHS_UM) + j + 1, where=ratio > best)
                    np.maximum(best, ratio, out=best)
    band_of[best < OF_HIGHEST * ndimage.maximum_filter(best, NEIGHBOURS_PX, mode="constant")] = 0
    folded = np.zeros(best.shape, np.bool_)
    for which in np.unique(band_of[band_of > 0]):
        i, j = divmod(int(which) - 1, len(HALF_WIDTHS_UM))
        folded |= bands[i].around(band_of == which, HALF_WIDTHS_UM[j])
    whole = _dark(folded, stains).repeat(step[0], axis=0).repeat(step[1], axis=1)
    return np.asarray(whole[: tissue.shape[0], : tissue.shape[1]] & tissue)


class _Band:
    """Bands in one direction: what they absorb against their sides, and where they lie."""

    def __init__(self, angle: float, size_um: tuple[float, float], length_um: float):
        """angle: of the direction, in radians from the x axis. size_um: of a pixel, along rows and columns."""
        # Rows and columns for each um.
        self._along = math.sin(angle) / size_um[0], math.cos(angle) / size_um[1]
        self._across = math.cos(angle) / size_um[0], -math.sin(angle) / size_um[1]
        self._length_um, self._pixel_um = length_um, min(size_um)

    def ratios(self, stains: Floats) -> Iterator[Floats]:
        """For each half width, of each pixel as a band's middle the least ratio of band to side, [row, col]."""
        piece_um = self._length_um / PIECES
        piece = self._mean(stains, self._along, piece_um)
        haematoxylin, eosin, solid = self._mean(piece, self._across, SIDE_UM)
        paler = np.reciprocal(
            np.stack([np.maximum(haematoxylin, LEAST_HAEMATOXYLIN_OD), np.maximum(eosin, MIN_EOSIN_OD)])
        )
        paler *= (solid >= MIN_SOLID) & (eosin >= MIN_EOSIN_OD)  # else it is no side
        for half_um in HALF_WIDTHS_UM:
            away_um = half_um + GAP_UM + SIDE_UM / 2
            of_sides = np.minimum(*(_moved(paler, self._across, side_um) for side_um in (-away_um, away_um)))
            of_stains = self._mean(piece[:2], self._across, 2 * half_um) * of_sides
            ratio = np.minimum(*of_stains)
            before, after = (_moved(ratio, self._along, um) for um in (-piece_um, piece_um))
            yield np.minimum(np.minimum(before, after), ratio)

    def around(self, middles: Mask, half_um: float) -> Mask:
        """Bands around these middles, so wide."""
        line = self._mean(middles.astype(np.float32), self._along, self._length_um)
        filled = self._mean(line, self._across, 2 * half_um) > 1e-6
        # A slanting line steps over pixels.
        return np.asarray(ndimage.maximum_filter(filled, 3, mode="constant"))

    def _mean(self, planes: Floats, direction: tuple[float, float], length_um: float) -> Floats:
        """The mean along a line through each pixel: of copies one pixel apart, doubled as often as can be."""
        count = max(1, round(length_um / self._pixel_um))
        start_um = -(count - 1) / 2 * self._pixel_um
        total, power, size, done = np.zeros_like(planes), planes, 1, 0
        while True:
            if count & size:
                total += _moved(power, direction, start_um + done * self._pixel_um)
                done += size
            if done == count:
                return total / np.float32(count)
            power = power + _moved(power, direction, size * self._pixel_um)
            size *= 2


def _dark(folded: Mask, stains: Floats) -> Mask:
    """Of each piece of `folded` what is nearer to its own density than to that of what lies around it."""
    density = ndimage.gaussian_filter(stains[0] + stains[1], 1)
    pieces, count = ndimage.label(folded)
    around = ndimage.maximum_filter(pieces, 7, mode="constant") * (~folded & (stains[2] > MIN_SOLID))
    each = np.arange(1, count + 1)
    of_piece, of_around = (
        np.atleast_1d(ndimage.median(density, labels, each)) for labels in (pieces, around)
    )
    least = np.append(0, (of_piece + 2 * np.nan_to_num(of_around)) / 3)  # a third of the way: rims, too
    return np.asarray(folded & ndimage.binary_closing(folded & (density > least[pieces])))


def _moved(planes: Floats, direction: tuple[float, float], by_um: float) -> Floats:
    """What lies so far away in that direction, [..., row, col]; 0 beyond the plane's edge."""
    height, width = planes.shape[-2:]
    down, right = (round(by_um * px) for px in direction)
    moved = np.zeros_like(planes)
    if abs(down) < height and abs(right) < width:
        rows, columns = (
            slice(max(0, down), height + min(0, down)),
            slice(max(0, right), width + min(0, right)),
        )
        to_rows, to_columns = (
            slice(max(0, -down), height + min(0, -down)),
            slice(max(0, -right), width + min(0, -right)),
        )
        moved[..., to_rows, to_columns] = planes[..., rows, columns]
    return moved


def _reduced_stains(rgb: RgbImage, tissue: Mask, glass: Glass, step: tuple[int, int]) -> Floats:
    """Optical density of haematoxylin and of eosin, and the share of solid tissue, [3, row, col] of coarser pixels."""
    parts = []
    for top in range(0, len(rgb), BLOCKS_AT_ONCE * step[0]):
        rows = slice(top, top + BLOCKS_AT_ONCE * step[0])
        red, green, _ = channel_od(rgb[rows], glass)
        haematoxylin = red / np.float32(RED_OF_HAEMATOXYLIN)
        eosin = np.maximum(green - haematoxylin, 0)
        solid = tissue[rows] & (green > MIN_SOLID_OD)
        planes = (haematoxylin * tissue[rows], eosin * tissue[rows], solid)
        parts.append(np.stack([block_sums(values, step) for values in planes]))
    return (np.concatenate(parts, axis=1) / (step[0] * step[1])).astype(np.float32)
