"""Pictures of what was found: the tissue, the map, the map on the slide, and a page that says it all.

Probabilities are shown on one colour scale, 0 to 1, whatever a map holds: viridis. Its lightness grows evenly
with the probability, it survives every kind of colour blindness and a grey printer, and its blue, green and
yellow are no colours of a haematoxylin and eosin stain. Where nothing was scored there is no colour at all.

Pictures smaller than `LEAST_PX` are enlarged by a whole factor, each pixel to a square, so that a map of a
few cells can be looked at.
"""

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
import scipy.ndimage
import shapely
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from PIL import Image, ImageDraw, ImageFont

from wsi_pipeline.delineate import FloatMap, GradingField, IdcRegion, Mask
from wsi_pipeline.geometry import Plane, Size

Rgb: TypeAlias = npt.NDArray[np.uint8]

COLOURS = matplotlib.colormaps["viridis"]
LEAST_PX = 800
MOST_NAMES = 12
MOST_ROWS = 10
MOST_WARNINGS = 8

DPI = 150
PAGE_IN, MARGIN_IN, LINE_IN = 14.0, 0.5, 0.22
TEXT_PT = 10

# Of the palette of Okabe and Ito (2008), made to be told apart with any colour vision.
BLUE, ORANGE = "#0072B2", "#E69F00"
BLACK, GREY, WHITE = "#000000", "#777777", "#FFFFFF"
NOT_SCORED: dict[str, Any] = {"facecolor": "#EBEBEB", "edgecolor": "#BBBBBB", "hatch": "////", "linewidth": 0}


@dataclass(frozen=True)
class ReportFacts:
    """What the report states beside the pictures.

    mpp_overridden: the scale was given by hand. map_kind: which map is shown, in words (each patch alone, or
    after the card's context step). scored, rejected, unreadable: patches. warnings: a sentence each.
    """

    slide_name: str
    size0: Size
    mpp_overridden: bool
    model_name: str
    model_sha256: str
    map_kind: str
    threshold: float
    patch_px: int
    patch_mpp: float
    scored: int
    rejected: int
    unreadable: int
    tissue_mm2: float
    idc_mm2: float
    warnings: Sequence[str]
    version: str
    date: str


# --- four pictures --------------------------------------------------------------------------------------


