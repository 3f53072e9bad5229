"""Pages that several scripts write: none loses what another one wrote."""

import re
from pathlib import Path

import pytest

from scripts.doc_sections import kept_sections, put_section

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_section_that_a_script_wrote_is_kept_in_the_order_of_the_page(page):
    text = page.read_text(encoding="utf-8")
    begun = re.findall(r"<!-- ([^>]*): written by a script -->", text)
    kept = kept_sections(page)
    assert [re.match(r"<!-- ([^>]*):", section)[1] for section in kept] == begun
    assert all(section in text for section in kept)


def test_a_section_is_put_once_and_then_replaced_and_the_rest_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Results\n\nMeasured.\n")
    put_section(page, "one", "## One\n")
    put_section(page, "two", "## Two\n")
    put_section(page, "one", "## One, again \\1\n")
    text = page.read_text()
    assert text.startswith("# Results\n\nMeasured.\n")
    one, two = kept_sections(page)
    assert "## One, again \\1\n" in one
    assert "## Two\n" in two
    assert "## One\n" not in text


def test_a_page_that_is_not_there_keeps_nothing(tmp_path):
    assert kept_sections(tmp_path / "page.md") == []
