"""Compare two folders of results file by file, dates and times apart.

What is passed over is listed in `PASSED_OVER`, and nothing else is: values of those keys and columns may differ,
the keys themselves must be there on both sides.
"""

import csv
import io
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Image.MAX_IMAGE_PIXELS = None

EVENTS = ".batch/events"
# Of the kind of file, the keys or columns whose values are dates, times, processes or the checkout's commit.
PASSED_OVER: dict[str, frozenset[str]] = {
    "summary.json": frozenset({"seconds", "finished"}),
    "model card": frozenset({"commit"}),
    "manifest.csv": frozenset({"seconds", "finished", "worker"}),
    "epochs.csv": frozenset({"seconds", "processor_seconds", "patches_per_s"}),
    "checkpoint": frozenset({"seconds", "processor_seconds", "patches_per_s", "commit"}),
    "events": frozenset({"time", "since", "finished", "seconds", "worker", "host", "pid"}),
    "PNG": frozenset({"tIME chunk", "text chunks named date:*, Creation Time, or Date"}),
    "HTML": frozenset({"dates (2000-01-31)", "durations (12.3 s, 4 min, 150 patches/s)"}),
    "printed": frozenset({"durations (12.3 s, 4 min, 150 patches/s)", "paths of checkout and work folder"}),
    "search database": frozenset({"the whole file: SQLite with dates in it; best.yaml is compared"}),
}
# Values that are sentences for people.
WORDS = frozenset({"reason", "warnings", "tissue_reason"})
# How often this event stands in the log depends on the time that the slide takes.
TIMED_EVENT = "slide_progress"
APART = "(apart)"
_DURATION = re.compile(r"\b\d[\d,.]*\s?(ms|s|min|h|d|(patches|images|slides)?/s)\b(?!\w)")
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}([T ][\d:.]+(\+00:00|Z)?)?")
_DATE_TEXT = re.compile(rb"(date|creation time)", re.IGNORECASE)


@dataclass(frozen=True)
class Compared:
    """One file of both folders: its path in them, its kind, and what differs ("" where nothing does).

    `words` where only text for people differs.
    """

    path: str
    kind: str
    difference: str = ""
    words: bool = False


def compare_trees(before: Path, after: Path) -> Iterator[Compared]:
    """Every file under either folder, and the events of each run as one."""
    paths = sorted(_files(before) | _files(after))
    for folder in sorted({str(Path(path).parent) for path in paths if _is_event(path)}):
        yield _compare_values(folder, "events", _events(before / folder), _events(after / folder))
    for path in paths:
        if not _is_event(path):
            yield _compare_file(before / path, after / path, path)


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def _is_event(path: str) -> bool:
    return path.endswith(".jsonl") and str(Path(path).parent).endswith(EVENTS)


def _compare_file(before: Path, after: Path, path: str) -> Compared:
    kind = kind_of(path)
    for here, where in ((before, "before"), (after, "after")):
        if not here.exists():
            return Compared(path, kind, f"not there {where} the change")
    modes = [stat.filemode(file.stat().st_mode) for file in (before, after)]
    if modes[0] != modes[1]:
        return Compared(path, kind, f"file mode {modes[0]}, then {modes[1]}")
    one, other = before.read_bytes(), after.read_bytes()
    if one == other or kind == "search database":
        return Compared(path, kind)
    if kind == "manifest.csv":
        return _compare_values(path, kind, _table(one, kind), _table(other, kind))
    if kind == "printed":
        return Compared(path, kind, _first_difference(plain_text(one), plain_text(other)), words=True)
    if kind == "summary.json":
        return _compare_values(path, kind, _masked_json(one, kind), _masked_json(other, kind))
    return Compared(path, kind, _difference(kind, one, other))


def _difference(kind: str, one: bytes, other: bytes) -> str:
    """What differs between two files of that kind whose bytes are not equal; "" where it is passed over."""
    if kind == "PNG":
        return _png_difference(one, other)
    if kind == "model card":
        return _first_difference(_masked_json(one, kind), _masked_json(other, kind))
    if kind == "epochs.csv":
        return _first_difference(_table(one, kind), _table(other, kind))
    if kind == "checkpoint":
        return _first_difference(_checkpoint(one), _checkpoint(other))
    if kind == "HTML":
        return _first_difference(_DATE.sub(APART, plain_text(one)), _DATE.sub(APART, plain_text(other)))
    if kind in ("GeoJSON", "JSON", "zarr metadata"):
        return _first_difference(json.loads(one), json.loads(other)) or "same values, other bytes"
    if len(one) != len(other):
        return f"{len(one):,} bytes, then {len(other):,}"
    unequal = np.flatnonzero(np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8))
    return f"{len(unequal):,} of {len(one):,} bytes differ, the first at {unequal[0]:,}"


def kind_of(path: str) -> str:
    """What the file is, by its place and name."""
    file = Path(path)
    if any(part.endswith(".zarr") for part in file.parts):
        return "zarr metadata" if file.name == "zarr.json" else "zarr chunk"
    if file.name in ("summary.json", "manifest.csv", "epochs.csv"):
        return file.name
    if file.suffix == ".json" and file.stem in ("tiny", "idc_default"):
        return "model card"
    kinds = {
        ".png": "PNG",
        ".geojson": "GeoJSON",
        ".json": "JSON",
        ".html": "HTML",
        ".safetensors": "weights",
        ".pt": "checkpoint",
        ".printed": "printed",
        ".code": "exit code",
        ".db": "search database",
    }
    return kinds.get(file.suffix, "other")