def render_tissue(
    path: Path, thumbnail: Rgb, tissue: Mask, rejected: Mask | None, reason: str | None
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
    _write_png(path, _with_key(picture, key, reason))


def render_heatmap(path: Path, heatmap: FloatMap) -> None:
    """Write the map alone, RGBA: a cell is a square of whole pixels, transparent where not scored."""
    _write_png(path, Image.fromarray(_enlarge(colour(heatmap), _enlargement(heatmap.shape))))


def render_overlay(
    path: Path,
    thumbnail: Rgb,
    thumbnail_plane: Plane,
    heatmap: FloatMap,
    heatmap_plane: Plane,
    regions: Sequence[IdcRegion],
    map_kind: str | None = None,
) -> None:
    """Write the map blended on the thumbnail, with the outlines of regions, and the colour scale below.

    The thumbnail is left as it is where nothing was scored; low probabilities tint it, high ones cover it.
    map_kind: which map it is, in words, for the key.
    """
    sampled = sample(heatmap, heatmap_plane, thumbnail_plane, (thumbnail.shape[0], thumbnail.shape[1]))
    scored = np.isfinite(sampled)
    opacity = np.where(scored, 0.12 + 0.35 * np.clip(np.nan_to_num(sampled), 0, 1), 0)[:, :, None]
    blended = thumbnail * (1 - opacity) + colour(sampled)[:, :, :3] * opacity
    factor = _enlargement(thumbnail.shape)
    picture = _enlarge(np.round(blended).astype(np.uint8), factor).copy()
    picture[_rim(_enlarge(scored, factor), 1)] = _rgb(GREY)

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    rings = [
        [(x * factor, y * factor) for x, y in _ring_on(ring, thumbnail_plane)]
        for region in regions
        for ring in (region.polygon.exterior, *region.polygon.interiors)
    ]
    # Many regions are small ones: thick lines would hide them.
    line_px = max(2, round(max(picture.shape) / 600)) if len(regions) <= 100 else 1
    for fill, width in ((WHITE, line_px + 2), (BLACK, line_px)):
        for ring in rings:
            draw.line(ring, fill=fill, width=width, joint="curve")
    font = _key_font(picture)
    key = [
        _scale(font),
        _swatch(BLACK, "outline of an IDC region", font),
        _swatch(GREY, "edge of what was scored", font),
    ]
    if map_kind:
        key.append(_label(f"map: {map_kind}", font))
    _write_png(path, _with_key(np.asarray(image), key, None))


def render_report(
    path: Path,
    thumbnail: Rgb,
    thumbnail_plane: Plane,
    heatmap: FloatMap,
    heatmap_plane: Plane,
    mpp0: tuple[float, float],
    regions: Sequence[IdcRegion],
    fields: Sequence[GradingField],
    facts: ReportFacts,
) -> None:
    """Write one page: slide and map at the same scale, regions and fields on them, and the numbers."""
    ground = _Ground(thumbnail_plane, (thumbnail.shape[0], thumbnail.shape[1]), mpp0)
    fact_rows, table_rows = _fact_rows(facts, mpp0), _table_rows(regions, fields)
    warnings = _warning_lines(facts.warnings)
    width_mm, height_mm = ground.size_mm
    layout = _lay_out(width_mm / height_mm, len(fact_rows), len(table_rows), len(warnings))
    page = _Page(layout.width, layout.height)

    right: dict[str, Any] = {"x": layout.width, "ha": "right"}
    page.text(0, 0.2, _shorten(facts.slide_name, 8.5, 17), size=17, weight="bold")
    page.text(0, 0.5, "Map of invasive ductal carcinoma (IDC)", size=11, color="#444444")
    page.text(y=0.2, text="Research use only, not a medical device", size=12, weight="bold", **right)
    page.text(y=0.5, text=f"wsi_pipeline {facts.version}, {facts.date}", color="#444444", **right)

    slide = _draw_panel(page, layout.slide, ground, "Slide")
    slide.imshow(thumbnail, extent=ground.extent_mm, aspect="auto", interpolation="antialiased")
    _draw_outlines(slide, regions, ground)
    _draw_fields(slide, fields, ground, layout.slide)
    chart = _draw_panel(page, layout.map, ground, "Map")
    _draw_map(chart, heatmap, heatmap_plane, ground, layout.map)
    _draw_outlines(chart, regions, ground)
    _draw_names(page, chart, regions, ground)

    _draw_colour_bar(page, layout.bar, facts.threshold)
    _draw_key(page, layout.key, facts.threshold, fields, ground)
    _write_facts(page, layout.facts, fact_rows)
    _write_table(page, layout.table, table_rows)
    for i, line in enumerate(warnings):
        weight = "bold" if i == 0 else "normal"
        page.text(0, layout.warnings_top + (i + 0.7) * LINE_IN, line, weight=weight)
    _write_png(path, page.image())


# --- colour and sampling --------------------------------------------------------------------------------


def colour(heatmap: FloatMap) -> Rgb:
    """The map as RGBA bytes [y, x, 4]: 0 to 1 from dark blue to yellow, wholly transparent where NaN."""
    scored = np.isfinite(heatmap)
    rgba = COLOURS(np.where(scored, np.clip(heatmap, 0, 1), 0).astype(np.float64), bytes=True)
    rgba[~scored] = 0
    return np.asarray(rgba, np.uint8)


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


def _ring_on(ring: shapely.LinearRing, plane: Plane) -> list[tuple[float, float]]:
    return [plane.point_from_level0(x0, y0) for x0, y0 in ring.coords]


# --- text -----------------------------------------------------------------------------------------------


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size_px)


def _printable(text: str) -> str:
    """The text with what the font cannot show (control characters, some scripts) as '?'."""
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(c if c == " " or (c.isprintable() and ord(c) in known) else "?" for c in text)


