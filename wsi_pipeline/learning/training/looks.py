"""How a slide comes to look as it does: focus, sensor and file format, the same for all patches of one slide.

These are done on the host, in bytes, before the patches are turned and stained: encoders have no form on a GPU that
torch knows of.
"""

from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsi_pipeline.base.images import through_jpeg
from wsi_pipeline.base.options import Field, options

Share = Annotated[float, Field(ge=0, le=1)]

# A JPEG's blocks of 8 px, two by two where chroma is halved.
_JPEG_UNIT = 16


@options
class LookOptions:
    """How far the look of a training slide may wander from what was scanned. All zero leaves patches as they are."""

    stain_spread: Annotated[float, Field(ge=0)] = 0.0
    """Spread (standard deviation of the logarithm) of how strong each stain of a slide is."""

    density_spread: Annotated[float, Field(ge=0)] = 0.0
    """The same of the optical density of each of R, G, B: other dyes, other filters."""

    light: Annotated[float, Field(ge=0)] = 0.0
    """Each of R, G, B gains or loses up to this optical density: lamp and white balance."""

    compressed: Share = 0.0
    """Share of the slides that are stored as JPEG once more, at the model's scale or finer."""

    quality: tuple[int, int] = (30, 95)
    """Least and highest JPEG quality, 1 to 100."""

    halved_chroma: Share = 0.7
    """Of the JPEGs, the share with chroma at half the resolution (4:2:0); the others keep it (4:4:4)."""

    finer: Share = 0.3
    """Of the JPEGs, the share that is stored at twice or four times the model's scale, and averaged after."""

    blurred: Share = 0.0
    """Share of the slides out of focus: a Gaussian."""

    blur_px: tuple[float, float] = (0.4, 1.2)
    """Its least and highest standard deviation, px at the model's scale."""

    noisy: Share = 0.0
    """Share of the slides with sensor noise: Gaussian, of each pixel."""

    noise: tuple[float, float] = (1.0, 6.0)
    """Its least and highest standard deviation, grey values of 255."""

    sharpened: Share = 0.0
    """Share of the slides sharpened, as scanners do: by an unsharp mask of 1 px."""

    sharpening: tuple[float, float] = (0.3, 1.0)
    """How much of the difference to the blurred patch is added, least and highest."""


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


def draw_look(options: LookOptions, random: np.random.Generator) -> Look:
    """The look of a slide."""

    def of(share: float, bounds: tuple[float, float]) -> float:
        happens, value = random.random() < share, random.uniform(*bounds)
        return value if happens else 0.0

    blur, sharpening = of(options.blurred, options.blur_px), of(options.sharpened, options.sharpening)
    noise = of(options.noisy, options.noise)
    stored = random.random() < options.compressed
    quality = int(random.integers(options.quality[0], options.quality[1] + 1))
    finer = int(random.choice([2, 2, 2, 4])) if random.random() < options.finer else 1
    halved = bool(random.random() < options.halved_chroma)
    offset = (int(random.integers(_JPEG_UNIT)), int(random.integers(_JPEG_UNIT)))
    return Look(blur, sharpening, noise, quality if stored else None, halved, finer, offset)


def looking(patches: NDArray[np.uint8], look: Look, random: np.random.Generator) -> NDArray[np.uint8]:
    """Patches of one slide, uint8 [n, S, S, 3], as the look shows them: focus, sharpening, noise, then the file."""
    if look.blur_px or look.sharpening or look.noise:
        values = patches.astype(np.float32)
        if look.blur_px:
            values = _blurred(values, look.blur_px)
        if look.sharpening:
            values += look.sharpening * (values - _blurred(values, 1.0))
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
    padded = -(-(side + max(offset)) // _JPEG_UNIT) * _JPEG_UNIT
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


def _blurred(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    blurred: NDArray[np.float32] = gaussian_filter(values, (0, sigma, sigma, 0), truncate=3.0)
    return blurred
