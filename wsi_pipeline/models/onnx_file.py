"""What an ONNX file says of itself, looked at before any library is given it: sizes, loops, files that it refers to.

An ONNX file is a protobuf message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), of which only the fields
below are read here: the lengths of its tensors against their shapes, its operators, and where data of tensors lie that
are not in the file itself. The file is mapped, not read, and nothing in it is executed.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from wsi_pipeline.base.errors import ModelError

# What protobuf can hold in one message.
MOST_BYTES = 2**31 - 1
# More fields than any network's file has: tens of thousands.
MOST_FIELDS = 1_000_000
MOST_DEPTH = 16
# Their length is a value in the file: one may run for ever. A network that classifies patches needs none.
ENDLESS = ("Loop", "Scan")

# Fields of the messages by their number, and the message in each.
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_OP_TYPE, _DIMS, _EXTERNAL_DATA, _DATA_LOCATION = 4, 1, 13, 14


def external_files(path: Path) -> list[Path]:
    """The files beside it that hold data of its tensors, in order; none where it holds all itself.

    Raises ModelError where it is no ONNX file, is cut off, says of a tensor a shape that its data do not have, loops, or
    refers to files outside its own folder.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= MOST_BYTES:
            raise ModelError(f"{path}: found {size:,} bytes, expected an ONNX file of 1 to {MOST_BYTES:,}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _Found(path)
            with memoryview(data) as view:
                _look_at(view, "model", found)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except _DamagedError as error:
        raise ModelError(f"{path}: expected an ONNX file: {error}; get it again") from error
    if not found.nodes:
        raise ModelError(f"{path}: expected an ONNX file: it holds no network; get it again")
    return sorted(found.files)


class _DamagedError(Exception):
    """The bytes are none of such a message."""


@dataclass
class _Found:
    path: Path
    files: set[Path] = field(default_factory=set)
    fields: int = 0
    nodes: int = 0


def _look_at(view: memoryview, kind: str, found: _Found, depth: int = 0) -> None:
    """Go through a message and those in it. Raises _DamagedError, ModelError."""
    if depth > MOST_DEPTH:
        raise _DamagedError(f"its graphs lie more than {MOST_DEPTH} deep in each other")
    if kind == "tensor":
        _check_tensor(view, found)
        return
    for number, value in _fields(view, found):
        if inner := _MESSAGES[kind].get(number):
            with _message(value) as message:
                _look_at(message, inner, found, depth + (inner == "graph"))
        elif kind == "node" and number == _OP_TYPE:
            found.nodes += 1
            if (operator := _text(value)) in ENDLESS:
                raise ModelError(f"{found.path}: found the operator {operator}, expected a network without loops")


def _check_tensor(view: memoryview, found: _Found) -> None:
    """Compare a tensor's shape with its data, here or in a file."""
    shape: list[int] = []
    entries: dict[str, str] = {}
    is_external = False
    for number, value in _fields(view, found):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == _DATA_LOCATION:
            is_external = value == 1
        elif number == _EXTERNAL_DATA:
            entry = dict(_fields(_message(value), found))
            entries[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    has_bytes = _external_bytes(entries, found) if is_external else len(view)
    # The smallest of ONNX's types takes half a byte.
    if any(length >= 2**63 for length in shape) or prod(shape) > 2 * has_bytes:
        raise _DamagedError(f"a tensor of shape {shape} has {has_bytes:,} bytes of data at most")


def _external_bytes(entries: dict[str, str], found: _Found) -> int:
    """How many bytes the file beside it has for a tensor."""
    location, folder = entries.get("location", ""), found.path.parent.resolve()
    place = (folder / location).resolve()
    if not location or "\0" in location or "\\" in location or not place.is_relative_to(folder):
        raise ModelError(
            f"{found.path}: found data in '{location}', expected a file in its own folder, as it was exported"
        )
    if not place.is_file():
        raise ModelError(f"{place}: does not exist, and {found.path.name} has its weights there; get it too")
    numbers = [entries.get("offset", "0"), entries.get("length", "")]
    if not all(text.isdecimal() and len(text) < 20 for text in numbers if text):
        raise _DamagedError(f"a tensor's place in {location} is said as {numbers}")
    size, offset = place.stat().st_size, int(numbers[0] or 0)
    length = int(numbers[1]) if numbers[1] else size - offset
    if offset + length > size or length < 0:
        raise ModelError(
            f"{place}: has {size:,} bytes, expected {offset + length:,} as {found.path.name} says; get both again"
        )
    found.files.add(place)
    return length


def _fields(view: memoryview, found: _Found) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: a number, or the bytes of a text, an array or a message."""
    position = 0
    while position < len(view):
        found.fields += 1
        if found.fields > MOST_FIELDS:
            raise _DamagedError(f"it has more than {MOST_FIELDS:,} fields")
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(view, position)
            yield number, value
            continue
        if kind == 2:
            length, position = _varint(view, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise _DamagedError("it is no protobuf message")
        if position + length > len(view):
            raise _DamagedError(f"it ends {position + length - len(view):,} bytes too early")
        yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next one begins."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            raise _DamagedError("it ends within a number")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _DamagedError("a number in it has no end")


def _packed(view: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(view) and len(values) <= MOST_DEPTH:
        value, position = _varint(view, position)
        values.append(value)
    return values


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _DamagedError("a number stands where a message should")
    return value


def _text(value: int | memoryview | bytes) -> str:
    return "" if isinstance(value, int) else bytes(value[:4096]).decode("utf-8", "replace")
