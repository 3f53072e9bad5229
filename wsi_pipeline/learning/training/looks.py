"""How a training slide comes to look as it does: stain, light, focus, sensor and file, the same for all its patches."""

from typing import Annotated

import numpy as np

from wsi_pipeline.base.options import Field, options
from wsi_pipeline.learning.datasets.scanner_effects import JPEG_UNIT_PX, Look

Share = Annotated[float, Field(ge=0, le=1)]


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
    offset = (int(random.integers(JPEG_UNIT_PX)), int(random.integers(JPEG_UNIT_PX)))
    return Look(blur, sharpening, noise, quality if stored else None, halved, finer, offset)
