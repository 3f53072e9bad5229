"""What focus, sensor and file format make of patches: scanners' and encoders' marks, put on pixels in memory.

Done on the host, in bytes: encoders have no form on a GPU that torch knows of.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsi_pipeline.base.images import through_jpeg

# A JPEG's blocks of 8 px, two by two where chroma is halved.
JPEG_UNIT_PX = 16


class Look(NamedTuple):
    """Focus, sensor and file of one slide; zero or None: left as it is."""

    blur_px: float = 0.0
    sharpening: float = 0.0
    noise: float = 0.0
    quality: int | None = None
    halved_chroma: bool = True
    # How many pixels of the stored JPEG a side of a pixel has.
    finer: int = 1
    # Where the JPEG's blocks of 8 px begin, 0 to 15 px above and left of the patch.
    offset: tuple[int, int] = (0, 0)


def looking(patches: NDArray[np.uint8], look: Look, random: np.random.Generator) -> NDArray[np.uint8]:
    """Patches of one slide, uint8 [n, S, S, 3], as the look shows them: focus, sharpening, noise, then the file."""
    if look.blur_px or look.sharpening or look.noise:
        values = patches.astype(np.float32)
        if look.blur_px:
            values = blurred(values, look.blur_px)
        if look.sharpening:
            values += look.sharpening * (values - blurred(values, 1.0))
        if look.noise:
            values += look.noise * random.standard_normal(values.shape, dtype=np.float32)
        patches = values.round().clip(0, 255).astype(np.uint8)
    if look.quality is not None:
        patches = as_jpeg(patches, look.quality, look.halved_chroma, look.finer, look.offset)
    return patches


def as_jpeg(
    patches: NDArray[np.uint8],
    quality: int,
    halved_chroma: bool = True,
    finer: int = 1,
    offset: tuple[int, int] = (0, 0),
) -> NDArray[np.uint8]:
    """Patches, uint8 [n, S, S, 3], as a JPEG of `finer` times their scale gives them back, averaged to their scale.

    The JPEG's blocks begin `offset` (down, right) px before each patch; the patches do not touch each other there.
    """
    n, side = patches.shape[:2]
    down, right = offset
    padded = -(-(side + max(offset)) // JPEG_UNIT_PX) * JPEG_UNIT_PX
    pad = ((0, 0), (down, padded - side - down), (right, padded - side - right), (0, 0))
    image = np.pad(patches, pad, mode="symmetric").reshape(n * padded, padded, 3)
    if finer > 1:
        rows, columns = image.shape[:2]
        larger = Image.fromarray(image).resize((columns * finer, rows * finer), Image.Resampling.BICUBIC)
        image = np.asarray(larger)
    stored = []
    # A JPEG has at most 65,500 rows.
    at_once = max(1, 65_000 // (padded * finer)) * padded * finer
    for start in range(0, len(image), at_once):
        stored.append(through_jpeg(image[start : start + at_once], quality, halved_chroma))
    image = np.concatenate(stored)
    if finer > 1:
        image = np.asarray(Image.fromarray(image).reduce(finer))
    there = image.reshape(n, padded, padded, 3)[:, down : down + side, right : right + side]
    return np.ascontiguousarray(there)


def blurred(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Patches of any values, float32 [n, S, S, 3], after a Gaussian of that standard deviation in px."""
    soft: NDArray[np.float32] = gaussian_filter(values, (0, sigma, sigma, 0), truncate=3.0)
    return soft
