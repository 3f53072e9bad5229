"""Means over discs, on any plane of cells."""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def disc_of(radius_x: float, radius_y: float) -> Floats:
    """Share of each cell covered by a disc (an ellipse where cells are not square) around the middle cell's centre.

    Radii in cells. Scaled to sum to 1.
    """
    half_x, half_y = math.ceil(radius_x), math.ceil(radius_y)
    samples_x, samples_y = math.ceil(32 / radius_x), math.ceil(32 / radius_y)
    x = (np.arange((2 * half_x + 1) * samples_x) + 0.5) / samples_x - half_x - 0.5
    y = (np.arange((2 * half_y + 1) * samples_y) + 0.5) / samples_y - half_y - 0.5
    inside = (x[None, :] / radius_x) ** 2 + (y[:, None] / radius_y) ** 2 <= 1
    by_cell = inside.reshape(2 * half_y + 1, samples_y, 2 * half_x + 1, samples_x)
    share = by_cell.sum(axis=(1, 3), dtype=np.float64)
    return np.asarray(share / share.sum())


def mean_in_disc(values: npt.NDArray[np.floating] | npt.NDArray[np.bool_], disc: Floats) -> Floats:
    """Weighted mean around each cell; beyond the edge counts as 0."""
    # By Fourier transforms; scipy.signal has one for it, but takes as long to import as a slide's regions take.
    size = [n + m - 1 for n, m in zip(values.shape, disc.shape, strict=True)]
    mean = np.fft.irfft2(np.fft.rfft2(values, size) * np.fft.rfft2(disc, size), size)
    top, left = disc.shape[0] // 2, disc.shape[1] // 2
    return np.asarray(mean[top : top + values.shape[0], left : left + values.shape[1]])


def mean_at(values: npt.NDArray[np.floating], disc: Floats, row: int, column: int) -> float:
    """Weighted mean, around one cell, of the values that are not NaN; NaN where there are none."""
    half_y, half_x = disc.shape[0] // 2, disc.shape[1] // 2
    top, left = max(0, row - half_y), max(0, column - half_x)
    window = values[top : row + half_y + 1, left : column + half_x + 1]
    start_y, start_x = top - (row - half_y), left - (column - half_x)
    weights = disc[start_y : start_y + window.shape[0], start_x : start_x + window.shape[1]]
    known = np.isfinite(window) & (weights > 0)
    return float((window[known] * weights[known]).sum() / weights[known].sum()) if known.any() else math.nan
