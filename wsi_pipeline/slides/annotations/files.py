"""Which files hold the labels of a slide: outlines (GeoJSON or XML), and pictures of labels."""

from pathlib import Path

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.slides.names import slide_name

# As ASAP and ImageScope write it.
XML_SUFFIXES = (".xml", ".XML")
# As QuPath and people write it; packed, as QuPath does where one asks for it.
OUTLINE_SUFFIXES = (".geojson", ".GEOJSON", ".geojson.gz", ".GEOJSON.GZ", *XML_SUFFIXES)
PICTURE_SUFFIX = "_labels.png"
# Masks, whose values are classes that the config names.
MASK_SUFFIXES = ("_mask.png", "_mask.tif", "_mask.tiff")
# As the page in the browser leaves it in a run folder.
REVIEW_NAME = "review.geojson"


def outlines_of(folder: Path, slide: Path, name: str) -> Path | None:
    """The outlines in `folder` of the slide at `slide`, called `name`: NAME.geojson, packed or not, or NAME.xml.

    FILE.geojson and FILE.xml, with the ending of the slide in front, are found too.

    Of a folder of runs: NAME/review.geojson, what people said there of the slide.

    None where there are none. Raises DataError where there are two.
    """
    names = {name: None}
    if name == slide_name(slide):  # else a list gives it, maybe since two files have one name
        names |= dict.fromkeys((slide.name, slide.name.removesuffix(slide.suffix)))
    found: list[Path] = []
    for path in (folder / f"{each}{suffix}" for each in names for suffix in OUTLINE_SUFFIXES):
        if path.is_file() and not any(path.samefile(other) for other in found):
            found.append(path)
    if (review := folder / name / REVIEW_NAME).is_file():
        found.append(review)
    if len(found) > 1:
        raise DataError(
            f"{slide}: found two files of outlines, {found[0].name} and {found[1].relative_to(folder)} in {folder}; "
            "keep one"
        )
    return found[0] if found else None


def label_picture_of(folder: Path, name: str) -> Path | None:
    """The picture of labels in `folder` of the slide called `name`, NAME_labels.png; None where there is none."""
    path = folder / f"{name}{PICTURE_SUFFIX}"
    return path if path.is_file() else None


def labels_beside(folder: Path, slide: Path, name: str) -> Path | None:
    """The labels in `folder` of the slide at `slide`, called `name`: outlines as `outlines_of` finds them, or a mask.

    A mask is NAME_mask.png, .tif or .tiff, or NAME_labels.png. None where there are neither. Raises DataError where
    there are two.
    """
    outlines = outlines_of(folder, slide, name)
    places = [folder / f"{name}{suffix}" for suffix in (*MASK_SUFFIXES, PICTURE_SUFFIX)]
    found = [*([outlines] if outlines else []), *(path for path in places if path.is_file())]
    if len(found) > 1:
        raise DataError(
            f"{slide}: found two files of labels, {found[0].name} and {found[1].name} in {folder}; keep one"
        )
    return found[0] if found else None


def names_outlines(path: Path) -> bool:
    """Whether the file's name is that of a file of outlines."""
    return path.name.endswith(OUTLINE_SUFFIXES)


def is_xml(path: Path) -> bool:
    """Whether the outlines in the file are XML by its name."""
    return path.name.endswith(XML_SUFFIXES)
