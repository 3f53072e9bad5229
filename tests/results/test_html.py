"""The page needs nothing beside it, and shows what it was given as it was given."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from wsi_pipeline.results.figures.html import (
    Page,
    Plots,
    Section,
    Sheet,
    Table,
    image,
    plot,
    to_html,
    write_page,
)


def drawn() -> Figure:
    figure = Figure((3, 2))
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def a_page() -> Page:
    pictures = [image(np.zeros((50, 50, 3), np.uint8), "patient 1, x 51, y 101")]
    table = Table(["name", "patches", "AUROC"], [["a", 12345, 0.98765], ["b", 1, float("nan")]])
    return Page(
        "A <b>title</b> & more",
        ["A lead."],
        [
            Section("Numbers", ["Some 5 < 6 text.", table]),
            Section("Pictures", [Plots([plot(drawn(), "a line"), plot(drawn(), "points", raster=True)])]),
            Section("Patches", [Sheet(pictures)]),
        ],
        footer="The end.",
    )


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    html = to_html(a_page())
    tags = _Tags()
    tags.feed(html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags.found}
    sources = [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href")]
    assert len(sources) == 3
    assert all(source and source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import|https?://", html)


def test_texts_are_escaped() -> None:
    html = to_html(a_page())
    assert "<b>" not in html
    assert "A &lt;b&gt;title&lt;/b&gt; &amp; more" in html
    assert "Some 5 &lt; 6 text." in html


def test_numbers_stand_to_the_right_and_names_to_the_left() -> None:
    html = to_html(a_page())
    assert '<td class="text">a</td><td>12,345</td><td>0.988</td>' in html
    assert "<td>1</td><td>–</td>" in html


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "index.html", a_page())
    assert (tmp_path / "new/index.html").read_text(encoding="utf-8") == to_html(a_page())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["index.html"]


def test_a_row_of_another_length_than_the_header_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2"):
        Table(["a", "b"], [["only one"]])
