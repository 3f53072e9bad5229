"""The objects of a GeoJSON file one after another, so that a file of a million costs the memory of one.

Read by the standard library's parser, which takes what QuPath writes: its measurements may be NaN, which JSON has not.
"""

import codecs
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

# Outlines of a whole slide's tissue weigh some MB, all its cells some 400; what is larger, unpacked, is something else.
MAX_BYTES = 2**29
# Of one object: some three million points. As values of Python it needs five to seven times as much.
MAX_OBJECT_CHARACTERS = 2**26
PIECE_BYTES = 2**20
# What the parser says of a text that ends too early, it says this near to its end, but for a text in quotes.
_MARGIN = 64
_BLANKS = " \t\n\r"


def json_objects(path: Path) -> Iterator[Any]:
    """Each object of a GeoJSON file, packed by gzip or not: features, or what stands in a feature's place.

    A feature collection, a list of features, one feature, and one geometry are taken. UTF-8, 16 and 32 are read, with
    a mark in front or without. Raises OSError, EOFError, zlib.error or ValueError where the file is none of these or
    larger than the bounds, when the first that is wrong is reached.
    """
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if is_packed else path.open("rb") as file:
        text = _Text(file)
        yield from _objects(text)
        if text.next():
            raise ValueError("more text behind the end of its JSON")


def _objects(text: "_Text") -> Iterator[Any]:
    first = text.next()
    if first == "[":
        yield from text.items()
        return
    if first != "{":
        raise ValueError("no JSON object")
    content: dict[str, Any] = {}
    has_features = False
    for name in text.names():
        if name == "features" and text.next() == "[":
            has_features = True
            yield from text.items()
        else:
            content[name] = text.value()
    if has_features and content.get("type") == "FeatureCollection":
        return
    if content.get("type") == "Feature":
        yield content
    elif "coordinates" in content or "geometries" in content:
        yield {"type": "Feature", "geometry": content, "properties": None}
    else:
        raise ValueError(f"found an object of type {str(content.get('type'))[:100]}")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Text:
    """A text of which a piece is held: what was read and not yet taken."""

    def __init__(self, file: _Readable):
        self._pieces = _decoded(file)
        self._decoder = json.JSONDecoder()
        self._held, self._at = "", 0

    def next(self) -> str:
        """The next character that is no blank, which is not taken; empty at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def take(self, expected: str) -> str:
        """The next character that is no blank; raises ValueError where it is none of the expected."""
        if (found := self.next()) and found in expected:
            self._at += 1
            return found
        raise ValueError(f"found {found!r}, not one of {expected}" if found else "it ends too early")

    def items(self) -> Iterator[Any]:
        """The values of the list that begins here, taken one by one."""
        self.take("[")
        if self.next() == "]":
            self.take("]")
            return
        yield self.value()
        while self.take(",]") == ",":
            yield self.value()

    def names(self) -> Iterator[str]:
        """The names of the object that begins here; each one's value is to be taken before the next is asked for."""
        self.take("{")
        if self.next() == "}":
            self.take("}")
            return
        while True:
            if self.next() != '"':
                raise ValueError("a name is no text")
            name: str = self.value()
            self.take(":")
            yield name
            if self.take(",}") == "}":
                return

    def value(self) -> Any:
        """The value that begins here, taken whole."""
        while True:
            self.next()
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
                # A number may go on behind what is held: "1" as "1.5" or "1e+5".
                is_whole = not isinstance(value, int | float) or end + len("e+5") <= len(self._held)
                length = end - self._at
                if is_whole or not self._more():
                    self._at += length
                    return value
            except json.JSONDecodeError as error:
                is_wrong = error.pos + _MARGIN < len(self._held) and not error.msg.startswith("Unterminated")
                into = error.pos - self._at
                if is_wrong or not self._more():
                    raise ValueError(f"{error.msg}, {into:,} characters into it") from error

    def _more(self) -> bool:
        """Hold as much again, so that a long value is not tried too often; whether there was more."""
        self._held, self._at = self._held[self._at :], 0
        if (held := len(self._held)) > MAX_OBJECT_CHARACTERS:
            raise ValueError(f"an object of more than {MAX_OBJECT_CHARACTERS:,} characters")
        pieces, wanted = [self._held], max(min(held, MAX_OBJECT_CHARACTERS - held), 1)
        while wanted > 0 and (piece := next(self._pieces, "")):
            pieces.append(piece)
            wanted -= len(piece)
        self._held = "".join(pieces)
        return len(pieces) > 1


def _decoded(file: _Readable) -> Iterator[str]:
    """The text of the file, piece by piece."""
    size, piece = 0, file.read(PIECE_BYTES)
    decoder = codecs.getincrementaldecoder(json.detect_encoding(piece))()
    while piece:
        if (size := size + len(piece)) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        if text := decoder.decode(piece):
            yield text
        piece = file.read(PIECE_BYTES)
    if rest := decoder.decode(b"", final=True):
        yield rest
