"""The report: one page with slide and map side by side, regions and fields on them, and the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, PathPatch, Rectangle
from matplotlib.path import Path
from PIL import Image

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.results.fields import GradingField
from wsi_pipeline.results.figures.fonts import printable, shorten, text_style, wrapped
from wsi_pipeline.results.figures.maps import LOST, not_scored, stripes
from wsi_pipeline.results.figures.palette import (
    BLACK,
    BLUE,
    COLOURS,
    GREY,
    WHITE,
    colour,
    sample,
    write_png,
)
from wsi_pipeline.results.figures.report_words import (
    HEADS,
    ReportInfo,
    info_rows,
    limit_lines,
    table_rows,
    warning_lines,
)
from wsi_pipeline.results.figures.scale_bar import length_text, round_length
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.tiling.overview import Thumbnail

MOST_NAMES = 12

DPI = 150
PAGE_IN, MARGIN_IN, LINE_IN = 14.0, 0.5, 0.22
TEXT_PT = 10
# Of a row of numbers its label takes so much; columns of the table of regions, their edge and on which side it is.
LABEL_IN = 1.1
# Sentences are as wide as the page, less what letters are drawn wider than they are measured.
WORDS_IN = 0.97 * PAGE_IN
COLUMNS_IN = ((0.0, "left"), (1.9, "right"), (3.05, "right"), (4.1, "right"), (4.85, "right"), (5.05, "left"))

NOT_SCORED: dict[str, Any] = {"facecolor": "#EBEBEB", "edgecolor": "#BBBBBB", "hatch": "////", "linewidth": 0}


def render_report(path: OutPath, thumbnail: Thumbnail, finished: FinishedMap, info: ReportInfo) -> None:
    """Write one page: slide and map at the same scale, regions and fields on them, and the numbers."""
    write_png(path, _draw_page(thumbnail, finished, info).image(), COLOURS)


def report_figure(thumbnail: Thumbnail, finished: FinishedMap, info: ReportInfo) -> Figure:
    """The same page, for other kinds of files."""
    return _draw_page(thumbnail, finished, info).figure


def _draw_page(thumbnail: Thumbnail, finished: FinishedMap, info: ReportInfo) -> "_Page":
    regions, fields, threshold = finished.regions, finished.fields, finished.threshold
    ground = _Ground(thumbnail.plane, thumbnail.shape, info.mpp0)
    table = table_rows(regions, fields)
    said = warning_lines(info.warnings, WORDS_IN, TEXT_PT), limit_lines(info.limits, WORDS_IN, TEXT_PT)
    warnings = [*said[0], *([""] if all(said) else []), *said[1]]
    width_mm, height_mm = ground.size_mm
    # As many lines as the column asks for that stands there, whose width does not depend on them.
    info_in = _lay_out(width_mm / height_mm, 0, 0, 0).info.width
    info_lines = _info_lines(info_rows(info, finished), info_in)
    layout = _lay_out(width_mm / height_mm, len(info_lines), len(table), len(warnings))
    page = _Page(layout.width, layout.height)

    right: dict[str, Any] = {"x": layout.width, "ha": "right"}
    page.text(0, 0.2, shorten(info.slide_name, 8.5, 17), size=17, weight="bold")
    page.text(0, 0.5, "Map of invasive ductal carcinoma (IDC)", size=11, color="#444444")
    page.text(y=0.2, text="Research use only, not a medical device", size=12, weight="bold", **right)
    page.text(y=0.5, text=f"wsi_pipeline {info.version}, {info.date}", color="#444444", **right)

    slide = _draw_panel(page, layout.slide, ground, "Slide")
    slide.imshow(
        _fitted(thumbnail.rgb, layout.slide), extent=ground.extent_mm, aspect="auto", interpolation="nearest"
    )
    _draw_outlines(slide, regions, ground)
    _draw_fields(slide, fields, ground, layout.slide)
    chart = _draw_panel(page, layout.map, ground, "Map")
    _draw_map(chart, finished, ground, layout.map)
    _draw_outlines(chart, regions, ground)
    _draw_names(page, chart, regions, ground)

    _draw_colour_bar(page, layout.bar, threshold)
    _draw_key(page, layout.key, threshold, fields, ground)
    _write_info(page, layout.info, info_lines)
    _write_table(page, layout.table, table)
    for i, line in enumerate(warnings):
        weight = "bold" if line in HEADS else "normal"
        page.text(0, layout.warnings_top + (i + 0.7) * LINE_IN, line, weight=weight)
    return page


# --- the page ------------------------------------------------------------------------------------------


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
    info: _Frame
    table: _Frame
    warnings_top: float


def _lay_out(aspect: float, info_rows: int, table_rows: int, warning_rows: int) -> _Layout:
    """A page for slides of any `aspect` (width by height).

    A wide slide stands above its map; others side by side, a tall one with the numbers to the right.
    """
    top, info_height, table_height = 1.05, info_rows * LINE_IN, table_rows * LINE_IN
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
        info = _Frame(0, below + 0.95, 6.5, info_height)
        table = _Frame(7.0, info.top, PAGE_IN - 7.0, table_height)
    else:
        left = max(map_.right, map_.left + 1.5) + 0.6
        bar, key = _Frame(left, top + 0.25, 4.4, 0.17), _Frame(left, top + 1.15, 6.0, 3 * LINE_IN)
        info = _Frame(left, key.bottom + 0.3, PAGE_IN - left, info_height)
        table = _Frame(left, info.bottom + 0.3, info.width, table_height)
    warnings_top = max(info.bottom, table.bottom, map_.bottom + 0.6) + 0.2
    return _Layout(
        PAGE_IN, warnings_top + warning_rows * LINE_IN, slide, map_, bar, key, info, table, warnings_top
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
        style = text_style(text, {"size": TEXT_PT, **style})
        self.paper.text(x, y, printable(text), parse_math=False, **style)

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

    length_mm = round_length(ground.size_mm[0] / 4)
    length_in = length_mm / ground.size_mm[0] * frame.width
    x, y = frame.left, frame.bottom + 0.18
    page.paper.plot([x, x + length_in], [y, y], color=BLACK, linewidth=3, solid_capstyle="butt")
    page.text(x + length_in + 0.1, y + 0.05, length_text(length_mm))
    return axes


def _fitted(picture: RgbImage, frame: _Frame) -> RgbImage:
    """The picture at the page's own pixels, so that matplotlib need not resample it, which takes it longer."""
    size = (max(1, round(frame.width * DPI)), max(1, round(frame.height * DPI)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _draw_map(axes: Axes, finished: FinishedMap, ground: _Ground, frame: _Frame) -> None:
    """The map over hatching, which stays to be seen where nothing was scored."""
    # Images lie at zorder 0, patches above: the hatching goes below both.
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=-1, **NOT_SCORED))
    width_px, height_px = max(1, round(frame.width * DPI)), max(1, round(frame.height * DPI))
    target = ground.plane_of(width_px, height_px)
    sampled = sample(finished.heatmap, finished.plane, target, (height_px, width_px))
    limits = axes.axis()
    rgba = colour(sampled)
    for status, (fill, _) in LOST.items():
        lost = not_scored(finished, status, target, Size(width_px, height_px))
        rgba[lost & stripes(rgba.shape, 3)] = [*bytes.fromhex(fill[1:]), 255]
    axes.imshow(rgba, extent=ground.extent_mm, aspect="auto", interpolation="nearest")
    axes.axis(limits)
    if not np.isfinite(finished.heatmap).any():
        style: dict[str, Any] = {
            "size": 12,
            "ha": "center",
            "va": "center",
            "bbox": {"facecolor": WHITE, "linewidth": 0},
        }
        axes.text(0.5, 0.5, "nothing\nwas scored", transform=axes.transAxes, **style)


