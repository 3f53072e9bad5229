"""DICOM files of a folder: which series they are of, and which of them are slides.

A slide is a series: its levels, label and overview are files of one SeriesInstanceUID. Other objects (annotations,
segmentations, presentation states, reports) have series of their own, often in the same folder.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from wsi_pipeline.base.errors import SlideReadError
from wsi_pipeline.slides.readers.source import RETRY_WAITS_S, reason, with_retries

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
    is_patient = True
    for path in sorted(files):
        try:
            header = read_header(path, is_patient)
        except SlideReadError as error:
            cause = error.__cause__
            others[f"not read: {reason(cause) if isinstance(cause, OSError) else error}"] += 1
            is_patient = False  # a disk that is gone is waited for once, not at each of a thousand files
            continue
        if header is None:
            others["no DICOM file"] += 1
        elif header.is_slide:
            series.setdefault(header.series, []).append(path)
        else:
            others[f"DICOM {header.modality or 'of another class'}"] += 1
    return DicomFolder({uid: tuple(paths) for uid, paths in series.items()}, others)


def read_header(path: Path, is_patient: bool = True) -> DicomFile | None:
    """What the file is; None where it is no DICOM file, or is not there.

    Raises SlideReadError where it cannot be read: at once, or where `is_patient` after the waits of `with_retries`.
    """
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return _header(path, is_patient, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _header(path: Path, is_patient: bool, *state: int) -> DicomFile | None:
    from pydicom.filereader import read_partial  # takes a second: only where there are DICOM files
    from pydicom.tag import Tag

    last = Tag("SeriesInstanceUID")

    def read() -> DicomFile | None:
        with path.open("rb") as file, damage_as_none():
            header = read_partial(file, stop_when=lambda tag, vr, length: tag > last)
            # Values are made of their bytes when they are asked for, and may be refused then.
            return DicomFile(
                *(str(header.get(name, "")) for name in ("SOPClassUID", "SeriesInstanceUID", "Modality"))
            )
        return None

    return with_retries(path, read, RETRY_WAITS_S if is_patient else ())


@contextmanager
def damage_as_none() -> Iterator[None]:
    """Any error of pydicom at damaged bytes (EOFError, ValueError, NotImplementedError and others) ends the block.

    Raises OSError where the system could not give the bytes, which is no damage.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
    except Exception:
        return
