"""What pictures and the report share: the colours of a map, a map on another plane, writing PNGs.

Probabilities are shown on one colour scale, 0 to 1, whatever a map holds: from dark green over green to yellow, none of
which is a colour of a haematoxylin and eosin stain, nor of glass. Its lightness grows evenly with the probability, it
survives every kind of colour blindness and a grey printer. scripts/results/measure_colours.py measures it beside
others. Where nothing was scored there is no colour at all.
"""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap
from PIL import Image

from wsi_pipeline.base.files import OutPath, write_bytes
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.images import png_bytes
from wsi_pipeline.base.types import FloatMap, RgbImage
from wsi_pipeline.results.figures.few_colours import in_few_colours

# Stops at even steps to the eye (CIEDE2000).
COLOURS = LinearSegmentedColormap.from_list(
    "green_yellow",
    ["#00241a", "#003a1a", "#00561a", "#1a721a", "#3d8c1a", "#63a51c", "#94c123", "#c6d92d", "#fff03a"],
)
# Of uncertainty, which must not be taken for a probability, nor for tissue: pale where models agree.
UNCERTAINTY_COLOURS = LinearSegmentedColormap.from_list("teal", ["#e8ffff", "#00687a"])
# The largest standard deviation that numbers between 0 and 1 can have.
LARGEST_DEVIATION = 0.5

# Of the palette of Okabe and Ito (2008), made to be distinguished with any colour vision.
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
GREEN, YELLOW, SKY = "#009E73", "#F0E442", "#56B4E9"
BLACK, GREY, WHITE = "#000000", "#777777", "#FFFFFF"


def colour(heatmap: FloatMap) -> RgbImage:
    """The map as RGBA bytes [y, x, 4]: 0 to 1 from dark green to yellow, wholly transparent where NaN."""
    return _coloured(heatmap, COLOURS)


def colour_uncertainty(deviation: FloatMap) -> RgbImage:
    """Standard deviations as RGBA bytes [y, x, 4]: 0 to 0.5 from white to dark teal, transparent where NaN."""
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


def write_png(
    path: OutPath,
    image: Image.Image,
    scale: Colormap | None = None,
    steps: int = 64,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write the picture: a reader sees the old picture or the new one, never half of one. Raises OutputError.

    A photograph is written in 256 colours (few_colours.py). scale: the colours of a map on it, which it keeps in so
    many steps: 64 where they can be read off. texts: what else the file says of itself, by keyword.
    """
    names = (BLUE, ORANGE, VERMILLION, GREY, GREEN, YELLOW, SKY)
    lines = np.array([list(bytes.fromhex(name[1:])) for name in names], np.uint8)
    write_bytes(path, png_bytes(in_few_colours(image, scale, steps, lines), texts=texts))
