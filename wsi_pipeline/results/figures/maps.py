"""Pictures of what was found: the tissue, the map, the map on the slide, and how far models are apart on it.

Pictures smaller than `LEAST_PX` are enlarged by a whole factor, each pixel to a square, so that a map of a
few cells can be looked at.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import shapely
from PIL import Image, ImageDraw, ImageFont

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.types import FloatMap, Mask, RgbImage
from wsi_pipeline.results.figures.palette import (
    BLACK,
    BLUE,
    GREY,
    LARGEST_DEVIATION,
    ORANGE,
    WHITE,
    colour,
    colour_uncertainty,
    font_of,
    printable,
    sample,
    write_png,
)
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.tiling.overview import Thumbnail

LEAST_PX = 800


def render_tissue(
    path: OutPath, thumbnail: RgbImage, tissue: Mask, rejected: Mask | None, reason: str | None
) -> None:
    """Write the thumbnail with the outline of what was kept, and hatching where tissue was rejected.

    thumbnail: [H, W, 3]; tissue, rejected: [H, W] of the same grid; kept is tissue that was not rejected.
    reason: why little or nothing was kept, written below; None when all went well.
    """
    factor = _enlargement(thumbnail.shape)
    kept = tissue if rejected is None else tissue & ~rejected
    picture = _enlarge(thumbnail, factor).copy()
    line_px = max(2, round(max(picture.shape) / 500))
    if rejected is not None:
        rows, columns = np.indices(picture.shape[:2])
        stripes = (rows + columns) // line_px % 4 == 0
        picture[stripes & _enlarge(rejected, factor)] = _rgb(ORANGE)
    inside = _enlarge(kept, factor)
    picture[_rim(inside, 2 * line_px)] = _rgb(WHITE)
    picture[_rim(inside, line_px)] = _rgb(BLUE)

    font = _key_font(picture)
    key = [
        _swatch(BLUE, "outline of the tissue kept", font) if kept.any() else _label("no tissue kept", font)
    ]
    if rejected is not None and rejected.any():
        key.append(_swatch(ORANGE, "rejected: tissue that is not scored", font))
    write_png(path, _with_key(picture, key, reason))


def render_heatmap(path: OutPath, heatmap: FloatMap) -> None:
    """Write the map alone, RGBA: a cell is a square of whole pixels, transparent where not scored."""
    write_png(path, Image.fromarray(_enlarge(colour(heatmap), _enlargement(heatmap.shape))))


def render_overlay(path: OutPath, thumbnail: Thumbnail, finished: FinishedMap) -> None:
    """Write the map blended on the thumbnail, with the outlines of regions, and the colour scale below.

    The thumbnail is left as it is where nothing was scored; low probabilities tint it, high ones cover it.
    """
    rgb = thumbnail.rgb
    sampled = sample(finished.heatmap, finished.plane, thumbnail.plane, thumbnail.shape)
    scored = np.isfinite(sampled)
    opacity = np.where(scored, 0.12 + 0.35 * np.clip(np.nan_to_num(sampled), 0, 1), 0).astype(np.float32)
    blended = rgb + (colour(sampled)[:, :, :3] - rgb.astype(np.float32)) * opacity[:, :, None]
    factor = _enlargement(thumbnail.shape)
    picture = _enlarge(np.round(blended).astype(np.uint8), factor).copy()
    picture[_rim(_enlarge(scored, factor), 1)] = _rgb(GREY)

    outlined = _with_outlines(picture, finished.regions, thumbnail.plane, factor)
    font = _key_font(picture)
    key = [
        _scale("probability of IDC", 1, colour, font),
        _swatch(BLACK, "outline of an IDC region", font),
        _swatch(GREY, "edge of what was scored", font),
        _label(f"map: {finished.kind}", font),
    ]
    write_png(path, _with_key(outlined, key, None))


def render_uncertainty(
    path: OutPath, thumbnail: Thumbnail, deviation: FloatMap, finished: FinishedMap, models: int
) -> None:
    """Write the standard deviation between so many `models` over the thumbnail, with the outlines of regions.

    deviation: of the cells of the finished map. Pixels are those of the overlay. The thumbnail shows where nothing
    was scored; elsewhere the colour covers it, so that it can be read off the scale below.
    """
    rgba = colour_uncertainty(sample(deviation, finished.plane, thumbnail.plane, thumbnail.shape))
    scored = rgba[:, :, 3] > 0
    factor = _enlargement(thumbnail.shape)
    picture = _enlarge(np.where(scored[:, :, None], rgba[:, :, :3], thumbnail.rgb), factor).copy()
    picture[_rim(_enlarge(scored, factor), 1)] = _rgb(GREY)
    font = _key_font(picture)
    key = [
        _scale(f"standard deviation between {models} models", LARGEST_DEVIATION, colour_uncertainty, font),
        _swatch(BLACK, "outline of an IDC region", font),
        _swatch(GREY, "edge of what was scored", font),
    ]
    outlined = _with_outlines(picture, finished.regions, thumbnail.plane, factor)
    write_png(path, _with_key(outlined, key, None))


def _enlargement(shape: tuple[int, ...]) -> int:
    """The least whole factor that makes the longer side `LEAST_PX` or more."""
    return max(1, math.ceil(LEAST_PX / max(1, *shape[:2])))


def _enlarge(array: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def _rim(mask: Mask, width_px: int) -> Mask:
    """The pixels of the mask within `width_px` of its outside; the picture's edge is outside too."""
    return np.asarray(mask & ~scipy.ndimage.binary_erosion(mask, iterations=width_px), np.bool_)