def _draw_outlines(axes: Axes, regions: Sequence[IdcRegion], ground: _Ground) -> None:
    if not regions:
        return
    # All rings are one path: a million points in ten thousand paths would take ten times as long, and twice the bytes.
    rings = shapely.get_rings(shapely.get_parts([region.polygon for region in regions]))
    points, of = shapely.get_coordinates(rings, return_index=True)
    codes = np.full(len(points), Path.LINETO, Path.code_type)
    codes[np.flatnonzero(np.diff(of, prepend=-1))] = Path.MOVETO
    codes[np.flatnonzero(np.diff(of, append=-1))] = Path.CLOSEPOLY
    path = Path(points * (np.array(ground.mpp0) / 1000), codes)
    # Many regions are small ones: thick lines would hide them.
    width_pt = 1.4 if len(regions) <= 100 else 0.6
    for edge, line_pt in ((WHITE, width_pt + 1.2), (BLACK, width_pt)):
        axes.add_artist(PathPatch(path, fill=False, edgecolor=edge, linewidth=line_pt, joinstyle="round"))


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

    y = line(0, "background")
    page.paper.add_patch(Rectangle((frame.left, y - 0.07), 0.35, 0.14, **NOT_SCORED))
    for left, (fill, meaning) in zip((1.6, 3.8), LOST.values(), strict=True):
        style: dict[str, Any] = {"facecolor": WHITE, "edgecolor": fill, "hatch": "////", "linewidth": 0}
        page.paper.add_patch(Rectangle((frame.left + left, y - 0.07), 0.35, 0.14, **style))
        page.text(frame.left + left + 0.5, y + 0.05, meaning)
    y = line(1, f"region: connected cells of at least {threshold:.3g}; the smallest are left out")
    page.paper.add_patch(Rectangle((frame.left, y - 0.07), 0.35, 0.14, fill=False, linewidth=1.4))
    if fields:
        diameter_mm = ground.mm(2 * fields[0].radius_x0, 0)[0]
        y = line(
            2,
            f"field for grading, {diameter_mm:.2f} mm across: where mitoses are likeliest",
        )
        page.paper.add_patch(
            Ellipse((frame.left + 0.175, y), 0.16, 0.16, fill=False, edgecolor=BLUE, linewidth=1.4)
        )


def _info_lines(rows: Sequence[tuple[str, str]], width_in: float) -> list[tuple[str, str]]:
    """Rows of a label and its text as lines: a text that is too long goes on below, without the label."""
    lines = []
    for label, value in rows:
        parts = wrapped(value, (width_in - LABEL_IN) * 72, TEXT_PT) or [""]
        lines += [(label if i == 0 else "", part) for i, part in enumerate(parts)]
    return lines


def _write_info(page: _Page, frame: _Frame, lines: Sequence[tuple[str, str]]) -> None:
    for i, (label, value) in enumerate(lines):
        y = frame.top + (i + 0.7) * LINE_IN
        page.text(frame.left, y, label, color="#444444")
        page.text(frame.left + LABEL_IN, y, value)


def _write_table(page: _Page, frame: _Frame, rows: Sequence[tuple[str, ...]]) -> None:
    for i, row in enumerate(rows):
        y = frame.top + (i + 0.7) * LINE_IN
        weight = "bold" if i == 0 else "normal"
        for text, (x, align) in zip(row, COLUMNS_IN, strict=False):
            text = shorten(text, frame.width - x, TEXT_PT) if align == "left" else text
            page.text(frame.left + x, y, text, ha=align, weight=weight)
    if len(rows) > 1:
        y = frame.top + LINE_IN
        page.paper.plot([frame.left, frame.right], [y, y], color=GREY, linewidth=0.6)