def _shorten(text: str, width_in: float, size_pt: float) -> str:
    """The text, its middle left out where it would be wider than `width_in`: names differ at both ends."""
    text = _printable(text)
    font = _font(100)

    def fits(candidate: str) -> bool:
        return font.getlength(candidate) / 100 * size_pt / 72 <= width_in

    keep = len(text)
    shortened = text
    while keep > 2 and not fits(shortened):
        keep -= 1
        shortened = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return shortened


def _warning_lines(warnings: Sequence[str]) -> list[str]:
    if not warnings:
        return []
    lines = ["Warnings"]
    for warning in warnings[:MOST_WARNINGS]:
        wrapped = textwrap.wrap(_printable(warning), 150, max_lines=3, placeholder=" …")
        lines += [("•  " if i == 0 else "    ") + line for i, line in enumerate(wrapped)]
    if len(warnings) > MOST_WARNINGS:
        lines.append(f"    and {len(warnings) - MOST_WARNINGS} more in summary.json")
    return lines


# --- the strip below a picture --------------------------------------------------------------------------


def _key_font(picture: Rgb) -> ImageFont.FreeTypeFont:
    return _font(int(np.clip(max(picture.shape) / 70, 15, 26)))


def _with_key(picture: Rgb, key: Sequence[Image.Image], note: str | None) -> Image.Image:
    """The picture, its upper left corner kept, with the key's pieces in rows below, then the note's lines."""
    font = _key_font(picture)
    gap = int(font.size)
    width = max(picture.shape[1], 30 * gap)
    lines = textwrap.wrap(_printable(note or ""), max(20, int((width - 2 * gap) / (0.62 * gap))))
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


