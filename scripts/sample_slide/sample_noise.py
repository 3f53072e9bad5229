"""Randomness as a function of place: the same wherever it is asked."""

from typing import Any

import numpy as np
from scipy import ndimage

Array = np.ndarray[Any, Any]


def hash01(ix: Array, iy: Array, salt: int) -> Array:
    """Uniform float32 in [0, 1) of whole numbers (ix, iy) and a salt: the same wherever it is asked."""
    h = ix.astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1)
    h ^= iy.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77)
    h ^= np.uint32((salt * 0xC2B2AE3D) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    h ^= h >> np.uint32(16)
    return (h >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)


class Noise:
    """Smooth noise of zero mean and unit variance over the plane, periodic after many features."""

    def __init__(self, rng: np.random.Generator, size: int, feature_px: int) -> None:
        white = rng.standard_normal((size, size), dtype=np.float32)
        table = ndimage.gaussian_filter(white, feature_px / 2, mode="wrap")
        self._table = (table - table.mean()) / table.std()
        self._feature_px = feature_px

    def at(self, x: Array, y: Array, feature_x: float, feature_y: float, salt: int) -> Array:
        """Noise at points (x, y), interpolated; blobs are about `feature_x` by `feature_y` units wide."""
        rows = y * (self._feature_px / feature_y) + 61.7 * salt
        columns = x * (self._feature_px / feature_x) + 137.3 * salt
        return ndimage.map_coordinates(self._table, (rows, columns), order=1, mode="grid-wrap")


def smooth_step(values: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, a straight ramp between."""
    return np.clip((values - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
