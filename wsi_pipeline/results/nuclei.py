"""Nuclei of a slide, counted where it is asked for: pixels are read there, and nowhere else."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.base.types import FloatMap, Mask
from wsi_pipeline.results.cellularity import (
    COARSEST_MPP,
    COUNT_MPP,
    REACH_PX,
    Blobs,
    find_blobs,
    least_answer,
)
from wsi_pipeline.slides.slide import Slide

# Side of what is read at once, in pixels of COUNT_MPP: 0.26 mm.
PIECE_PX = 512
THREADS = 2
# So many pieces along each side lie near each other: their shared storage tiles find room beside each other.
NEAR = 8
# Of a cell: so far inside of it its corners are taken, for its last point belongs to the next.
EDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Cellularity:
    """Nuclei by cell of a plane."""

    plane: Plane
    nuclei: FloatMap
    """How many have their centre in each cell, [row, column]; NaN where they were not counted."""

    least_answer: float
    """What a blob had to answer to be a nucleus, on this slide."""

    @property
    def counted(self) -> Mask:
        """The cells that were looked at, and could be read."""
        return np.isfinite(self.nuclei)

    def per_mm2(self, mpp0: tuple[float, float]) -> FloatMap:
        """Nuclei per mm2 of each cell, glass and all; `mpp0` is um per level-0 pixel."""
        cell_mm2 = self.plane.downsample_x * mpp0[0] * self.plane.downsample_y * mpp0[1] / 1e6
        return np.asarray(self.nuclei / cell_mm2, np.float32)


def can_be_counted(slide: Slide) -> bool:
    """Whether the slide has pixels enough for nuclei."""
    return max(slide.mpp) <= COARSEST_MPP


def count_nuclei(slide: Slide, wanted: Mask, plane: Plane) -> Cellularity:
    """The nuclei in the cells of `plane` that are wanted, [row, column].

    What counts as a nucleus is settled on all these cells together. Raises SlideError.
    """
    fine = slide.plane_at(COUNT_MPP)
    boxes = list(_pieces(wanted, plane, fine))
    reader = slide.reader(fine, overlap_px=2 * REACH_PX)
    lost = np.zeros_like(wanted)

    def look_at(box: Box) -> Blobs:
        around = Box(box.x - REACH_PX, box.y - REACH_PX, box.width + 2 * REACH_PX, box.height + 2 * REACH_PX)
        pixels = reader(around)
        if pixels.unreadable is not None:
            lost[_cells_under(pixels.unreadable, around, fine, plane, wanted.shape)] = True
        found = find_blobs(pixels.rgb)
        xy = found.xy + np.array([around.x, around.y])
        inside = (xy >= (box.x, box.y)).all(axis=1) & (xy < (box.right, box.bottom)).all(axis=1)
        return Blobs(xy[inside], found.answers[inside])

    with ThreadPoolExecutor(THREADS, thread_name_prefix="nuclei") as pool:
        blobs = list(pool.map(look_at, boxes))
    rows, columns, answers = _placed(blobs, fine, plane, wanted)
    least = least_answer(answers)
    counts = np.zeros(wanted.shape, np.float32)
    np.add.at(counts, (rows[answers >= least], columns[answers >= least]), 1)
    counts[~wanted | lost] = np.nan
    return Cellularity(plane, counts, least)


def _pieces(wanted: Mask, plane: Plane, fine: Plane) -> Iterator[Box]:
    """Boxes of the fine plane, none over another, that together hold every wanted cell; their sides are even.

    Those near each other come soon after each other, so that storage tiles that they share are decoded once.
    """
    rows, columns = np.nonzero(wanted)
    if not rows.size:
        return
    low, high = (
        np.floor(np.stack(fine.point_from_level0(*plane.point_to_level0(columns + at, rows + at)), axis=1))  # type: ignore[arg-type]
        for at in (EDGE, 1 - EDGE)
    )
    # A cell reaches into up to four squares: those under its corners.
    corners = [np.stack([x[:, 0], y[:, 1]], axis=1) for x, y in product((low, high), repeat=2)]
    squares, of = np.unique(np.concatenate(corners).astype(np.int64) // PIECE_PX, axis=0, return_inverse=True)
    first, last = squares * PIECE_PX + PIECE_PX, squares * PIECE_PX - 1
    np.minimum.at(first, of.ravel(), np.tile(low.astype(np.int64), (4, 1)))
    np.maximum.at(last, of.ravel(), np.tile(high.astype(np.int64), (4, 1)))
    first = np.maximum(first // 2 * 2, squares * PIECE_PX)
    end = np.minimum(last // 2 * 2 + 2, (squares + 1) * PIECE_PX)
    areas = squares // NEAR
    for i in np.lexsort((squares[:, 0], squares[:, 1], areas[:, 0], areas[:, 1])):
        width, height = (end[i] - first[i]).tolist()
        yield Box(int(first[i, 0]), int(first[i, 1]), width, height)


def _placed(
    blobs: Sequence[Blobs], fine: Plane, plane: Plane, wanted: Mask
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Row, column and answer of each blob that lies in a wanted cell."""
    if not blobs:
        return np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.float32)
    xy = np.concatenate([one.xy for one in blobs])
    answers = np.concatenate([one.answers for one in blobs])
    x, y = plane.point_from_level0(*fine.point_to_level0(xy[:, 0], xy[:, 1]))  # type: ignore[arg-type]
    rows, columns = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    kept = (rows >= 0) & (rows < wanted.shape[0]) & (columns >= 0) & (columns < wanted.shape[1])
    kept[kept] = wanted[rows[kept], columns[kept]]
    return rows[kept], columns[kept], answers[kept]


def _cells_under(
    unreadable: Mask, box: Box, fine: Plane, plane: Plane, shape: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the cells under unreadable pixels of a box of the fine plane."""
    rows, columns = np.nonzero(unreadable)
    x0, y0 = fine.point_to_level0(columns + box.x + 0.5, rows + box.y + 0.5)  # type: ignore[arg-type]
    x, y = plane.point_from_level0(x0, y0)
    places = np.unique(np.stack([np.floor(y), np.floor(x)], axis=1).astype(np.intp), axis=0)
    places = places[((places >= 0) & (places < shape)).all(axis=1)]
    return places[:, 0], places[:, 1]
