r"""One way to write any name, and any number of things, as text: for terminals, tables, events, pages and pictures.

A file's name is bytes. Python gives those that are no UTF-8 as lone surrogates, which no file of text can hold; control
characters and those that turn the direction of writing change what a terminal shows around them. `printable` writes
their bytes as \xHH, and `as_named` gives the name back.
"""

import re
from collections.abc import Mapping
from typing import Any

# Control characters, line and paragraph separators, what turns the direction of writing, and lone surrogates; and a
# backslash that would be read as one of ours.
_CONTROLS = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
_UNPRINTABLE = re.compile(_CONTROLS)
_AMBIGUOUS = re.compile(_CONTROLS + r"|\\(?=x[0-9a-f]{2})")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text on one line that any UTF-8 file can hold; what is printable is left as it is.

    >>> printable("M\udcfcller"), printable("two\nlines"), printable("Müller")
    ('M\\xfcller', 'two\\x0alines', 'Müller')
    """
    return _AMBIGUOUS.sub(lambda found: _escaped(found[0]), text)


def on_one_line(text: str) -> str:
    r"""A sentence, in which names may stand as `printable` gives them, on one line of what is printable.

    >>> on_one_line("failed: M\\xfcller:\n no such file")
    'failed: M\\xfcller:\\x0a no such file'
    """
    return _UNPRINTABLE.sub(lambda found: _escaped(found[0]), text)


def as_named(text: str) -> str:
    r"""What `printable` was given.

    >>> as_named(printable("M\udcfcller")) == "M\udcfcller"
    True
    """
    escaped = _ESCAPED.sub(lambda found: chr(0xDC00 + int(found[1], 16)), text)
    # Bytes below 128 are no surrogates, those above may be UTF-8 together.
    data = re.sub("[\udc00-\udc7f]", lambda found: chr(ord(found[0]) - 0xDC00), escaped)
    return data.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def without_surrogates(text: str) -> str:
    """The text with its lone surrogates written as `printable` does, and all else as it is."""
    if text.isascii():
        return text
    return _SURROGATES.sub(lambda found: _escaped(found[0]), text)


def for_spreadsheet(value: Any) -> Any:
    """A cell of a CSV file: a text that a spreadsheet would compute (=, +, -, @ in front) gets a ' in front.

    >>> for_spreadsheet("=1+1"), for_spreadsheet("a=1"), for_spreadsheet(-1.5), for_spreadsheet("'=x")
    ("'=1+1", 'a=1', -1.5, "''=x")
    """
    return f"'{value}" if isinstance(value, str) and _COMPUTED.match(value) else value


def from_spreadsheet(text: str) -> str:
    """What `for_spreadsheet` was given.

    >>> from_spreadsheet("'=1+1"), from_spreadsheet("'s"), from_spreadsheet("''=x")
    ('=1+1', "'s", "'=x")
    """
    return text[1:] if text.startswith("'") and _COMPUTED.match(text) else text


# Quotes that were put there count as part of it, so that each can be taken off again.
_COMPUTED = re.compile(r"'*(\s*[=+\-@]|[\t\r])")


def printable_values(value: Any) -> Any:
    """A plain value of JSON, in which every text has its lone surrogates written as `printable` does."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, Mapping):
        return {without_surrogates(str(key)): printable_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(each) for each in value]
    return value


def counted(number: int, one: str, many: str = "") -> str:
    """So many of something, in words of a sentence; `many` where the plural is no regular one.

    >>> counted(1, "slide"), counted(2_000, "patch"), counted(0, "focus", "foci"), counted(48, "epoch")
    ('1 slide', '2,000 patches', '0 foci', '48 epochs')
    """
    if number == 1:
        return f"1 {one}"
    hissing = one.endswith(("s", "x", "ch", "sh")) and not one.endswith("och")  # epoch: said with a k
    return f"{number:,} {many or one + ('es' if hissing else 's')}"


def _escaped(character: str) -> str:
    data = character.encode(
        "utf-8", "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    )
    return "".join(f"\\x{byte:02x}" for byte in data)
