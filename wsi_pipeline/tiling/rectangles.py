"""Patches grouped into rectangles that hold little that no patch needs, so that little is decoded in vain."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Share of a box that must come free of patches for it to be cut: the tiles along a cut are copied once more.
WORTH_A_CUT = 0.15


def split_into_rectangles(patches: NDArray[np.integer]) -> list[NDArray[np.intp]]:
    """Indices of the patches, [n, (column, row)], by rectangles that hold few positions without a patch.

    A block at the rim of tissue is half empty: what no patch needs is not worth decoding. Rectangles are cut in two,
    along a line between positions, as long as that leaves out WORTH_A_CUT of one.
    """
    return list(_split(np.arange(len(patches)), patches))


def _split(rectangle: NDArray[np.intp], patches: NDArray[np.integer]) -> Iterator[NDArray[np.intp]]:
    first = patches[rectangle].min(axis=0)
    columns, rows = (patches[rectangle] - first).T
    filled = np.zeros((rows.max() + 1, columns.max() + 1), np.bool_)
    filled[rows, columns] = True
    if filled.all():
        yield rectangle
        return
    (cut_x, area_x), (cut_y, area_y) = _best_cut(filled), _best_cut(filled.T)
    if min(area_x, area_y) > (1 - WORTH_A_CUT) * filled.size:
        yield rectangle
        return
    left = columns < cut_x if area_x <= area_y else rows < cut_y
    yield from _split(rectangle[left], patches)
    yield from _split(rectangle[~left], patches)


def _best_cut(filled: NDArray[np.bool_]) -> tuple[int, int]:
    """The column before which a cut leaves the smallest boxes around what is filled, and their area together."""
    height, width = filled.shape
    if width < 2:
        return 0, filled.size
    at_all: NDArray[np.bool_] = np.logical_or.reduce(filled, axis=0)
    # Of what is filled in each column and all those before it: the first and last row, the first and last column.
    top = np.where(at_all, filled.argmax(axis=0), height)
    bottom = np.where(at_all, height - filled[::-1].argmax(axis=0), 0)
    column = np.arange(width)

    def areas(top: NDArray[np.int_], bottom: NDArray[np.int_], at_all: NDArray[np.bool_]) -> NDArray[np.int_]:
        last = np.maximum.accumulate(np.where(at_all, column, -1))
        height = np.maximum.accumulate(bottom) - np.minimum.accumulate(top)
        area: NDArray[np.int_] = np.maximum(height, 0) * (last + 1)
        return area

    before = areas(top, bottom, at_all)[:-1]
    after = areas(top[::-1], bottom[::-1], at_all[::-1])[::-1][1:]
    best = int((before + after).argmin())
    return best + 1, int(before[best] + after[best])
