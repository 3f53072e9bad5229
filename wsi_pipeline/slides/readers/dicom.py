"""DICOM files of a folder: which series they are of, and which of them are slides.

A slide is a series: its levels, label and overview are files of one SeriesInstanceUID. Other objects (annotations,
segmentations, presentation states, reports) have series of their own, often in the same folder.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# VL Whole Slide Microscopy Image Storage.
SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
MAGIC, MAGIC_OFFSET = b"DICM", 128


@dataclass(frozen=True)
class DicomFile:
    """What a file's header says of it."""

    sop_class: str
    series: str
    modality: str

    @property
    def is_slide(self) -> bool:
        """Whether it is a file of a slide."""
        return self.sop_class == SLIDE_CLASS and bool(self.series)


@dataclass(frozen=True)
class DicomFolder:
    """A folder's DICOM files, sorted: those of each slide by the slide's series, and what the others are."""

    series: Mapping[str, tuple[Path, ...]]
    others: Mapping[str, int]


def has_dicom_magic(path: Path) -> bool:
    """Whether the file begins as DICOM does; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(MAGIC_OFFSET)
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def sort_files(files: list[Path]) -> DicomFolder:
    """The files by series, these by their first file's name."""
    series: dict[str, list[Path]] = {}
    others = Counter[str]()
    for path in sorted(files):
        header = read_header(path)
        if header is None:
            others["no DICOM file"] += 1
        elif header.is_slide:
            series.setdefault(header.series, []).append(path)
        else:
            others[f"DICOM {header.modality or 'of another class'}"] += 1
    return DicomFolder({uid: tuple(paths) for uid, paths in series.items()}, others)


def read_header(path: Path) -> DicomFile | None:
    """What the file is; None where it is no DICOM file, or cannot be read."""
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return _header(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _header(path: Path, *state: int) -> DicomFile | None:
    from pydicom.filereader import read_partial  # takes a second: only where there are DICOM files
    from pydicom.tag import Tag

    last = Tag("SeriesInstanceUID")
    try:
        with path.open("rb") as file:
            header = read_partial(file, stop_when=lambda tag, vr, length: tag > last)
        # Values are made of their bytes when they are asked for, and may be refused then.
        sop_class, series, modality = (
            str(header.get(name, "")) for name in ("SOPClassUID", "SeriesInstanceUID", "Modality")
        )
    except Exception:
        # pydicom raises what it likes at damaged bytes: EOFError, ValueError, NotImplementedError ...
        return None
    return DicomFile(sop_class, series, modality)