def _scale(font: ImageFont.FreeTypeFont) -> Image.Image:
    side = int(font.size)
    before, after = _label("probability of IDC  0", font), _label("1", font)
    bar = _enlarge(colour(np.linspace(0, 1, 12 * side, dtype=np.float32)[None])[:, :, :3], 1).repeat(
        side, axis=0
    )
    piece = Image.new("RGB", (before.width + 13 * side + after.width, before.height), WHITE)
    piece.paste(before, (0, 0))
    piece.paste(Image.fromarray(bar), (before.width + side // 2, side // 8))
    piece.paste(after, (before.width + 13 * side, 0))
    return piece


# --- the report's page ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """A rectangle on the page in inches, `top` counted from the page's top."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


@dataclass(frozen=True)
class _Layout:
    """Where things stand on the page, in inches."""

    width: float
    height: float
    slide: _Frame
    map: _Frame
    bar: _Frame
    key: _Frame
    facts: _Frame
    table: _Frame
    warnings_top: float


def _lay_out(aspect: float, fact_rows: int, table_rows: int, warning_rows: int) -> _Layout:
    """A page for slides of any `aspect` (width by height).

    A wide slide stands above its map; others side by side, a tall one with the numbers to the right.
    """
    top, facts_height, table_height = 1.05, fact_rows * LINE_IN, table_rows * LINE_IN
    if aspect >= 2.2:
        height = min(PAGE_IN / aspect, 6.0)
        slide = _Frame(0, top, height * aspect, height)
        map_ = _Frame(0, slide.bottom + 0.85, slide.width, height)
    else:
        height = min(6.8 / aspect, 7.5) if aspect >= 0.6 else min(3.3 / aspect, 8.2)
        slide = _Frame(0, top, height * aspect, height)
        map_ = _Frame(max(slide.width, 1.5) + 0.4, top, slide.width, height)
    if aspect >= 0.6:
        below = map_.bottom + 0.95
        bar, key = _Frame(0, below, 4.4, 0.17), _Frame(5.4, below - 0.25, 8.6, 3 * LINE_IN)
        facts = _Frame(0, below + 0.95, 6.5, facts_height)
        table = _Frame(7.0, facts.top, PAGE_IN - 7.0, table_height)
    else:
        left = max(map_.right, map_.left + 1.5) + 0.6
        bar, key = _Frame(left, top + 0.25, 4.4, 0.17), _Frame(left, top + 1.15, 6.0, 3 * LINE_IN)
        facts = _Frame(left, key.bottom + 0.3, PAGE_IN - left, facts_height)
        table = _Frame(left, facts.bottom + 0.3, facts.width, table_height)
    warnings_top = max(facts.bottom, table.bottom, map_.bottom + 0.6) + 0.2
    return _Layout(
        PAGE_IN, warnings_top + warning_rows * LINE_IN, slide, map_, bar, key, facts, table, warnings_top
    )


class _Page:
    """A figure drawn on in inches from the upper left corner inside its margin."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width + 2 * MARGIN_IN, height + 2 * MARGIN_IN
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor=WHITE)
        self.canvas: Any = FigureCanvasAgg(self.figure)
        self.paper = self.figure.add_axes((0, 0, 1, 1), zorder=-1)
        self.paper.set(xlim=(-MARGIN_IN, width + MARGIN_IN), ylim=(height + MARGIN_IN, -MARGIN_IN))
        self.paper.axis("off")

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write one line with its baseline at y, word for word: a dollar sign starts no formula."""
        self.paper.text(x, y, _printable(text), parse_math=False, **{"size": TEXT_PT, **style})

    def axes(self, frame: _Frame) -> Axes:
        """Axes that fill the frame."""
        left, top = (frame.left + MARGIN_IN) / self.width, (frame.top + MARGIN_IN) / self.height
        width, height = frame.width / self.width, frame.height / self.height
        return self.figure.add_axes((left, 1 - top - height, width, height))

    def image(self) -> Image.Image:
        """The page as it stands."""
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")


@dataclass(frozen=True)
class _Ground:
    """What both panels show: the thumbnail's extent, in millimetres from the slide's upper left corner."""

    plane: Plane
    shape: tuple[int, int]
    mpp0: tuple[float, float]

    def mm(self, x0: float, y0: float) -> tuple[float, float]:
        """A level-0 point in millimetres."""
        return x0 * self.mpp0[0] / 1000, y0 * self.mpp0[1] / 1000

    @property
    def extent_mm(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top."""
        left, top = self.mm(*self.plane.point_to_level0(0, 0))
        right, bottom = self.mm(*self.plane.point_to_level0(self.shape[1], self.shape[0]))
        return left, right, bottom, top

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        left, right, bottom, top = self.extent_mm
        return right - left, bottom - top

    def plane_of(self, width_px: int, height_px: int) -> Plane:
        """The plane on which the same extent is so many pixels."""
        return self.plane.coarser(self.shape[1] / width_px, self.shape[0] / height_px)


def _draw_panel(page: _Page, frame: _Frame, ground: _Ground, title: str) -> Axes:
    """Empty axes in millimetres with a title, and a scale bar of a round length below."""
    axes = page.axes(frame)
    left, right, bottom, top = ground.extent_mm
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=GREY, linewidth=0.8)
    page.text(frame.left, frame.top - 0.1, title, size=11, weight="bold")

    length_mm = _round_length(ground.size_mm[0] / 4)
    length_in = length_mm / ground.size_mm[0] * frame.width
    x, y = frame.left, frame.bottom + 0.18
    page.paper.plot([x, x + length_in], [y, y], color=BLACK, linewidth=3, solid_capstyle="butt")
    page.text(x + length_in + 0.1, y + 0.05, f"{length_mm:g} mm")
    return axes


def _round_length(longest: float) -> float:
    """The longest of 1, 2 and 5 times a power of ten up to `longest`."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(power * step for step in (1, 2, 5) if power * step <= longest * (1 + 1e-9))


def _draw_map(axes: Axes, heatmap: FloatMap, plane: Plane, ground: _Ground, frame: _Frame) -> None:
    """The map over hatching, which stays to be seen where nothing was scored."""
    # Images lie at zorder 0, patches above: the hatching goes below both.
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=-1, **NOT_SCORED))
    width_px, height_px = max(1, round(frame.width * DPI)), max(1, round(frame.height * DPI))
    sampled = sample(heatmap, plane, ground.plane_of(width_px, height_px), (height_px, width_px))
    limits = axes.axis()
    axes.imshow(colour(sampled), extent=ground.extent_mm, aspect="auto", interpolation="nearest")
    axes.axis(limits)
    if not np.isfinite(heatmap).any():
        style: dict[str, Any] = {
            "size": 12,
            "ha": "center",
            "va": "center",
            "bbox": {"facecolor": WHITE, "linewidth": 0},
        }
        axes.text(0.5, 0.5, "nothing\nwas scored", transform=axes.transAxes, **style)


def _draw_outlines(axes: Axes, regions: Sequence[IdcRegion], ground: _Ground) -> None:
    scale = np.array(ground.mpp0) / 1000
    rings = [
        shapely.get_coordinates(ring) * scale
        for region in regions
        for ring in (region.polygon.exterior, *region.polygon.interiors)
    ]
    # Many regions are small ones: thick lines would hide them.
    width_pt = 1.4 if len(regions) <= 100 else 0.6
    axes.add_collection(LineCollection(rings, colors=WHITE, linewidths=width_pt + 1.2), autolim=False)
    axes.add_collection(LineCollection(rings, colors=BLACK, linewidths=width_pt), autolim=False)


def _draw_fields(axes: Axes, fields: Sequence[GradingField], ground: _Ground, frame: _Frame) -> None:
    for number, field in enumerate(fields, start=1):
        x, y = ground.mm(field.x0, field.y0)
        width, height = ground.mm(2 * field.radius_x0, 2 * field.radius_y0)
        for edge, line_pt in ((WHITE, 2.4), (BLUE, 1.4)):
            axes.add_patch(Ellipse((x, y), width, height, fill=False, edgecolor=edge, linewidth=line_pt))
        if width / ground.size_mm[0] * frame.width > 0.2:
            style: dict[str, Any] = {
                "size": 7,
                "color": WHITE,
                "ha": "center",
                "va": "center_baseline",
                "clip_on": True,
            }
            box = {"boxstyle": "round,pad=0.15", "facecolor": BLUE, "linewidth": 0}
            axes.text(x, y - height / 2, str(number), bbox=box, **style)


def _draw_names(page: _Page, axes: Axes, regions: Sequence[IdcRegion], ground: _Ground) -> None:
    """The largest regions' names beside them, where there is room: no name hides another."""
    taken: list[Any] = []
    inside = axes.get_window_extent()
    box = {"boxstyle": "round,pad=0.2", "facecolor": WHITE, "edgecolor": BLACK, "linewidth": 0.6}
    for region in regions[:MOST_NAMES]:
        left, top, right, bottom = region.polygon.bounds
        middle = (left + right) / 2, (top + bottom) / 2
        places = [
            ((middle[0], top), "center", "bottom"),
            ((middle[0], bottom), "center", "top"),
            ((right, middle[1]), "left", "center"),
            ((left, middle[1]), "right", "center"),
            (middle, "center", "center"),
        ]
        for point0, across, down in places:
            x, y = ground.mm(*point0)
            name = axes.text(x, y, region.name, size=8, ha=across, va=down, bbox=box, zorder=5)
            extent = name.get_window_extent(page.canvas.get_renderer()).padded(8)
            fits = (
                inside.x0 <= extent.x0
                and extent.x1 <= inside.x1
                and inside.y0 <= extent.y0
                and extent.y1 <= inside.y1
            )
            if fits and not any(extent.overlaps(other) for other in taken):
                taken.append(extent)
                break
            name.remove()


def _draw_colour_bar(page: _Page, frame: _Frame, threshold: float) -> None:
    axes = page.axes(frame)
    page.figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), cax=axes, orientation="horizontal")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"], size=TEXT_PT)
    page.text(frame.left + frame.width / 2, frame.bottom + 0.45, "probability of IDC", ha="center")
    x = frame.left + threshold * frame.width
    page.paper.plot(x, frame.top - 0.06, marker="v", markersize=5, color=BLACK)
    page.text(x, frame.top - 0.13, f"threshold {threshold:.3g}", ha="center")


