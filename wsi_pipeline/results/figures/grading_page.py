"""A page to grade on by hand: mitoses field by field, the three scores of Nottingham, and what they sum to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wsi_pipeline.results.fields import GradingField
from wsi_pipeline.results.figures.fonts import printable, shorten, text_style, wrapped
from wsi_pipeline.results.figures.palette import BLACK, GREY, WHITE
from wsi_pipeline.results.grading import AREA_WORDS, LEAST_FIELDS, SOURCE, mitoses_words
from wsi_pipeline.results.regions import IdcRegion

# A4, upright, in inches.
WIDTH_IN, HEIGHT_IN, MARGIN_IN = 8.27, 11.69, 0.7
ROW_IN = 0.3
# Where the boxes of the scores stand.
BOX_IN = 6.2
# Rows for fields, proposed or found by hand.
LEAST_ROWS = 10
CRITERIA = (
    ("Tubules", "1: over 75 % of the tumour", "2: 10 to 75 %", "3: under 10 %"),
    ("Nuclei", "1: small, regular", "2: moderate variation", "3: marked variation"),
)


@dataclass(frozen=True)
class GradedSlide:
    """What the page says of the slide."""

    name: str
    regions: Sequence[IdcRegion]
    fields: Sequence[GradingField]
    mpp0: tuple[float, float]
    """um per level-0 pixel, along x and y."""

    report_key: str


def grading_figure(slide: GradedSlide) -> Figure:
    """The page, with the proposed fields and empty boxes."""
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), facecolor=WHITE)
    paper = figure.add_axes((0, 0, 1, 1))
    paper.set(xlim=(-MARGIN_IN, WIDTH_IN - MARGIN_IN), ylim=(HEIGHT_IN - MARGIN_IN, -MARGIN_IN))
    paper.axis("off")
    width = WIDTH_IN - 2 * MARGIN_IN
    _text(paper, 0, 0.1, shorten(slide.name, width, 15), size=15, weight="bold")
    _text(
        paper,
        0,
        0.38,
        "Grading by hand (Nottingham). Research use only, not a medical device",
        color="#444444",
    )
    _text(paper, 0, 0.6, f"report {slide.report_key}", size=8, color="#444444")
    y = _draw_fields(paper, slide, 1.0)
    y = _draw_scores(paper, slide, y + 0.6)
    for label in ("Remarks", "Graded by", "Date"):
        y += 0.45
        _text(paper, 0, y, label)
        paper.plot([1.0, width], [y + 0.03, y + 0.03], color=GREY, linewidth=0.6)
    return figure


def _draw_fields(paper: Axes, slide: GradedSlide, top: float) -> float:
    """A row for each field, with room for its mitoses; where the table ends."""
    columns = (0.0, 0.9, 1.8, 3.1, 4.3, 5.5)
    titles = ("Field", "Region", "Centre, mm", "Tissue, mm²", "Mean prob.", "Mitoses")
    for x, title in zip(columns, titles, strict=True):
        _text(paper, x, top, title, weight="bold")
    paper.plot([0, WIDTH_IN - 2 * MARGIN_IN], [top + 0.08] * 2, color=GREY, linewidth=0.6)
    y = top
    for field in slide.fields:
        y += ROW_IN
        x_mm, y_mm = field.x0 * slide.mpp0[0] / 1000, field.y0 * slide.mpp0[1] / 1000
        place = f"{x_mm:.2f}, {y_mm:.2f}"
        values = (
            *(field.name, field.region_name, place),
            *(f"{field.usable_mm2:.3f}", f"{field.mean_probability:.2f}"),
        )
        for x, value in zip(columns, values, strict=False):
            _text(paper, x, y, value)
        _box(paper, columns[-1], y, 0.9)
    for _ in range(len(slide.fields), LEAST_ROWS):
        y += ROW_IN
        _text(paper, 0, y, "not proposed, found by hand", color="#444444", size=8)
        _box(paper, columns[3], y, 0.9)
        _box(paper, columns[-1], y, 0.9)
    y += ROW_IN
    _text(paper, columns[2], y, "In all", weight="bold")
    _box(paper, columns[3], y, 0.9)
    _box(paper, columns[-1], y, 0.9)
    return y


def _draw_scores(paper: Axes, slide: GradedSlide, top: float) -> float:
    """The criteria of each score with its box, the sum and the grade; where they end."""
    y = top
    for label, *criteria in CRITERIA:
        _text(paper, 0, y, label, weight="bold")
        _text(paper, 1.0, y, ";  ".join(criteria))
        _box(paper, BOX_IN, y, 0.4)
        y += 1.3 * ROW_IN
    _text(paper, 0, y, "Mitoses", weight="bold")
    _box(paper, BOX_IN, y, 0.4)
    field_mm = round(2 * slide.fields[0].radius_x0 * slide.mpp0[0] / 1000, 3) if slide.fields else 0.0
    notes = [f"By area, {AREA_WORDS}; of one field alone no score is made.", f"{SOURCE}."]
    if len(slide.fields) >= LEAST_FIELDS:
        where, _, scores = mitoses_words(field_mm, len(slide.fields)).partition(": ")
        for line in (f"{where}:", scores):
            y = _paragraph(paper, 1.0, y, line)
    for note in notes:
        y = _paragraph(paper, 1.0, y, note, size=7.5, color="#444444")
    y += 0.8 * ROW_IN
    _text(paper, 0, y, "Sum", weight="bold")
    _text(paper, 1.0, y, "3 to 5: grade 1;  6 or 7: grade 2;  8 or 9: grade 3")
    _box(paper, BOX_IN, y, 0.4)
    y += 1.3 * ROW_IN
    _text(paper, 0, y, "Grade", weight="bold", size=11)
    _box(paper, BOX_IN, y, 0.4)
    return y


def _box(paper: Axes, x: float, y: float, width: float) -> None:
    paper.add_patch(Rectangle((x, y - 0.17), width, 0.23, fill=False, edgecolor=BLACK, linewidth=0.7))


def _paragraph(paper: Axes, x: float, y: float, text: str, size: float = 9.5, **style: Any) -> float:
    """Lines as wide as there is room left of the boxes; where the next line is."""
    for line in wrapped(text, (BOX_IN - 0.2 - x) * 72, size):
        _text(paper, x, y, line, size=size, **style)
        y += 1.7 * size / 72
    return y


def _text(paper: Axes, x: float, y: float, text: str, **style: Any) -> None:
    paper.text(x, y, printable(text), parse_math=False, **text_style(text, {"size": 9.5, **style}))
