"""Nuclei on haematoxylin and eosin, found as dark round blobs of haematoxylin, to see where cells lie densest.

Haematoxylin is taken apart from eosin by colour deconvolution (Ruifrok and Johnston 2001, with scikit-image's vectors).
A nucleus is a maximum of the Laplacian of a Gaussian of it (Lindeberg 1998): at one size, for what is asked is how many
there are, not how large. Light, tint of glass and background stain are sums in optical density, and drop out of a
Laplacian. How strongly a nucleus answers goes with the stain: what counts as one is a share of what the strongest of
the slide answer, so that fibres of a dark slide are none, and nuclei of a pale one are.

`scripts/results/measure_nuclei.py` measures it on fields in which nuclei were drawn; docs/fields.md has the errors.
What it counts: every nucleus, of lymphocytes and stroma too. What it does not know: mitoses.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from wsi_pipeline.base.types import RgbImage

# um per pixel of what is read, 20x; and of what blobs are sought on: the mean of two by two, which loses nothing of
# blobs of this size, and takes a quarter of the time.
COUNT_MPP = 0.5
BLOB_MPP = 2 * COUNT_MPP
# A slide coarser than this has too few pixels a nucleus: enlarged from 1 um per pixel, the errors are still the same.
COARSEST_MPP = 1.0


@dataclass(frozen=True)
class BlobRule:
    """What counts as a nucleus. Answers of the Laplacian are in units of scikit-image's deconvolution."""

    sigma_um: float = 2.0
    """Of the Gaussian: the Laplacian answers most to discs of 1.4 times that radius, nuclei of 5.7 um."""

    nearest_um: float = 3.0
    """The nearest that the centres of two nuclei lie."""

    clear_answer: float = 0.005
    """What answers more is no noise: of these, the 95th percentile is what the slide's strongest nuclei answer."""

    least_share: float = 0.21
    """Of that: what answers less is no nucleus."""


NUCLEI = BlobRule()
STRONGEST_PERCENTILE = 95
# Answers below this are noise however pale the slide.
NOISE_ANSWER = 0.0025
# Pixels of COUNT_MPP around a place that decide what is found in it.
REACH_PX = 2 * (round(4 * NUCLEI.sigma_um / BLOB_MPP) + round(NUCLEI.nearest_um / BLOB_MPP) + 1)


@dataclass(frozen=True, eq=False)
class Blobs:
    """Dark round spots, of which those that answer enough are nuclei."""

    xy: NDArray[np.float64]
    """Centres, [n, 2] (x, y), in row order."""

    answers: NDArray[np.float32]
    """[n]."""


def find_blobs(rgb: RgbImage, rule: BlobRule = NUCLEI) -> Blobs:
    """The dark round spots of a picture, in pixels from its upper left corner.

    rgb: uint8 [row, column, 3] at `COUNT_MPP`. A last odd row or column is not looked at.
    """
    density = haematoxylin(rgb)
    if not density.size:
        return Blobs(np.empty((0, 2)), np.empty(0, np.float32))
    sigma = rule.sigma_um / BLOB_MPP
    answer = -(sigma**2) * ndimage.gaussian_laplace(density, sigma, mode="nearest")
    found = _peaks(answer, round(rule.nearest_um / BLOB_MPP))
    xy = np.asarray((found[:, ::-1] + 0.5) * (BLOB_MPP / COUNT_MPP), np.float64)
    return Blobs(xy, answer[found[:, 0], found[:, 1]])


def _peaks(answer: NDArray[np.float32], nearest: int) -> NDArray[np.intp]:
    """Where the answer is highest within `nearest` pixels, [n, 2] (row, column) in row order."""
    highest = ndimage.maximum_filter(answer, 2 * nearest + 1, mode="nearest")
    found = np.argwhere((answer == highest) & (answer > NOISE_ANSWER))
    if not len(found) or not KDTree(found).query_pairs(nearest - 1, p=np.inf):
        return found
    # Equals beside each other, which pixels hardly ever are: all this for them alone takes as long as the rest.
    from skimage.feature import peak_local_max

    found = peak_local_max(answer, min_distance=nearest, threshold_abs=NOISE_ANSWER, exclude_border=False)
    return np.asarray(found[np.lexsort((found[:, 1], found[:, 0]))])


def least_answer(answers: NDArray[np.float32], rule: BlobRule = NUCLEI) -> float:
    """What a blob must answer to be a nucleus; `answers` are those of all that is looked at of the slide."""
    clear = answers[answers > rule.clear_answer]
    if not clear.size:
        return rule.clear_answer
    return max(NOISE_ANSWER, rule.least_share * float(np.percentile(clear, STRONGEST_PERCENTILE)))


def haematoxylin(rgb: RgbImage) -> NDArray[np.float32]:
    """How much haematoxylin lies at each two by two pixels, float32 [row, column], in scikit-image's units.

    Nothing is cut off at 0: what is paler than the glass, or all eosin, is negative.
    """
    height, width = (n // 2 * 2 for n in rgb.shape[:2])
    red, green, blue = _tables()
    rgb = rgb[:height, :width]
    density = red[rgb[..., 0]] + green[rgb[..., 1]] + blue[rgb[..., 2]]
    rows = density[::2] + density[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2]) / 4, np.float32)


@cache
def _tables() -> NDArray[np.float32]:
    """What each value of red, green and blue adds to haematoxylin, float32 [3, 256].

    `skimage.color.rgb2hed` by look-up: the same sums in a twentieth of its time.
    """
    from skimage.color import hed_from_rgb

    log = np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)
    return np.asarray(hed_from_rgb[:, 0][:, None] * log, np.float32)