def _draw_key(
    page: _Page, frame: _Frame, threshold: float, fields: Sequence[GradingField], ground: _Ground
) -> None:
    def line(row: int, text: str) -> float:
        y = frame.top + (row + 0.7) * LINE_IN
        page.text(frame.left + 0.5, y, text)
        return y - 0.05

    y = line(0, "not scored: background, rejected or unreadable")
    page.paper.add_patch(Rectangle((frame.left, y - 0.07), 0.35, 0.14, **NOT_SCORED))
    y = line(1, f"region: connected cells of at least {threshold:.3g}; the smallest are left out")
    page.paper.add_patch(Rectangle((frame.left, y - 0.07), 0.35, 0.14, fill=False, linewidth=1.4))
    if fields:
        diameter_mm = ground.mm(2 * fields[0].radius_x0, 0)[0]
        y = line(
            2,
            f"field for grading, {diameter_mm:.2f} mm across: where the model is surest",
        )
        page.paper.add_patch(
            Ellipse((frame.left + 0.175, y), 0.16, 0.16, fill=False, edgecolor=BLUE, linewidth=1.4)
        )


def _fact_rows(facts: ReportFacts, mpp0: tuple[float, float]) -> list[tuple[str, str]]:
    size, (mpp_x, mpp_y) = facts.size0, mpp0
    width_mm, height_mm = size.width * mpp_x / 1000, size.height * mpp_y / 1000
    source = "given by hand, not the file's" if facts.mpp_overridden else "as the file says"
    patch_um = facts.patch_px * facts.patch_mpp
    return [
        (
            "Slide",
            f"{size.width:,} x {size.height:,} px, {width_mm:.2f} x {height_mm:.2f} mm",
        ),
        ("Scale", f"{mpp_x:.4g} x {mpp_y:.4g} µm per pixel, {source}"),
        ("Model", f"{facts.model_name} ({facts.model_sha256[:12]})"),
        ("Map", facts.map_kind),
        ("Patches", f"{facts.patch_px} px at {facts.patch_mpp:g} µm per pixel: {patch_um:g} µm a side"),
        ("Scored", f"{facts.scored:,} patches"),
        ("Not scored", f"{facts.rejected:,} rejected, {facts.unreadable:,} unreadable"),
        ("Tissue", f"{facts.tissue_mm2:.2f} mm²"),
        ("IDC", f"{facts.idc_mm2:.2f} mm², whole patches"),
    ]


