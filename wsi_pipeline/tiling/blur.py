"""Where tissue is out of focus, as far as one low-power plane shows.

Blur takes fine detail before coarse. So it shows in the ratio of the two, which neither the strength of the stain nor
the kind of tissue changes much: what a Gaussian of one pixel takes away, against what one of two pixels takes away
beyond that. Both are standard deviations over a window, as in measures of focus by the energy of a Laplacian
(Pertuz, Puig and Garcia 2013).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.base.types import Mask, RgbImage

# Tissue nearer to its rim, in pixels, is not looked at: the wider Gaussian of the step to glass reaches so far.
RIM_PX = 6
# Least share of a window that must be such tissue.
LEAST_TISSUE = 0.3
# Rows of a plane that are filtered at a time, and what the wider Gaussian reaches beyond them.
STRIP_ROWS, REACH = 512, 8
BLOCK_UM = 50.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_Sums = NDArray[np.floating[Any]]


def find_blur(
    rgb: RgbImage, mpp: tuple[float, float], tissue: Mask, least_sharpness: float, window_um: float
) -> Mask:
    """Tissue out of focus, bool [row, col].

    rgb: the whole plane, uint8 [row, col, 3]. mpp: micrometres per pixel of it, along x and along y.
    tissue: [row, col], what is looked at. Tissue in windows that hold too little of it is never out of focus.
    least_sharpness: the ratio of fine to coarse detail from which a window is in focus.
    window_um: side of the square windows over which it is measured.
    """
    block = (max(1, round(BLOCK_UM / mpp[1])), max(1, round(BLOCK_UM / mpp[0])))
    window = [2 * round(window_um / (2 * size * um)) + 1 for size, um in zip(block, mpp[::-1], strict=True)]
    inner = ndimage.binary_erosion(tissue, iterations=RIM_PX)
    fine, coarse, count = (
        ndimage.uniform_filter(sums, window, mode="constant") for sums in _detail(rgb, inner, block)
    )
    blurred = (fine < least_sharpness**2 * coarse) & (count > LEAST_TISSUE * block[0] * block[1])
    # A window counts as out of focus where nearly all of it is: so is the tissue in it.
    whole = ndimage.maximum_filter(blurred, window, mode="constant")
    of_pixels = whole.repeat(block[0], axis=0).repeat(block[1], axis=1)
    return np.asarray(of_pixels[: tissue.shape[0], : tissue.shape[1]] & tissue)


def _detail(rgb: RgbImage, inner: Mask, block: tuple[int, int]) -> tuple[_Sums, _Sums, _Sums]:
    """By block, float64 [row, col]: the energy of fine and of coarse detail in the tissue, and its pixels."""
    rows = max(1, STRIP_ROWS // block[0]) * block[0]

    def of_strip(top: int) -> list[_Sums]:
        reach = slice(max(0, top - REACH), top + rows + REACH)
        own = slice(top - reach.start, top - reach.start + rows)
        grey = rgb[reach] @ _LUMA
        smooth = ndimage.gaussian_filter(grey, 1)
        smoother = ndimage.gaussian_filter(grey, 2)
        weight = inner[top : top + rows]
        fine = (grey - smooth)[own] ** 2 * weight
        coarse = (smooth - smoother)[own] ** 2 * weight
        return [block_sums(values, block) for values in (fine, coarse, weight)]

    with ThreadPoolExecutor(2, thread_name_prefix="blur") as pool:
        found = list(pool.map(of_strip, range(0, len(rgb), rows)))
    fine, coarse, count = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return fine, coarse, count


def block_sums(values: NDArray[Any], block: tuple[int, int]) -> _Sums:
    """The sum of each block of so many rows and columns, float64; at the plane's end of fewer."""
    by_row = np.add.reduceat(values, np.arange(0, values.shape[0], block[0]), axis=0, dtype=np.float64)
    return np.asarray(np.add.reduceat(by_row, np.arange(0, values.shape[1], block[1]), axis=1))
