"""Pages that several scripts write: none loses what another one wrote."""

import re
from pathlib import Path

from scripts.doc_sections import kept_section, put_section
from scripts.results.results import SECTIONS

RESULTS = Path(__file__).parents[2] / "docs/results.md"


def test_make_results_keeps_every_section_of_its_page_that_another_script_wrote():
    written = re.findall(r"<!-- ([^>]*): written by a script -->", RESULTS.read_text(encoding="utf-8"))
    assert set(written) <= set(SECTIONS)


def test_a_section_is_put_in_its_own_place_and_the_others_stay(tmp_path):
    page = tmp_path / "page.md"
    put_section(page, "one", "first")
    put_section(page, "two", "second")
    put_section(page, "one", "first again")
    assert "first again" in kept_section(page, "one")
    assert "second" in kept_section(page, "two")
    assert page.read_text().count("first") == 1
