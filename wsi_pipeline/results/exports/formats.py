"""Which exports there are, what files each writes, and what it needs; `written.py` writes them."""

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from wsi_pipeline.base.errors import UsageError

ExportName = Literal["ometiff", "dicom", "asap", "pdf"]


@dataclass(frozen=True)
class Export:
    """One kind of export: names of the files it writes, and the packages of the extra `exports` that it needs."""

    files: tuple[str, ...]
    needs: tuple[str, ...] = ()


EXPORTS: dict[ExportName, Export] = {
    "ometiff": Export(("map.ome.tiff",)),
    "dicom": Export(("regions.dcm", "map.dcm"), needs=("highdicom",)),
    "asap": Export(("regions.asap.xml",)),
    "pdf": Export(("report.pdf",)),
}
EXPORT_FILES = tuple(name for export in EXPORTS.values() for name in export.files)


def exports_of(text: str) -> tuple[ExportName, ...]:
    """The exports that a list says, "ometiff,pdf"; "none" are none.

    Raises UsageError for one that there is not.

    >>> exports_of("pdf, ometiff"), exports_of("none")
    (('ometiff', 'pdf'), ())
    """
    names = [] if text.strip() == "none" else [name.strip() for name in text.split(",")]
    known: tuple[ExportName, ...] = get_args(ExportName)
    if unknown := [name for name in names if name not in known]:
        found = ", ".join(f"'{name}'" for name in unknown)
        raise UsageError(f"--exports {text}: found {found}, expected some of {', '.join(known)}, or none")
    return tuple(name for name in known if name in names)


def missing_packages(name: ExportName) -> list[str]:
    """Of the packages that the export needs, those that are not installed."""
    return [package for package in EXPORTS[name].needs if find_spec(package) is None]


def check_exports(exports: Collection[ExportName]) -> None:
    """Raises UsageError where a package that they need is not installed."""
    for name in exports:
        if missing := missing_packages(name):
            raise UsageError(
                f"the export '{name}' needs {' and '.join(missing)}, which is not installed: "
                f"pip install '.[exports]', or leave '{name}' out of --exports"
            )


def files_of(exports: Collection[ExportName]) -> tuple[str, ...]:
    """Names of the files that they write."""
    return tuple(file for name, export in EXPORTS.items() if name in exports for file in export.files)


def exports_in(files: Collection[str]) -> set[ExportName]:
    """The exports of which something is among these files of a run folder."""
    return {name for name, export in EXPORTS.items() if any(file in files for file in export.files)}
