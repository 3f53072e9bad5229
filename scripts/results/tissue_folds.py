"""Folds laid on a slide's low-power plane, so that their place is known.

A fold is a gently curved band beside a line along which the section was turned over. Two layers: in the band lies,
beside the tissue's own optical density, that of the tissue beyond the line, mirrored on it. Three layers (a pleat):
also that of the tissue from twice the band's width away, not mirrored.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.base.types import Mask, RgbImage

FOLDS, SEED = 6, 0
WIDTH_UM, LENGTH_UM = (60.0, 300.0), (1_000.0, 4_000.0)
LEAST_RADIUS_UM = 3_000.0


def with_folds(
    rgb: RgbImage, tissue: Mask, glass: NDArray[np.float32], mpp: tuple[float, float], layers: int
) -> tuple[RgbImage, Mask]:
    """The plane with folds, each through a pixel of tissue, and where they lie.

    rgb: uint8 [row, col, 3]. glass: its colour [3]. mpp: um per pixel, along x and along y. layers: 2 or 3.
    """
    chance = np.random.default_rng(SEED)
    places = np.argwhere(tissue)
    od = -np.log(np.maximum(rgb.astype(np.float32), 1) / glass)
    rows, columns = np.indices(tissue.shape, np.float32)
    folded, where = od.copy(), np.zeros_like(tissue)
    for row, column in places[chance.integers(0, len(places), FOLDS)]:
        angle, bend = chance.uniform(0, np.pi), chance.uniform(-1, 1) / (2 * LEAST_RADIUS_UM)
        width_um, length_um = chance.uniform(*WIDTH_UM), chance.uniform(*LENGTH_UM)
        x, y = (columns - column) * mpp[0], (rows - row) * mpp[1]
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle) - bend * along**2
        band = (np.abs(along) <= length_um / 2) & (across >= -width_um) & (across < 0) & ~where
        at = np.nonzero(band)
        step = (np.cos(angle) / mpp[1], -np.sin(angle) / mpp[0])  # rows and columns for a um across
        folded[at] += _od_at(od, at, step, -2 * across[at])
        if layers == 3:
            folded[at] += _od_at(od, at, step, np.full(len(at[0]), 2 * width_um, np.float32))
        where |= band
    changed = np.clip(np.rint(glass * np.exp(-folded)), 0, 255).astype(np.uint8)
    return np.where(where[..., None], changed, rgb), where


def _od_at(
    od: NDArray[np.float32],
    at: tuple[NDArray[np.intp], ...],
    step: tuple[float, float],
    away_um: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Optical density so far across from the pixels `at`, [n, 3]; none below that of glass."""
    places = [index + away_um * one for index, one in zip(at, step, strict=True)]
    channels = [ndimage.map_coordinates(od[..., c], places, order=1, mode="nearest") for c in range(3)]
    return np.maximum(np.stack(channels, axis=1), 0)
