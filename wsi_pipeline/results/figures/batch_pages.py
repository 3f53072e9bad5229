"""The pages of a batch: a row a slide, with a small picture of its map and its numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.results.figures.fonts import printable, shorten, text_style
from wsi_pipeline.results.figures.palette import GREY, WHITE

# A4, upright, in inches.
WIDTH_IN, HEIGHT_IN, MARGIN_IN = 8.27, 11.69, 0.6
ROW_IN, PICTURE_IN, HEAD_IN = 1.0, 1.7, 0.9
ROWS = int((HEIGHT_IN - 2 * MARGIN_IN - HEAD_IN) / ROW_IN)


@dataclass(frozen=True, eq=False)
class BatchRow:
    """A slide of a batch: its name, lines of numbers or the reason why there are none, and a picture of its map."""

    name: str
    lines: Sequence[str]
    picture: RgbImage | None


def batch_figures(title: str, lead: Sequence[str], rows: Sequence[BatchRow]) -> Iterator[Figure]:
    """The pages, of so many rows each; the first begins with the lines of `lead`."""
    pages = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)] or [[]]
    for number, page in enumerate(pages, start=1):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), facecolor=WHITE)
        paper = figure.add_axes((0, 0, 1, 1))
        paper.set(xlim=(-MARGIN_IN, WIDTH_IN - MARGIN_IN), ylim=(HEIGHT_IN - MARGIN_IN, -MARGIN_IN))
        paper.axis("off")
        width = WIDTH_IN - 2 * MARGIN_IN
        _text(paper, 0, 0.1, shorten(title, width - 1.2, 14), size=14, weight="bold")
        _text(paper, width, 0.1, f"page {number} of {len(pages)}", ha="right", color="#444444")
        for i, line in enumerate(lead if number == 1 else []):
            _text(paper, 0, 0.36 + 0.19 * i, line, color="#444444")
        for i, row in enumerate(page):
            _draw_row(figure, paper, HEAD_IN + i * ROW_IN, row)
        yield figure


def _draw_row(figure: Figure, paper: Axes, top: float, row: BatchRow) -> None:
    width = WIDTH_IN - 2 * MARGIN_IN
    paper.plot([0, width], [top, top], color=GREY, linewidth=0.5)
    if row.picture is not None:
        height_px, width_px = row.picture.shape[:2]
        scale = min(PICTURE_IN / width_px, (ROW_IN - 0.12) / height_px)
        left, bottom = MARGIN_IN / WIDTH_IN, 1 - (MARGIN_IN + top + 0.06 + height_px * scale) / HEIGHT_IN
        axes = figure.add_axes((left, bottom, width_px * scale / WIDTH_IN, height_px * scale / HEIGHT_IN))
        axes.imshow(row.picture, aspect="auto", interpolation="nearest")
        axes.axis("off")
    x = PICTURE_IN + 0.2
    _text(paper, x, top + 0.22, shorten(row.name, width - x, 10.5), size=10.5, weight="bold")
    for i, line in enumerate(row.lines[:4]):
        _text(paper, x, top + 0.42 + 0.17 * i, shorten(line, width - x, 8.5), size=8.5)


def _text(paper: Axes, x: float, y: float, text: str, **style: Any) -> None:
    paper.text(x, y, printable(text), parse_math=False, **text_style(text, {"size": 9, **style}))
