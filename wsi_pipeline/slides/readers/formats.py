"""The table of slide formats: how their files are called, and which files belong together.

Read by OpenSlide (https://openslide.org/formats/) or readers/tiff.py. A row is added with the reader of a format.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.slides.names import ending
from wsi_pipeline.slides.readers.detect import is_readable_tiff
from wsi_pipeline.slides.readers.dicom import DicomFolder, has_dicom_magic, read_header, sort_files


def _none(path: Path) -> Iterable[Path]:
    return ()


def _of_data_folder(path: Path) -> Iterable[Path]:
    """A MIRAX slide is a file, and a folder of the same name that holds its pixels."""
    return path.with_suffix("").rglob("*")


def _of_its_folder(path: Path) -> Iterable[Path]:
    """The file names its pictures inside: what lies in its folder is taken for it."""
    return path.parent.iterdir()


def _of_its_series(path: Path) -> Iterable[Path]:
    header = read_header(path)
    if header is None:
        return ()
    return dicom_folder(path.parent).series.get(header.series, ())


@dataclass(frozen=True)
class SlideFormat:
    """One kind of slide file."""

    name: str
    suffixes: tuple[str, ...]
    companions: Callable[[Path], Iterable[Path]] = _none
    """The files that are read with a slide's own; may name that, folders and files that are not there."""

    by_content: bool = False
    """Other files have such endings too: it is a slide where its first bytes say so."""


DICOM = SlideFormat("DICOM", (".dcm", ".dicom"), _of_its_series)
MIRAX = SlideFormat("MIRAX", (".mrxs",), _of_data_folder)
FORMATS = (
    SlideFormat("Aperio, Philips, Trestle, generic TIFF", (".svs", ".tif", ".tiff")),
    SlideFormat("Hamamatsu", (".ndpi",)),
    SlideFormat("Hamamatsu, several files", (".vms", ".vmu"), _of_its_folder),
    SlideFormat("Leica", (".scn",)),
    MIRAX,
    SlideFormat("Ventana", (".bif",)),
    SlideFormat("Sakura", (".svslide",)),
    SlideFormat("Zeiss", (".czi",)),
    DICOM,
    SlideFormat("TIFF of other endings", (".qptiff", ".avs", ".btf", ".tf2", ".tf8", ""), by_content=True),
)
_BY_SUFFIX = {suffix: row for row in FORMATS for suffix in row.suffixes}


def is_slide_file(path: Path) -> bool:
    """Whether the file is a slide by itself: by its ending, and where that is not enough by its first bytes.

    Hidden files are none, and files of a DICOM slide are not by themselves: see `dicom_folder`.
    """
    row = _BY_SUFFIX.get(ending(path))
    if row is None or row is DICOM or path.name.startswith("."):
        return False
    return is_readable_tiff(path) if row.by_content else True


def is_dicom_file(path: Path) -> bool:
    """Whether the file's ending is that of DICOM or, where it has none, its first bytes are."""
    suffix = ending(path)
    if path.name.startswith("."):
        return False
    return suffix in DICOM.suffixes or (not suffix and has_dicom_magic(path))


def dicom_folder(folder: Path) -> DicomFolder:
    """The DICOM files of the folder, by slide. Raises OSError where it cannot be read."""
    with os.scandir(folder) as entries:
        files = [Path(entry.path) for entry in entries if entry.is_file()]
    return sort_files([path for path in files if is_dicom_file(path)])


def is_part_of_a_slide(folder: Path, beside: set[str]) -> bool:
    """Whether the folder holds the pixels of a slide file beside it; `beside` are the names there."""
    return any(f"{folder.name}{suffix}" in beside for suffix in (*MIRAX.suffixes, ".MRXS"))


def slide_files(path: Path) -> list[Path]:
    """The file itself first, then those that are read with it, in the order of their names."""
    row = DICOM if is_dicom_file(path) else _BY_SUFFIX.get(ending(path))
    found = row.companions(path) if row else ()
    return [path, *sorted(file for file in found if file != path and file.is_file())]
