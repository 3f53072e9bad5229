"""One HTML page that needs nothing beside it: text, tables, plots and sheets of small pictures.

    page = Page("What was found", ["Two sentences."], [Section("Counts", ["A paragraph.", table, plots])])
    write_page(out / "index.html", page)

Every text is escaped; pictures lie inside the page; nothing is fetched and no script runs.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.files import write_bytes

TEMPLATES = Path(__file__).parent / "templates"
# CSS pixels an inch.
CSS_DPI = 96

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers; all columns but the first `text_columns` are set to the right.

    Whole numbers get thousands separators, others three decimals, None and NaN a dash; for another form,
    give the cell as text.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    text_columns: int = 1
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"found a row of {len(row)} cells, expected {len(self.columns)}: {row}")


@dataclass(frozen=True)
class Picture:
    """An image inside the page (a data URI), its size in CSS pixels, and what it shows in words."""

    uri: str
    width_px: int
    height_px: int
    caption: str


@dataclass(frozen=True)
class Plots:
    """Pictures side by side as far as the page is wide, each at its own size."""

    pictures: Sequence[Picture]
    kind: ClassVar[str] = "plots"


@dataclass(frozen=True)
class Sheet:
    """Small pictures in rows, each `cell_px` CSS pixels wide with its caption below; pixels stay square."""

    pictures: Sequence[Picture]
    cell_px: int = 120
    kind: ClassVar[str] = "sheet"


@dataclass(frozen=True)
class CommandLines:
    """Lines to be copied into a terminal."""

    lines: Sequence[str]
    kind: ClassVar[str] = "lines"


Block: TypeAlias = str | Table | Plots | Sheet | CommandLines


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; a plain text is a paragraph."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A title, paragraphs that say it all in short, sections, and a last small line."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    footer: str = field(default="")


def write_page(path: Path, page: Page) -> None:
    """Write the page whole or not at all; its folder is made where it is missing. Raises OutputError."""
    write_bytes(path, to_html(page).encode())


def to_html(page: Page) -> str:
    """The page as one HTML document."""
    return _template().render(page=page)


def plot(figure: Figure, caption: str, raster: bool = False) -> Picture:
    """The matplotlib figure at its own size, as SVG, or as PNG of twice the pixels where `raster`.

    SVG stays sharp at any size; a figure of more than some thousand points is smaller as PNG. The same figure
    gives the same bytes.
    """
    width, height = (round(inches * CSS_DPI) for inches in figure.get_size_inches())
    content = io.BytesIO()
    if raster:
        figure.savefig(content, format="png", dpi=2 * CSS_DPI)
        return Picture(_uri("image/png", content.getvalue()), width, height, caption)
    # Its identifiers are random without a salt.
    with matplotlib.rc_context({"svg.hashsalt": "wsi_pipeline"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return Picture(_uri("image/svg+xml", content.getvalue()), width, height, caption)


def image(pixels: NDArray[np.uint8], caption: str) -> Picture:
    """The pixels, uint8 [row, column, RGB(A)] or [row, column] of greys, as PNG; a pixel is a CSS pixel."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return Picture(_uri("image/png", content.getvalue()), pixels.shape[1], pixels.shape[0], caption)


def cell_text(value: Cell) -> str:
    """How a table shows a value.

    >>> [cell_text(v) for v in (1234, 0.98765, float("nan"), None, "3 of 4")]
    ['1,234', '0.988', '–', '–', '3 of 4']
    """
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


@cache
def _template() -> jinja2.Template:
    environment: Any = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = cell_text
    template: jinja2.Template = environment.get_template("page.html")
    return template
