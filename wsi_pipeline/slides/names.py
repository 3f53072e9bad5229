"""The name of a slide, which is that of its run folder: made and checked here, wherever the slide comes from."""

import hashlib
import os
from pathlib import Path

from wsi_pipeline.base.text import printable

# A name of a file has 255 bytes at most; patches, locks and files in the making add some 50 to the slide's.
MAX_NAME_BYTES = 200
HASH_DIGITS = 10
# Of the batch itself, in the folder that holds the run folders.
RESERVED = ("manifest.csv", "batch.csv", "batch.pdf", "patients.csv")


def slide_name(path: Path) -> str:
    """The name that a slide gets from its path: the file's without its ending, or the DICOM folder's.

    Bytes that are no text are written out, and what is too long is cut, and ends in a hash of the whole.
    """
    if path.name in ("", ".."):
        path = path.resolve()
    return run_name(path.name if os.path.isdir(path) or not ending(path) else path.stem)  # noqa: PTH112


def ending(path: Path) -> str:
    """The file's ending in small letters, '.svs'; none where it is a number, as that of a DICOM UID."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def run_name(name: str) -> str:
    """The name as a folder can have it.

    >>> run_name("S1"), len(run_name("x" * 250))
    ('S1', 200)
    """
    text = printable(name)
    data = text.encode()
    if len(data) <= MAX_NAME_BYTES:
        return text
    tail = f"~{hashlib.sha256(data).hexdigest()[:HASH_DIGITS]}"
    return data[: MAX_NAME_BYTES - len(tail)].decode(errors="ignore") + tail


def is_cut(name: str) -> bool:
    """Whether the name looks like one that was too long."""
    _, mark, digits = name.rpartition("~")
    return bool(mark) and len(digits) == HASH_DIGITS and len(name.encode()) > MAX_NAME_BYTES - 4


def fault_of_name(name: str) -> str:
    """Why a run folder cannot have this name; empty where it can."""
    if not name or name.startswith("."):
        return f"its name would be '{name}', which is no name of a folder of results"
    if "/" in name or "\0" in name:
        return f"its name would be '{name}', with a / in it"
    if name.casefold() in RESERVED:
        return f"its name would be '{name}', as that of a file of the batch"
    return ""
