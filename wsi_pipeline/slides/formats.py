"""Which files of a folder are slides: by the endings of the formats that OpenSlide reads."""

from pathlib import Path

# https://openslide.org/formats/; .dcm is not here: the DICOM files of a folder are one slide together.
SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".svslide", ".czi")
)
DICOM_SUFFIX = ".dcm"
# A MIRAX slide is a file, and a folder of the same name that holds its pixels.
MIRAX_SUFFIX = ".mrxs"


def is_slide_file(path: Path) -> bool:
    """Whether the file's ending is one of a slide format, in capitals or not; hidden files are none."""
    return path.suffix.lower() in SLIDE_SUFFIXES and not path.name.startswith(".")


def is_dicom_file(path: Path) -> bool:
    """Whether the file's ending is that of DICOM."""
    return path.suffix.lower() == DICOM_SUFFIX and not path.name.startswith(".")


def is_part_of_a_slide(folder: Path, beside: set[str]) -> bool:
    """Whether the folder holds the pixels of a slide file beside it; `beside` are the names there."""
    return f"{folder.name}{MIRAX_SUFFIX}" in beside


# A Hamamatsu slide of these kinds names its pictures inside: what lies in its folder is taken for it.
FOLDER_SUFFIXES = (".vms", ".vmu")


def slide_files(path: Path) -> list[Path]:
    """The file itself first, then those that OpenSlide reads with it, in the order of their names."""
    suffix, folder = path.suffix.lower(), path.parent
    if suffix == MIRAX_SUFFIX:
        found = path.with_suffix("").rglob("*")
    elif suffix == DICOM_SUFFIX:
        found = (other for other in folder.iterdir() if other.suffix.lower() == DICOM_SUFFIX)
    elif suffix in FOLDER_SUFFIXES:
        found = folder.iterdir()
    else:
        return [path]
    return [path, *sorted(file for file in found if file != path and file.is_file())]
