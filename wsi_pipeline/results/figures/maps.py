"""Pictures of what was found: the tissue, the map, the map on the slide, and how far models are apart on it.

Pictures smaller than `LEAST_PX` are enlarged by a whole factor, each pixel to a square, so that a map of a
few cells can be looked at. What was not scored is told apart: background is left as it is, what quality rejected and
what could not be read are striped, each in its colour.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import shapely
from PIL import Image, ImageDraw

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.base.types import FloatMap, Mask, RgbImage
from wsi_pipeline.results.figures.key_strip import (
    colour_scale,
    key_size,
    label,
    scale_bar,
    swatch,
    with_key,
)
from wsi_pipeline.results.figures.palette import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    LARGEST_DEVIATION,
    ORANGE,
    SKY,
    UNCERTAINTY_COLOURS,
    VERMILLION,
    WHITE,
    YELLOW,
    colour,
    colour_uncertainty,
    sample,
    write_png,
)
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.results.slide_grid import cells_at_centres, grid_of, status_at_centres
from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.tiling.overview import BESIDE_ARTEFACTS, TOO_LITTLE, Thumbnail

LEAST_PX = 800
# Of the scale's colours the overlay keeps so many: on the slide they are blended with the tissue's.
BLENDED_STEPS = 24
# What was to be scored and was not: its colour, and its name in a key.
LOST = {
    Status.REJECTED: (ORANGE, "rejected: not scored"),
    Status.UNREADABLE: (VERMILLION, "could not be read"),
}

# A corner of an outline that stands out by less is not seen.
SEEN_PX = 0.4

# Of tissue that is not scored: the colour and the meaning of each reason. Artefacts, by their checks;
SPOILT = {
    "pen": (ORANGE, "blue or green ink"),
    "red": (YELLOW, "red, orange or yellow ink, clotted blood"),
    "dark": (GREEN, "black ink, pigment or dirt"),
    "blur": (BLACK, "out of focus"),
    "fold": (VERMILLION, "folded"),
}
# and what lies where no patch is scored.
PASSED_OVER = {
    TOO_LITTLE: (SKY, "too little tissue in its patches"),
    BESIDE_ARTEFACTS: (GREY, "clean, but its patches are mostly artefact"),
}
_NOT_SCORED = SPOILT | PASSED_OVER


def render_tissue(
    path: OutPath,
    thumbnail: RgbImage,
    tissue: Mask,
    not_scored: Mapping[str, tuple[Mask, float]],
    reason: str | None,
    um_per_pixel: float,
) -> None:
    """Write the thumbnail with the outline of what was kept, and hatching where tissue is not scored.

    thumbnail: [H, W, 3]; tissue: [H, W] of the same grid. not_scored: by its reason, a name of SPOILT or PASSED_OVER,
    which tissue, [H, W], and how many mm2 of it; what of tissue is not spoilt is kept.
    reason: why little or nothing was kept, written below; None when all went well. um_per_pixel: of the thumbnail.
    """
    factor = _enlargement(thumbnail.shape)
    kept = tissue.copy()
    for name in not_scored.keys() & SPOILT.keys():
        kept &= ~not_scored[name][0]
    picture = _enlarge(thumbnail, factor).copy()
    line_px = max(2, round(max(picture.shape) / 500))
    hatched = stripes(picture.shape, line_px)
    for name, (mask, _) in not_scored.items():
        picture[hatched & _enlarge(mask, factor)] = _rgb(_NOT_SCORED[name][0])
    inside = _enlarge(kept, factor)
    picture[_rim(inside, 2 * line_px)] = _rgb(WHITE)
    picture[_rim(inside, line_px)] = _rgb(BLUE)

    size = key_size(picture)
    key = [scale_bar(picture, um_per_pixel / factor, size)]
    key.append(
        swatch(BLUE, "outline of the tissue kept", size) if kept.any() else label("no tissue kept", size)
    )
    for name, (_, mm2) in not_scored.items():
        fill, meaning = _NOT_SCORED[name]
        key.append(swatch(fill, f"not scored: {meaning}, {_mm2(mm2)}", size, hatched=True))
    write_png(path, with_key(picture, key, reason))


def _mm2(area: float) -> str:
    """The area in words, also where it is a trace."""
    return f"{area:.2f} mm2" if area >= 0.005 else "under 0.01 mm2"


def heatmap_place(finished: FinishedMap, size0: Size, mpp0: tuple[float, float]) -> dict[str, list[float]]:
    """Where heatmap.png lies: its size in pixels, um a pixel, and its left, top, width and height in um."""
    plane, size = heatmap_grid(finished, size0)
    return {
        "size_px": [size.width, size.height],
        "um_per_pixel": [plane.downsample_x * mpp0[0], plane.downsample_y * mpp0[1]],
        "extent_um": [0.0, 0.0, size0.width * mpp0[0], size0.height * mpp0[1]],
    }


def heatmap_grid(finished: FinishedMap, size0: Size) -> tuple[Plane, Size]:
    """The pixels of heatmap.png: they cover exactly the slide, and a cell is very nearly a whole number of them."""
    shape, plane = finished.heatmap.shape, finished.plane
    factor = _enlargement(shape)
    width = round(size0.width / plane.downsample_x * factor)
    height = round(size0.height / plane.downsample_y * factor)
    return grid_of(size0, Size(max(1, width), max(1, height)))


def render_heatmap(path: OutPath, finished: FinishedMap, size0: Size, mpp0: tuple[float, float]) -> None:
    """Write the map alone, RGBA, from corner to corner of the slide: transparent where there is nothing to score.

    The file says its extent, left, top, width and height, in micrometres from the slide's corner, and um a pixel.
    """
    plane, size = heatmap_grid(finished, size0)
    rgba = colour(cells_at_centres(finished.heatmap, finished.plane, plane, size))
    for status, (fill, _) in LOST.items():
        striped = not_scored(finished, status, plane, size) & stripes(rgba.shape, 4)
        rgba[striped] = (*_rgb(fill), 255)
    texts = {
        name: " ".join(f"{value:.10g}" for value in values)
        for name, values in heatmap_place(finished, size0, mpp0).items()
    }
    write_png(path, Image.fromarray(rgba), texts=texts)


def render_overlay(path: OutPath, thumbnail: Thumbnail, finished: FinishedMap, mpp_x: float) -> None:
    """Write the map blended on the thumbnail, with the outlines of regions, and the colour scale below.

    The thumbnail is left as it is where nothing was to be scored; low probabilities tint it, high ones cover it.
    mpp_x: um per level-0 pixel along x.
    """
    rgb = thumbnail.rgb
    sampled = sample(finished.heatmap, finished.plane, thumbnail.plane, thumbnail.shape)
    scored = np.isfinite(sampled)
    opacity = np.where(scored, 0.09 + 0.38 * np.clip(np.nan_to_num(sampled), 0, 1), 0).astype(np.float32)
    blended = rgb + (colour(sampled)[:, :, :3] - rgb.astype(np.float32)) * opacity[:, :, None]
    factor = _enlargement(thumbnail.shape)
    picture = _enlarge(np.round(blended).astype(np.uint8), factor).copy()
    picture[_rim(_enlarge(scored, factor), 1)] = _rgb(GREY)
    lost = _stripe(picture, thumbnail, finished, factor)

    outlined = _with_outlines(picture, finished.regions, thumbnail.plane, factor)
    size = key_size(picture)
    key = [
        scale_bar(picture, thumbnail.plane.downsample_x * mpp_x / factor, size),
        colour_scale("probability of IDC", 1, colour, size),
        swatch(BLACK, "outline of an IDC region", size),
        swatch(GREY, "edge of what was scored", size),
        *lost,
        label(f"map: {finished.kind}", size),
    ]
    write_png(path, with_key(outlined, key, None), COLOURS, steps=BLENDED_STEPS)


def render_uncertainty(
    path: OutPath,
    thumbnail: Thumbnail,
    deviation: FloatMap,
    finished: FinishedMap,
    models: int,
    mpp_x: float,
) -> None:
    """Write the standard deviation between so many `models` over the thumbnail, with the outlines of regions.

    deviation: of the cells of the finished map. Pixels are those of the overlay. The thumbnail shows where nothing
    was scored; elsewhere the colour covers it, so that it can be read off the scale below. mpp_x: um per level-0 pixel.
    """
    rgba = colour_uncertainty(sample(deviation, finished.plane, thumbnail.plane, thumbnail.shape))
    scored = rgba[:, :, 3] > 0
    factor = _enlargement(thumbnail.shape)
    picture = _enlarge(np.where(scored[:, :, None], rgba[:, :, :3], thumbnail.rgb), factor).copy()
    picture[_rim(_enlarge(scored, factor), 1)] = _rgb(GREY)
    lost = _stripe(picture, thumbnail, finished, factor)
    size = key_size(picture)
    key = [
        scale_bar(picture, thumbnail.plane.downsample_x * mpp_x / factor, size),
        colour_scale(
            f"standard deviation between {models} models", LARGEST_DEVIATION, colour_uncertainty, size
        ),
        swatch(BLACK, "outline of an IDC region", size),
        swatch(GREY, "edge of what was scored", size),
        *lost,
    ]
    outlined = _with_outlines(picture, finished.regions, thumbnail.plane, factor)
    write_png(path, with_key(outlined, key, None), UNCERTAINTY_COLOURS)


def not_scored(finished: FinishedMap, status: Status, plane: Plane, size: Size) -> Mask:
    """Where on another grid cells have that status."""
    if finished.status is None:
        return np.zeros((size.height, size.width), np.bool_)
    return np.asarray(status_at_centres(finished.status, finished.plane, plane, size) == status, np.bool_)


def _stripe(picture: RgbImage, thumbnail: Thumbnail, finished: FinishedMap, factor: int) -> list[Image.Image]:
    """Stripe, in place, what was to be scored and was not; the pieces of the key that say so."""
    size, pieces = Size(thumbnail.shape[1], thumbnail.shape[0]), []
    for status, (fill, meaning) in LOST.items():
        lost = not_scored(finished, status, thumbnail.plane, size)
        if lost.any():
            line_px = max(2, round(max(picture.shape) / 500))
            picture[_enlarge(lost, factor) & stripes(picture.shape, line_px)] = _rgb(fill)
            pieces.append(swatch(fill, meaning, key_size(picture), hatched=True))
    return pieces


def stripes(shape: tuple[int, ...], line_px: int) -> Mask:
    """Slanted stripes, a quarter of all pixels."""
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    return np.asarray((rows + columns) // line_px % 4 == 0, np.bool_)


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
    rings = shapely.get_rings(shapely.get_parts([region.polygon for region in regions]))
    origin0, px0 = (plane.origin_x0, plane.origin_y0), (plane.downsample_x, plane.downsample_y)
    rings = shapely.transform(rings, lambda xy0: (xy0 - origin0) / px0 * factor)
    # Corners that nobody can see take long to draw; what is smaller is drawn as it is.
    fewer = shapely.simplify(rings, SEEN_PX, preserve_topology=False)
    rings = np.where(shapely.get_num_coordinates(fewer) > 2, fewer, rings)
    lines = [[tuple(xy) for xy in shapely.get_coordinates(ring).tolist()] for ring in rings]
    # Many regions are small ones: thick lines would hide them.
    line_px = max(2, round(max(picture.shape) / 600)) if len(regions) <= 100 else 1
    for fill, width in ((WHITE, line_px + 2), (BLACK, line_px)):
        for line in lines:
            draw.line(line, fill=fill, width=width, joint="curve")
    return np.asarray(image)
