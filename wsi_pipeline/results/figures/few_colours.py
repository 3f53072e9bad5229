"""Photographs in 256 colours: less than half the bytes as a PNG, and hardly to be told from the whole by eye.

What is drawn on them keeps its colours: the scale of a map, black, white, greys, lines and stripes. Only the rest, the
tissue, takes those that its pixels fall into.
"""

import numpy as np
from matplotlib.colors import Colormap
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from wsi_pipeline.base.types import RgbImage

PALETTE_SIZE = 256
GREYS = 8
# The tissue's colours are those of every fourth row and column: they say as much as all.
STEP = 4
# What has no more colours is drawn, not photographed: it is small as it is.
FEW_COLOURS = 4096
# A look-up of nearest colours has cells of 8 values a channel.
BITS = 5


def in_few_colours(
    image: Image.Image, scale: Colormap | None, steps: int, lines: NDArray[np.uint8]
) -> Image.Image:
    """The picture in 256 colours where it has many, else as it is.

    scale, steps: the colours of a map on it, and how many of them are kept. lines: uint8 [n, 3], others that stay.
    """
    if image.mode != "RGB" or image.getcolors(FEW_COLOURS) is not None:
        return image
    pixels = np.asarray(image)
    kept = _kept(scale, steps, lines)
    sample = Image.fromarray(np.ascontiguousarray(pixels[::STEP, ::STEP]))
    found = sample.quantize(PALETTE_SIZE - len(kept), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    own = np.asarray(found.getpalette(), np.uint8).reshape(-1, 3)
    palette = np.concatenate([kept, own])[:PALETTE_SIZE]
    shown = Image.fromarray(_nearest(palette, len(kept))[_cells(pixels)], "P")
    shown.putpalette(palette.tobytes())
    return shown


def _kept(scale: Colormap | None, steps: int, lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
    greys = np.linspace(0, 255, GREYS).round().astype(np.uint8)[:, None].repeat(3, axis=1)
    colours = [scale(np.linspace(0, 1, steps), bytes=True)[:, :3]] if scale else []
    return np.unique(np.concatenate([lines, greys, *colours]), axis=0)


def _nearest(palette: NDArray[np.uint8], kept: int) -> NDArray[np.uint8]:
    """For each cell of colours the palette's entry; the cell of one that is kept is that one's."""
    side = np.arange(2**BITS) * 2 ** (8 - BITS) + 2 ** (7 - BITS)
    centres = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = KDTree(palette.astype(np.float32)).query(centres.astype(np.float32))[1].astype(np.uint8)
    nearest[_cells(palette[:kept])] = np.arange(kept)
    return np.asarray(nearest)


def _cells(colours: RgbImage) -> NDArray[np.int32]:
    """The cell of each colour, [..., 3]."""
    cells = (colours >> (8 - BITS)).astype(np.int32)
    return np.asarray((cells[..., 0] << 2 * BITS) | (cells[..., 1] << BITS) | cells[..., 2])