def plain_text(data: bytes) -> str:
    """The text, durations and rates masked."""
    return _DURATION.sub(APART, data.decode("utf-8", "replace"))


def _events(folder: Path) -> list[dict[str, Any]]:
    """The events of all files, sorted, for several workers write in any order."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    events = [_apart(json.loads(line), PASSED_OVER["events"]) for line in lines]
    return sorted((event for event in events if event["event"] != TIMED_EVENT), key=json.dumps)


def _masked_json(text: bytes, kind: str) -> Any:
    """The values, and how many lines they are laid out in."""
    return {"values": _apart(json.loads(text), PASSED_OVER[kind]), "lines": text.count(b"\n")}


def _table(data: bytes, kind: str) -> list[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
    return [_apart(row, PASSED_OVER[kind]) for row in rows]


def _compare_values(path: str, kind: str, one: Any, other: Any) -> Compared:
    """Plain values; where only keys of `WORDS` differ, the difference is in words."""
    difference = _first_difference(one, other)
    rest = _first_difference(_apart(one, WORDS), _apart(other, WORDS))
    return Compared(path, kind, difference, words=bool(difference) and not rest)


def _png_difference(one: bytes, other: bytes) -> str:
    pictures = [Image.open(io.BytesIO(data)) for data in (one, other)]
    shapes = [(picture.mode, picture.size) for picture in pictures]
    if shapes[0] != shapes[1]:
        return f"{shapes[0]}, then {shapes[1]}"
    chunks = [_metadata(data) for data in (one, other)]
    if chunks[0] != chunks[1]:
        return f"metadata: {_first_difference(chunks[0], chunks[1])}"
    pixels = [np.atleast_3d(np.asarray(picture)) for picture in pictures]
    unequal = (pixels[0] != pixels[1]).any(axis=2)
    if not unequal.any():
        return ""  # the same picture and metadata, packed in another way
    rows, columns = np.nonzero(unequal)
    box = f"x {columns.min()}-{columns.max()}, y {rows.min()}-{rows.max()}"
    furthest = np.abs(pixels[0].astype(int) - pixels[1].astype(int)).max()
    return f"{unequal.sum():,} of {unequal.size:,} pixels differ ({box}), by {furthest} at most"


def _metadata(png: bytes) -> list[str]:
    """All chunks but pixels and dates, in their order."""
    chunks, place = [], 8
    while place < len(png):
        size, name = int.from_bytes(png[place : place + 4]), png[place + 4 : place + 8]
        data = png[place + 8 : place + 8 + size]
        place += size + 12
        is_date = name == b"tIME" or (name in (b"tEXt", b"iTXt", b"zTXt") and _DATE_TEXT.match(data))
        if name != b"IDAT" and not is_date:
            chunks.append(f"{name.decode()} {data!r}")
    return chunks


def _checkpoint(data: bytes) -> Any:
    """What a training keeps of itself; tensors as dtype, shape and bytes."""
    import torch  # seconds: only where there is one

    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return _apart(_plain(state), PASSED_OVER["checkpoint"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "untyped_storage"):
        return [str(value.dtype), list(value.shape), value.flatten().contiguous().numpy().tobytes()]
    return value


def _apart(value: Any, keys: frozenset[str], inside: bool = False) -> Any:
    """`value` with the values of `keys`, and all below them, masked."""
    if isinstance(value, dict):
        return {key: _apart(inner, keys, inside or key in keys) for key, inner in value.items()}
    if isinstance(value, list):
        return [_apart(inner, keys, inside) for inner in value]
    return APART if inside else value


def _first_difference(one: Any, other: Any, place: str = "") -> str:
    """Where two plain values first differ, and how; "" where they do not. The order of keys counts."""
    if isinstance(one, dict) and isinstance(other, dict):
        if list(one) != list(other):
            gone, new = [key for key in one if key not in other], [key for key in other if key not in one]
            return (
                f"{place}: keys gone {gone}, new {new}" if gone or new else f"{place}: keys in another order"
            )
        found = (_first_difference(one[key], other[key], f"{place}/{key}") for key in one)
        return next(filter(None, found), "")
    if isinstance(one, str) and isinstance(other, str) and "\n" in one + other:
        return _first_difference(one.split("\n"), other.split("\n"), f"{place} line")
    if isinstance(one, list) and isinstance(other, list):
        found = (
            _first_difference(*pair, f"{place} {i}") for i, pair in enumerate(zip(one, other, strict=False))
        )
        size = "" if len(one) == len(other) else f"{place}: {len(one)} entries, then {len(other)}"
        return next(filter(None, found), size)
    same = one == other or (one != one and other != other)  # NaN
    if same and type(one) is type(other):
        return ""
    if isinstance(one, bytes) and isinstance(other, bytes):
        return f"{place}: other values"
    start = 0
    if isinstance(one, str) and isinstance(other, str):  # show where, not how a long line begins
        unequal = (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
        start = max(0, next(unequal, min(len(one), len(other))) - 40)
        return f"{place}: {_shorter(one[start:])}, then {_shorter(other[start:])}"
    return f"{place}: {_shorter(one)}, then {_shorter(other)}"


def _shorter(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
