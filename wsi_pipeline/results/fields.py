"""Where to look first when grading: circles of a high-power field."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.types import FloatMap
from wsi_pipeline.results.regions import DelineateOptions, IdcRegion, rasterise


@dataclass(frozen=True)
class GradingField:
    """A circle on the slide to grade in: an ellipse in level-0 pixels where these are not square."""

    name: str
    x0: float
    y0: float
    radius_x0: float
    radius_y0: float
    mean_probability: float
    region_name: str


def choose_fields(
    heatmap: FloatMap,
    plane: Plane,
    mpp0: tuple[float, float],
    regions: Sequence[IdcRegion],
    options: DelineateOptions,
) -> list[GradingField]:
    """Where to look first when grading: circles that do not overlap, the highest mean probability first.

    A cell outside of every region counts as 0, so that fields full of tumour come before fields at its edge.
    Mitoses are not seen here: the fields show where the model is surest, the pathologist moves them.
    """
    mask = rasterise(regions, plane, (heatmap.shape[0], heatmap.shape[1]))
    if not mask.any():
        return []
    radius_x0 = options.field_diameter_mm * 1000 / 2 / mpp0[0]
    radius_y0 = options.field_diameter_mm * 1000 / 2 / mpp0[1]
    radius_x, radius_y = radius_x0 / plane.downsample_x, radius_y0 / plane.downsample_y
    disc = _disc(radius_x, radius_y)
    tumour = _mean_in_disc(mask.astype(np.float64), disc)
    score = _mean_in_disc(np.where(mask, heatmap, 0.0), disc)
    # Rounded: the transform's noise must not choose between equals.
    score = np.where(mask & (tumour >= options.min_field_tumour - 1e-6), np.round(score, 6), -1.0)

    rows, columns = np.arange(mask.shape[0])[:, None], np.arange(mask.shape[1])[None, :]
    fields: list[GradingField] = []
    while len(fields) < options.field_count:
        row, column = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[row, column] < 0:
            break
        x0, y0 = plane.point_to_level0(float(column) + 0.5, float(row) + 0.5)
        fields.append(
            GradingField(
                name=f"Field {len(fields) + 1}",
                x0=x0,
                y0=y0,
                radius_x0=radius_x0,
                radius_y0=radius_y0,
                mean_probability=_mean_at(heatmap, disc, int(row), int(column)),
                region_name=min(regions, key=lambda r: r.polygon.distance(shapely.Point(x0, y0))).name,
            )
        )
        too_near = ((rows - row) / radius_y) ** 2 + ((columns - column) / radius_x) ** 2 < 4
        score[too_near] = -1.0
    return fields


def _disc(radius_x: float, radius_y: float) -> npt.NDArray[np.float64]:
    """Share of each cell covered by a disc around the middle cell's centre, scaled to sum to 1."""
    half_x, half_y = math.ceil(radius_x), math.ceil(radius_y)
    samples_x, samples_y = math.ceil(32 / radius_x), math.ceil(32 / radius_y)
    x = (np.arange((2 * half_x + 1) * samples_x) + 0.5) / samples_x - half_x - 0.5
    y = (np.arange((2 * half_y + 1) * samples_y) + 0.5) / samples_y - half_y - 0.5
    inside = (x[None, :] / radius_x) ** 2 + (y[:, None] / radius_y) ** 2 <= 1
    by_cell = inside.reshape(2 * half_y + 1, samples_y, 2 * half_x + 1, samples_x)
    share = by_cell.sum(axis=(1, 3), dtype=np.float64)
    return np.asarray(share / share.sum())


def _mean_in_disc(values: npt.NDArray[Any], disc: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weighted mean around each cell; beyond the edge counts as 0."""
    # By Fourier transforms; scipy.signal has one for it, but takes as long to import as a slide's regions take.
    size = [n + m - 1 for n, m in zip(values.shape, disc.shape, strict=True)]
    mean = np.fft.irfft2(np.fft.rfft2(values, size) * np.fft.rfft2(disc, size), size)
    top, left = disc.shape[0] // 2, disc.shape[1] // 2
    return np.asarray(mean[top : top + values.shape[0], left : left + values.shape[1]])


def _mean_at(heatmap: FloatMap, disc: npt.NDArray[np.float64], row: int, column: int) -> float:
    """Mean probability of the scored cells in the disc around one cell."""
    half_y, half_x = disc.shape[0] // 2, disc.shape[1] // 2
    top, left = max(0, row - half_y), max(0, column - half_x)
    window = heatmap[top : row + half_y + 1, left : column + half_x + 1]
    start_y, start_x = top - (row - half_y), left - (column - half_x)
    weights = disc[start_y : start_y + window.shape[0], start_x : start_x + window.shape[1]]
    scored = np.isfinite(window)
    return float((window[scored] * weights[scored]).sum() / weights[scored].sum())