def _rgb(colour_name: str) -> npt.NDArray[np.uint8]:
    return np.array([int(colour_name[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)


def _with_outlines(picture: RgbImage, regions: Sequence[IdcRegion], plane: Plane, factor: int) -> RgbImage:
    """The picture, each of its pixels' `factor` squared of `plane`, with the outlines of regions on it."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    rings = [
        [(x * factor, y * factor) for x, y in _ring_on(ring, plane)]
        for region in regions
        for ring in shapely.get_rings(shapely.get_parts(region.polygon))
    ]
    # Many regions are small ones: thick lines would hide them.
    line_px = max(2, round(max(picture.shape) / 600)) if len(regions) <= 100 else 1
    for fill, width in ((WHITE, line_px + 2), (BLACK, line_px)):
        for ring in rings:
            draw.line(ring, fill=fill, width=width, joint="curve")
    return np.asarray(image)


def _ring_on(ring: shapely.LinearRing, plane: Plane) -> list[tuple[float, float]]:
    return [plane.point_from_level0(x0, y0) for x0, y0 in ring.coords]


# --- the strip below a picture --------------------------------------------------------------------------


def _key_font(picture: RgbImage) -> ImageFont.FreeTypeFont:
    return font_of(int(np.clip(max(picture.shape) / 70, 15, 26)))


def _with_key(picture: RgbImage, key: Sequence[Image.Image], note: str | None) -> Image.Image:
    """The picture, its upper left corner kept, with the key's pieces in rows below, then the note's lines."""
    font = _key_font(picture)
    gap = int(font.size)
    width = max(picture.shape[1], 30 * gap)
    lines = textwrap.wrap(printable(note or ""), max(20, int((width - 2 * gap) / (0.62 * gap))))
    pieces = [*key, *(_label(line, font) for line in lines)]
    places, x, y = [], gap, gap // 2
    for i, piece in enumerate(pieces):
        if x > gap and (x + piece.width > width - gap or i >= len(key)):
            x, y = gap, y + 2 * gap
        places.append((x, picture.shape[0] + y))
        x += piece.width + 2 * gap
    canvas = Image.new("RGB", (width, picture.shape[0] + y + 2 * gap), WHITE)
    canvas.paste(Image.fromarray(picture), (0, 0))
    for piece, place in zip(pieces, places, strict=True):
        canvas.paste(piece, place)
    return canvas


def _label(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    piece = Image.new("RGB", (math.ceil(font.getlength(text)) + 1, int(1.5 * font.size)), WHITE)
    ImageDraw.Draw(piece).text((0, 0), text, fill=BLACK, font=font)
    return piece


def _swatch(fill: str, text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    side, label = int(font.size), _label(text, font)
    piece = Image.new("RGB", (2 * side + label.width, label.height), WHITE)
    ImageDraw.Draw(piece).rectangle((0, side // 4, int(1.5 * side), side), fill=fill)
    piece.paste(label, (2 * side, 0))
    return piece


def _scale(
    title: str, highest: float, colours: Callable[[FloatMap], RgbImage], font: ImageFont.FreeTypeFont
) -> Image.Image:
    """A colour bar from 0 to `highest`."""
    side = int(font.size)
    before, after = _label(f"{title}  0", font), _label(f"{highest:g}", font)
    bar = colours(np.linspace(0, highest, 12 * side, dtype=np.float32)[None])[:, :, :3].repeat(side, axis=0)
    piece = Image.new("RGB", (before.width + 13 * side + after.width, before.height), WHITE)
    piece.paste(before, (0, 0))
    piece.paste(Image.fromarray(bar), (before.width + side // 2, side // 8))
    piece.paste(after, (before.width + 13 * side, 0))
    return piece
