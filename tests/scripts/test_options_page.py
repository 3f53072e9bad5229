"""docs/options.md: every option there is, as the code declares it."""

from typing import Annotated

import pytest

from scripts.docs.options_page import CONFIGS, PAGE, _described, _fields, _own_texts, options_page
from wsi_pipeline.base.options import Field, options, options_to_dict
from wsi_pipeline.learning.training.options import TrainOptions, walk


@pytest.fixture(scope="module")
def page() -> str:
    return options_page()


def test_the_page_is_what_the_code_says(page):
    assert PAGE.read_text(encoding="utf-8") == page, "run: python -m scripts.docs.options_page"


def test_every_key_of_every_config_has_a_row(page):
    for cls, _ in CONFIGS.values():
        config = cls(name="any") if cls is TrainOptions else cls()
        keys = [key for key, _ in walk(options_to_dict(config))]
        assert len(keys) > 10
        # Of an option that holds keys of its own, the option has the row.
        rows = [{key, key.rpartition(".")[0]} for key in keys]
        assert [row for row in rows if not any(f"| `{key}` |" in page for key in row)] == []


@options
class Described:
    """Options as they are declared."""

    width_px: Annotated[int, Field(gt=0, le=9)] | None = None
    """Under it,
    on two lines."""

    # Above it,
    # on two lines.
    names: tuple[str, ...] = ("a", "b")
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5


def test_a_field_is_described_by_its_type_range_default_and_the_text_beside_it():
    fields = dict(_fields(Described))
    assert _own_texts(Described) == {
        "width_px": "Under it, on two lines.",
        "names": "Above it, on two lines.",
    }
    assert [_described(Described, key, info)[:2] for key, info in fields.items()] == [
        ("whole number, above 0, at most 9, or null", "`null`"),
        ("list of: text", "`[a, b]`"),
        ("number, at least 0, below 1", "`0.5`"),
    ]
