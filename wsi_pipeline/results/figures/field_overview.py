"""The slide around its regions, with what fields for grading were chosen by: the upper left picture of fields.png."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import shapely
from PIL import Image, ImageDraw

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.types import FloatMap, RgbImage
from wsi_pipeline.results.fields import GradingField, HotSpot
from wsi_pipeline.results.figures.fonts import draw_text, text_width
from wsi_pipeline.results.figures.palette import BLACK, BLUE, ORANGE, WHITE, sample
from wsi_pipeline.results.figures.scale_bar import length_text, round_length
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.nuclei import Cellularity
from wsi_pipeline.tiling.overview import Thumbnail

# Of nuclei: no blue, orange or haematoxylin. So many of its colours are told apart.
NUCLEI_COLOURS = matplotlib.colormaps["YlGn"]
NUCLEI_STEPS = 16
# How much of the tissue's own colour is left under them.
TISSUE_SHARE = 0.3


def draw_field_overview(
    thumbnail: Thumbnail,
    finished: FinishedMap,
    mpp0: tuple[float, float],
    size: tuple[int, int],
    text_px: int,
) -> Image.Image:
    """The slide around regions, fields and hot spots, with the nuclei that were counted, as large as fits into `size`.

    Below it, three lines of text high, a scale bar. text_px: the height of text, in pixels. mpp0: um per level-0 pixel,
    along x and y.
    """
    choice, plane = finished.choice, thumbnail.plane
    circles: list[GradingField | HotSpot] = [*choice.hot_spots, *choice.fields]
    left, top, right, bottom = _part(thumbnail, finished, circles)
    um = (plane.downsample_x * mpp0[0], plane.downsample_y * mpp0[1])
    scale = min(size[0] / ((right - left) * um[0]), size[1] / ((bottom - top) * um[1]))  # pixels a um
    width, height = (max(1, int(n * u * scale)) for n, u in ((right - left, um[0]), (bottom - top, um[1])))
    picture = Image.fromarray(thumbnail.rgb).resize(
        (width, height), Image.Resampling.BICUBIC, (left, top, right, bottom)
    )
    target = Plane(
        plane.downsample_x * (right - left) / width,
        plane.downsample_y * (bottom - top) / height,
        *plane.point_to_level0(left, top),
    )
    if choice.cellularity is not None:
        picture = _with_nuclei(picture, choice.cellularity, target, mpp0)
    draw, line = ImageDraw.Draw(picture), max(2, text_px // 10)
    for region in finished.regions:
        for ring in shapely.get_rings(shapely.get_parts(region.polygon)):
            points = [target.point_from_level0(x0, y0) for x0, y0 in shapely.get_coordinates(ring)]
            draw.line(points, fill=BLACK, width=line, joint="curve")
    for circle in circles:
        box = (
            *target.point_from_level0(circle.x0 - circle.radius_x0, circle.y0 - circle.radius_y0),
            *target.point_from_level0(circle.x0 + circle.radius_x0, circle.y0 + circle.radius_y0),
        )
        draw_circle(draw, box, BLUE if isinstance(circle, GradingField) else ORANGE, line + 1)
    for field in choice.fields:
        x, y = target.point_from_level0(field.x0, field.y0 - field.radius_y0)
        if 2 * field.radius_x0 / target.downsample_x < 4 * text_px:  # above a small circle, else on its rim
            y -= 0.8 * text_px
        _number(picture, (x, y), field.name.removeprefix("Field "), text_px)
    # Below, for fields lie anywhere.
    whole = Image.new("RGB", (width, height + 3 * text_px), WHITE)
    whole.paste(picture, (0, 0))
    scale_bar(whole, round_length(max(width, 10) / 4 / scale / 1000), scale, text_px)
    return whole


def nuclei_bar(width_px: int, height_px: int) -> Image.Image:
    """The colours of nuclei from none to the most, as they are over pale tissue."""
    shares = np.linspace(0, 1, width_px, dtype=np.float32)[None, :].repeat(height_px, axis=0)
    return Image.fromarray(_over(np.full((height_px, width_px, 3), 255, np.uint8), shares))


def most_nuclei(cellularity: Cellularity, mpp0: tuple[float, float]) -> float:
    """The end of the colour scale, nuclei per mm2: a round number that few cells exceed."""
    counted = cellularity.per_mm2(mpp0)[cellularity.counted]
    high = float(np.percentile(counted, 99)) if counted.size else 0.0
    return max(1_000.0, 1_000.0 * math.ceil(high / 1_000))


def draw_circle(
    draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], fill: str, width: int
) -> None:
    """A circle in a rim of white, by which it is seen on any tissue."""
    rim = max(1, width // 2)
    draw.ellipse(
        (box[0] - rim, box[1] - rim, box[2] + rim, box[3] + rim), outline=WHITE, width=width + 2 * rim
    )
    draw.ellipse(box, outline=fill, width=width)


def scale_bar(image: Image.Image, length_mm: float, pixels_a_um: float, text_px: int) -> None:
    """A bar of that length in the lower left corner, and its length, on white."""
    draw, text = ImageDraw.Draw(image), length_text(length_mm)
    length, gap = length_mm * 1000 * pixels_a_um, text_px // 2
    right = 2 * gap + max(length, text_width(text, text_px))
    draw.rectangle((0, image.height - 2 * text_px - gap, right, image.height), fill=WHITE)
    draw_text(image, (gap, image.height - 2 * text_px), text, text_px, BLACK)
    bottom = image.height - gap
    draw.rectangle((gap, bottom - text_px // 5, gap + length - 1, bottom), fill=BLACK)


def _number(picture: Image.Image, middle: tuple[float, float], text: str, text_px: int) -> None:
    """A number in white on blue; wholly on the picture."""
    width, height = text_width(text, text_px) + text_px / 2, 1.3 * text_px
    left = float(np.clip(middle[0] - width / 2, 0, max(0.0, picture.width - width)))
    top = float(np.clip(middle[1] - height / 2, 0, max(0.0, picture.height - height)))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((left, top, left + width, top + height), text_px / 4, fill=BLUE, outline=WHITE)
    draw_text(picture, (left + text_px / 4, top), text, text_px, WHITE)


def _part(
    thumbnail: Thumbnail, finished: FinishedMap, circles: Sequence[GradingField | HotSpot]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what the overview shows, in the thumbnail's pixels."""
    height, width = thumbnail.shape
    if not finished.regions:
        return 0.0, 0.0, float(width), float(height)
    bounds = [region.polygon.bounds for region in finished.regions]
    bounds += [
        (c.x0 - c.radius_x0, c.y0 - c.radius_y0, c.x0 + c.radius_x0, c.y0 + c.radius_y0) for c in circles
    ]
    lefts, tops, rights, bottoms = zip(*bounds, strict=True)
    left, top = thumbnail.plane.point_from_level0(min(lefts), min(tops))
    right, bottom = thumbnail.plane.point_from_level0(max(rights), max(bottoms))
    around = 0.06 * max(right - left, bottom - top)
    left, top = max(0.0, left - around), max(0.0, top - around)
    right, bottom = min(float(width), right + around), min(float(height), bottom + around)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _with_nuclei(
    picture: Image.Image, cellularity: Cellularity, target: Plane, mpp0: tuple[float, float]
) -> Image.Image:
    """Nuclei per mm2 over the picture, where they were counted."""
    shown = sample(cellularity.per_mm2(mpp0), cellularity.plane, target, (picture.height, picture.width))
    shares = (shown / most_nuclei(cellularity, mpp0)).astype(np.float32)
    return Image.fromarray(_over(np.asarray(picture), shares))


def _over(rgb: RgbImage, shares: FloatMap) -> RgbImage:
    """The colours of nuclei over a picture, [y, x, 3]; shares of the most, [y, x], the picture alone where NaN."""
    table = np.asarray(NUCLEI_COLOURS(np.linspace(0, 1, NUCLEI_STEPS))[:, :3] * 255, np.float32)
    there = np.isfinite(shares)
    step = np.clip(shares[there] * NUCLEI_STEPS, 0, NUCLEI_STEPS - 1).astype(np.intp)
    blended = rgb.copy()
    blended[there] = TISSUE_SHARE * rgb[there] + (1 - TISSUE_SHARE) * table[step]
    return blended
