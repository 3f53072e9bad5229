"""Which files make up a slide: some formats spread one over several."""

from pathlib import Path

DICOM_SUFFIX = ".dcm"
# A MIRAX slide is a file, and a folder of the same name that holds its pixels.
MIRAX_SUFFIX = ".mrxs"
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
