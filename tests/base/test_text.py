"""Names as text: whatever the bytes, the text can be written, shown and read back."""

import json
import os
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import wsi_pipeline
from wsi_pipeline.base.text import as_named, printable, printable_values

NAMES = st.binary(min_size=1, max_size=40).map(os.fsdecode)


@given(NAMES)
def test_any_name_is_written_on_one_line_of_utf8_and_read_back(name: str) -> None:
    text = printable(name)
    assert text.encode("utf-8").decode("utf-8") == text
    assert len(text.splitlines()) <= 1
    assert as_named(text) == name


@given(st.text(max_size=20), st.sampled_from(["\\xe9", "\\x5cxe9", "\\", "\udce9", "\x1b[31m"]))
def test_what_looks_like_an_escape_comes_back_as_it_was(text: str, odd: str) -> None:
    name = text.encode("utf-8", "replace").decode() + odd
    assert as_named(printable(name)) == name


def test_what_is_printable_is_left_as_it_is() -> None:
    for name in ("a b", "Müller 漢字 🔬", "back\\slash", "e\u0301", "50% 'quoted'"):
        assert printable(name) == name


def test_what_turns_the_direction_of_writing_or_drives_a_terminal_is_written_out() -> None:
    assert printable("a\u202exfit.b") == "a\\xe2\\x80\\xaexfit.b"
    assert printable("\x1b[2Ja\tb\x07") == "\\x1b[2Ja\\x09b\\x07"


def test_values_of_json_hold_no_surrogate_anywhere() -> None:
    value = {"n\udce9": ["\udcff", {"deep": ("\udc80", 3, None)}], "two\nlines": 1.5}
    found = printable_values(value)
    assert found == {"n\\xe9": ["\\xff", {"deep": ["\\x80", 3, None]}], "two\nlines": 1.5}
    assert json.loads(json.dumps(found, ensure_ascii=False).encode()) == found


# What is counted in messages; a number before one of these goes through `counted`, which knows of one.
COUNTED_NOUNS = (
    "cells|circles|classes|days|epochs|failures|fields|files|foci|folders|groups|images|lines|mitoses|models|outlines|"
    "overlaps|patches|patients|pictures|places|processes|regions|reviews|runs|shards|slides|tiles|warnings|workers"
)
# Never one where they are said, or no number.
NOT_ONE = {
    *(
        "len(known)",
        "len(entries)",
        "pattern.groups",
        "len(row)",
        "len(regions)",
        "uncertainty.models",
        "fields",
    ),
    *(
        "models",
        "count",
        "self.count",
        "cells",
        "self.batch_size",
        "rows * columns:,",
        "there[0]",
        "",
        "widths",
    ),
    *("self.rate:,.0f", "len(groups):,", "ending(place)", "layout", "held", "options.min_tumour:.0%"),
    *("counted(len(missing), listing.by)", "%d patches", "%s of slides", "{} models", ":.2f"),
}


def test_no_message_says_one_of_a_plural() -> None:
    package = Path(wsi_pipeline.__file__).parent
    by_hand = re.compile(rf"(?:\{{([^{{}}\"]*)\}}|%[ds])(?: [a-z%-]+)? (?:{COUNTED_NOUNS})\b")
    found = [
        f"{path.relative_to(package)}: {match[0]}"
        for path in sorted(package.rglob("*.py"))
        for match in by_hand.finditer(path.read_text())
        # In capitals stand limits, which are larger.
        if (match[1] or match[0]) not in NOT_ONE and not re.search(r"\b[A-Z][A-Z_]+\b", match[1] or "")
    ]
    assert found == []
