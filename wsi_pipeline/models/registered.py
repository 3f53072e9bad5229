"""Models under names and versions in a folder: REGISTRY/NAME/VERSION/, which never changes once it is there.

    REGISTRY/mine/1.0/model.safetensors    the weights
    REGISTRY/mine/1.0/model.json           their card
    REGISTRY/mine/1.0/entry.json           who approved it when, and the SHA-256 of both files

`--model mine@1.0` takes it from there, and checks both hashes. Nothing is fetched.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import ModelError, UsageError
from wsi_pipeline.base.files import folders, new_folder, one_at_a_time, read_whole, write_bytes, write_json

# Names the folder where no --registry does.
VARIABLE = "WSI_MODELS"
DEFAULT = Path("~/.local/share/wsi_pipeline/models")
WEIGHTS, CARD, ENTRY = "model.safetensors", "model.json", "entry.json"
MARK = "@"
# What ends so is asked for as a file.
FILE_ENDING = ".safetensors"
# A folder's name on any file system, and no path.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
MOST_APPROVER = 200


@dataclass(frozen=True)
class Entry:
    """What the registry says of one version of a model."""

    name: str
    version: str
    approved_by: str
    """Who approved it."""
    approved: str
    """When, in UTC (ISO 8601)."""
    source: str
    """Name of the file that it was added from."""
    weights_sha256: str
    card_sha256: str

    def __str__(self) -> str:
        return f"{self.name}{MARK}{self.version}"


def registry_folder(given: Path | None = None) -> Path:
    """The folder given, or that of $WSI_MODELS, or ~/.local/share/wsi_pipeline/models."""
    return (given or Path(os.environ.get(VARIABLE) or DEFAULT)).expanduser()


def parse_name(text: str) -> tuple[str, str]:
    """Name and version of NAME@VERSION. Raises UsageError."""
    name, _, version = text.partition(MARK)
    if not (_WORD.fullmatch(name) and _WORD.fullmatch(version)) or version.endswith(FILE_ENDING):
        raise UsageError(
            f"found '{text}', expected NAME@VERSION, each of letters, digits and . _ + - (at most 64, a letter or a "
            f"digit first, and no version that ends in {FILE_ENDING}): mine@1.0"
        )
    return name, version


def is_registered_name(text: str | Path) -> bool:
    """Whether it is of the form NAME@VERSION, and no file."""
    name, _, version = str(text).partition(MARK)
    words = _WORD.fullmatch(name) and _WORD.fullmatch(version)
    return bool(words) and not version.endswith(FILE_ENDING) and not Path(text).exists()


def add_entry(folder: Path, text: str, weights: Path, approved_by: str) -> Entry:
    """Put the weights and the card beside them into the registry as NAME@VERSION; whole or not at all.

    The caller has loaded the model, so that it is known to be one. Raises UsageError where that version is there
    already, ModelError, OutputError.
    """
    name, version = parse_name(text)
    if not approved_by.strip() or len(approved_by) > MOST_APPROVER or not approved_by.isprintable():
        raise UsageError(
            f"--approved-by: expected who answers for the model, in at most {MOST_APPROVER} characters"
        )
    content = {WEIGHTS: _read(weights), CARD: _read(weights.with_suffix(".json"))}
    entry = Entry(
        name,
        version,
        approved_by.strip(),
        datetime.now(UTC).isoformat(timespec="seconds"),
        weights.name,
        *(hashlib.sha256(data).hexdigest() for data in content.values()),
    )
    place = folder / name / version
    with one_at_a_time(folder / f".{name}.lock"):
        if place.exists():
            raise UsageError(
                f"{entry}: is in {folder} already, and what is there never changes; give it another version"
            )
        with new_folder(place) as part:
            for file, data in content.items():
                write_bytes(part / file, data)
            write_json(part / ENTRY, asdict(entry))
    return entry


def entries_of(folder: Path) -> tuple[list[Entry], list[str]]:
    """All entries, by name and then by when they were approved; and a line for each folder that holds none."""
    found, broken = [], []
    for name in sorted(folders(folder)):
        for version in sorted(folders(folder / name)):
            try:
                found.append(_entry(folder, name, version))
            except ModelError as error:
                broken.append(str(error))
    return sorted(found, key=lambda entry: (entry.name, entry.approved, entry.version)), broken


def find_entry(folder: Path, text: str) -> Entry:
    """The entry called NAME@VERSION. Raises ModelError that lists what there is."""
    name, version = parse_name(text)
    if not (folder / name / version).is_dir():
        known = ", ".join(map(str, entries_of(folder)[0])) or "nothing"
        raise ModelError(
            f"model '{text}' is not in the registry {folder}, which holds {known}; add it with models add, or set "
            f"${VARIABLE} to another registry"
        )
    return _entry(folder, name, version)


def registered_weights(text: str, given: Path | None = None) -> Path:
    """The weights file of NAME@VERSION, with its card beside it, both as they were approved. Raises ModelError."""
    folder = registry_folder(given)
    entry = find_entry(folder, text)
    place = folder / entry.name / entry.version
    for file, wanted in ((WEIGHTS, entry.weights_sha256), (CARD, entry.card_sha256)):
        found = hashlib.sha256(_read(place / file)).hexdigest()
        if found != wanted:
            raise ModelError(
                f"{place / file}: found SHA-256 {found[:12]}..., expected {wanted[:12]}... as approved by "
                f"{entry.approved_by}: damaged, or changed since; add the model again as another version"
            )
    return place / WEIGHTS


def _entry(folder: Path, name: str, version: str) -> Entry:
    path = folder / name / version / ENTRY
    try:
        values: Any = json.loads(_read(path))
        if not isinstance(values, Mapping) or not all(isinstance(value, str) for value in values.values()):
            raise ValueError("expected an object of texts")
        entry = Entry(**values)
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path}: expected an entry of the registry: {error}; add the model again"
        ) from error
    if (entry.name, entry.version) != (name, version):
        raise ModelError(f"{path}: says {entry}, expected {name}{MARK}{version} as its folder; was it moved?")
    return entry


def _read(path: Path) -> bytes:
    try:
        return read_whole(path)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); a model is a .safetensors file with its .json card beside it"
        ) from error