def _write_facts(page: _Page, frame: _Frame, rows: Sequence[tuple[str, str]]) -> None:
    for i, (label, value) in enumerate(rows):
        y = frame.top + (i + 0.7) * LINE_IN
        page.text(frame.left, y, label, color="#444444")
        page.text(frame.left + 1.1, y, _shorten(value, frame.width - 1.1, TEXT_PT))


def _table_rows(regions: Sequence[IdcRegion], fields: Sequence[GradingField]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("Region", "mm²", "mean prob.", "highest", "fields")]
    for region in regions[:MOST_ROWS]:
        numbers = [str(n) for n, field in enumerate(fields, start=1) if field.region_name == region.name]
        rows.append(
            (
                region.name,
                f"{region.area_mm2:.2f}",
                f"{region.mean_probability:.2f}",
                f"{region.max_probability:.2f}",
                ", ".join(numbers) or "–",
            )
        )
    rest = regions[MOST_ROWS:]
    if rest:
        rows.append((f"{len(rest)} smaller", f"{sum(r.area_mm2 for r in rest):.2f}", "", "", ""))
    if not regions:
        rows = [("No region of IDC was found.",)]
    return rows


def _write_table(page: _Page, frame: _Frame, rows: Sequence[tuple[str, ...]]) -> None:
    for i, row in enumerate(rows):
        y = frame.top + (i + 0.7) * LINE_IN
        weight = "bold" if i == 0 else "normal"
        for text, x, align in zip(
            row, (0, 1.5, 2.6, 3.4, 3.8), ("left", "right", "right", "right", "left"), strict=False
        ):
            page.text(frame.left + x, y, text, ha=align, weight=weight)
    if len(rows) > 1:
        y = frame.top + LINE_IN
        page.paper.plot([frame.left, frame.right], [y, y], color=GREY, linewidth=0.6)


# --- writing --------------------------------------------------------------------------------------------


def _write_png(path: Path, image: Image.Image) -> None:
    """Write beside, then rename: a reader sees the old picture or the new one, never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(beside, format="PNG")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
