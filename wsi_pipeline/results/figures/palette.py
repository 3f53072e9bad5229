"""What pictures and the report share: the colours of a map, a map on another plane, text, writing PNGs.

Probabilities are shown on one colour scale, 0 to 1, whatever a map holds: viridis from a quarter of it on. Its
lightness grows evenly with the probability, and it survives every kind of colour blindness and a grey printer. Its blue,
green and yellow are no colours of a haematoxylin and eosin stain, as the dark violet that viridis begins with is:
scripts/results/measure_colours.py measures the distances. Where nothing was scored there is no colour at all.
"""

import math
from functools import cache

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import Colormap, ListedColormap
from PIL import Image, ImageFont

from wsi_pipeline.base.files import OutPath, write_bytes
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.images import png_bytes
from wsi_pipeline.base.types import FloatMap, RgbImage

COLOURS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.25, 1, 256)), "viridis_upper")
# Of uncertainty, which must not be taken for a probability, nor for tissue: white where models agree, then grey.
UNCERTAINTY_COLOURS = ListedColormap(matplotlib.colormaps["bone"](np.linspace(1, 0.4, 256)), "bone_upper_r")
# The largest standard deviation that numbers between 0 and 1 can have.
LARGEST_DEVIATION = 0.5

# Of the palette of Okabe and Ito (2008), made to be distinguished with any colour vision.
BLUE, ORANGE = "#0072B2", "#E69F00"
BLACK, GREY, WHITE = "#000000", "#777777", "#FFFFFF"


def colour(heatmap: FloatMap) -> RgbImage:
    """The map as RGBA bytes [y, x, 4]: 0 to 1 from blue to yellow, wholly transparent where NaN."""
    return _coloured(heatmap, COLOURS)


def colour_uncertainty(deviation: FloatMap) -> RgbImage:
    """Standard deviations as RGBA bytes [y, x, 4]: 0 to 0.5 from white to grey, transparent where NaN."""
    return _coloured(deviation / LARGEST_DEVIATION, UNCERTAINTY_COLOURS)


def _coloured(shares: FloatMap, colours: Colormap) -> RgbImage:
    # A table of the scale's colours, and after them none: a look-up is ten times as fast as matplotlib's own.
    table = np.zeros((colours.N + 1, 4), np.uint8)
    table[:-1] = colours(np.arange(colours.N), bytes=True)
    step = np.clip(np.nan_to_num(shares) * colours.N, 0, colours.N - 1).astype(np.int16)
    return table[np.where(np.isfinite(shares), step, colours.N)]


def sample(heatmap: FloatMap, plane: Plane, target: Plane, shape: tuple[int, int]) -> FloatMap:
    """The map on another plane: for each pixel the mean of the scored cells under it, NaN if there is none.

    A pixel smaller than a cell takes the cell at its centre.
    """
    steps_x = math.ceil(target.downsample_x / plane.downsample_x)
    steps_y = math.ceil(target.downsample_y / plane.downsample_y)
    total, count = np.zeros(shape, np.float64), np.zeros(shape, np.int32)
    for step_y in range(steps_y):
        for step_x in range(steps_x):
            x = np.arange(shape[1]) + (step_x + 0.5) / steps_x
            y = np.arange(shape[0]) + (step_y + 0.5) / steps_y
            x0 = target.origin_x0 + x * target.downsample_x
            y0 = target.origin_y0 + y * target.downsample_y
            columns = np.floor((x0 - plane.origin_x0) / plane.downsample_x).astype(np.int64)
            rows = np.floor((y0 - plane.origin_y0) / plane.downsample_y).astype(np.int64)
            inside_x = (columns >= 0) & (columns < heatmap.shape[1])
            inside_y = (rows >= 0) & (rows < heatmap.shape[0])
            under = np.full(shape, np.nan, np.float32)
            under[np.ix_(inside_y, inside_x)] = heatmap[np.ix_(rows[inside_y], columns[inside_x])]
            scored = np.isfinite(under)
            total[scored] += under[scored]
            count[scored] += 1
    mean = np.full(shape, np.nan, np.float32)
    np.divide(total, count, out=mean, where=count > 0, casting="same_kind")
    return mean


@cache
def font_of(size_px: int) -> ImageFont.FreeTypeFont:
    """The font of all text, so many pixels high."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size_px)


def printable(text: str) -> str:
    """The text with what the font cannot show (control characters, some scripts) as '?'."""
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(c if c == " " or (c.isprintable() and ord(c) in known) else "?" for c in text)


def shorten(text: str, width_in: float, size_pt: float) -> str:
    """The text, its middle left out where it would be wider than `width_in`: names differ at both ends."""
    text = printable(text)
    font = font_of(100)

    def fits(candidate: str) -> bool:
        return font.getlength(candidate) / 100 * size_pt / 72 <= width_in

    keep = len(text)
    shortened = text
    while keep > 2 and not fits(shortened):
        keep -= 1
        shortened = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return shortened


def write_png(path: OutPath, image: Image.Image) -> None:
    """Write the picture: a reader sees the old picture or the new one, never half of one. Raises OutputError."""
    write_bytes(path, png_bytes(image))
