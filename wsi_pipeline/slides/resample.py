"""Pixels of one grid from those of another: exact area averages when reducing, linear when enlarging.

Both are separable: a sparse matrix along each axis, whose row holds one output pixel's weights. When
reducing, the weight of an input pixel is the share of the output pixel's length that it covers, so the mean
of an area is kept whatever the ratio and the offset.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

# Float copies are made in strips of this size, which stay in a processor's own cache; of no fewer rows of output
# than these, which the innermost loop runs over.
STRIP_BYTES = 2 * 2**20
STRIP_ROWS = 8


def axis_weights(n_out: int, start: float, step: float, n_in: int, length: float | None = None) -> csr_array:
    """Weights [n_out, n_in], float32, each row's sum 1, along one axis.

    Output i covers [start + i * step, start + i * step + length) in input pixels; `length` is `step` unless
    given. Where length >= 1 weights are shares of covered length, else linear between the two nearest pixel
    centres. What lies outside the input takes the input's edge pixel.
    """
    length = step if length is None else length
    left = start + step * np.arange(n_out)
    if length < 1:
        centre = left + length / 2 - 0.5
        first = np.floor(centre).astype(np.int64)
        share = centre - first
        index = np.stack([first, first + 1], axis=1)
        weight = np.stack([1 - share, share], axis=1)
    else:
        first = np.floor(left + 1e-9).astype(np.int64)
        index = first[:, None] + np.arange(int(np.ceil(length)) + 1)  # [n_out, taps]
        weight = np.minimum(index + 1, (left + length)[:, None]) - np.maximum(index, left[:, None])
        weight = np.clip(weight, 0, None) / length
    row = np.repeat(np.arange(n_out), index.shape[1])
    column = np.clip(index, 0, n_in - 1).ravel()
    matrix = csr_array((weight.ravel().astype(np.float32), (row, column)), shape=(n_out, n_in))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def taps_of(step: float) -> int:
    """Input pixels that an output pixel of that length takes at most."""
    return math.ceil(step) + 1 if step >= 1 else 2


def axis_taps(
    n_out: int, start: float, step: float, n_in: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The weights of `axis_weights` as a dense table: each output pixel's first input pixel, int32 [n_out], and the
    weights of it and those that follow it, float32 [n_out, taps], with `taps_of(step)` of them.

    Where an output pixel takes fewer, the rest weighs 0, and may lie past the input's end.
    """
    matrix = axis_weights(n_out, start, step, n_in)
    counts = np.diff(matrix.indptr)
    row = np.repeat(np.arange(n_out), counts)
    first = matrix.indices[matrix.indptr[:-1]].astype(np.int32)
    weights = np.zeros((n_out, taps_of(step)), np.float32)
    weights[row, matrix.indices - first[row]] = matrix.data
    return first, weights


def resample(
    rgb: NDArray[np.uint8], width: int, height: int, start: tuple[float, float], step: tuple[float, float]
) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] whose pixel (i, j) covers `step` input pixels from `start` + (i, j) * `step`.

    `start` and `step` are (x, y) in input pixels. Rounded to the nearest value.
    """
    if step == (1, 1) and all(float(value).is_integer() for value in start):
        x, y = round(start[0]), round(start[1])
        part = rgb[y : y + height, x : x + width]
        if part.shape[:2] == (height, width):
            return np.ascontiguousarray(part)
    if step == (2, 2) and all(float(value).is_integer() for value in start):
        x, y = round(start[0]), round(start[1])
        part = rgb[y : y + 2 * height, x : x + 2 * width]
        if min(x, y) >= 0 and part.shape[:2] == (2 * height, 2 * width):
            return _halved(part)
    across = axis_weights(width, start[0], step[0], rgb.shape[1])
    down = axis_weights(height, start[1], step[1], rgb.shape[0])
    out = np.empty((height, width, 3), np.uint8)
    row_bytes = rgb.shape[1] * 3 * np.dtype(np.float32).itemsize
    # Of each row of output: the rows of input that it takes, their mean, and its transpose.
    strip_rows = max(STRIP_ROWS, int(STRIP_BYTES / (row_bytes * (step[1] + 2))))
    for top in range(0, height, strip_rows):
        ends = down.indptr[top : top + strip_rows + 1]
        indices = down.indices[ends[0] : ends[-1]]
        first, last = int(indices.min()), int(indices.max()) + 1
        weights = csr_array(  # of the strip; slices of the matrix take longer to make
            (down.data[ends[0] : ends[-1]], indices - first, ends - ends[0]),
            shape=(len(ends) - 1, last - first),
        )
        strip = rgb[first:last].reshape(last - first, -1).astype(np.float32)
        rows = (weights @ strip).reshape(-1, rgb.shape[1], 3)
        for channel in range(3):
            mixed = across @ np.ascontiguousarray(rows[..., channel].T)  # [output columns, strip rows]
            mixed += 0.5
            out[top : top + len(rows), :, channel] = mixed.T
    return out


def _halved(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of each two by two pixels, rounded as `resample` does, in a quarter of its time."""
    height, width = rgb.shape[0] // 2, rgb.shape[1] // 2
    rows = np.add(rgb[0::2], rgb[1::2], dtype=np.uint16).reshape(height, width, 2, 3)
    out = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        out[..., channel] = (rows[:, :, 0, channel] + rows[:, :, 1, channel] + 2) >> 2
    return out
