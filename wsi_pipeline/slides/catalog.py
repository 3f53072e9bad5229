"""Which slides a batch is of: files, folders, patterns and CSV lists, in a settled order, each with its name.

A CSV has a line a slide with the columns `slide` (a path, relative to the CSV's own folder), and by wish `name`
(of its run folder) and `mpp` (um per level-0 pixel); an empty field says nothing.
"""

import csv
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.base.errors import ListError
from wsi_pipeline.slides.formats import is_dicom_file, is_part_of_a_slide, is_slide_file
from wsi_pipeline.slides.slide import slide_name

LIST_SUFFIX = ".csv"
COLUMNS = ("slide", "name", "mpp")
# Folders of these endings are results, never slides.
RESULT_SUFFIXES = (".zarr",)


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a batch: where it lies, the name of its run folder, and what overrides its file's scale.

    `refused` says why it is not worked on, where that is known before it is opened.
    """

    path: Path
    name: str
    mpp: float | None = None
    refused: str = ""

    def __str__(self) -> str:
        return str(self.path)


def list_slides(arguments: Iterable[str | Path], mpp: float | None = None) -> list[SlideEntry]:
    """The slides that files, folders, patterns and CSV lists name, in that order; a folder's by their paths.

    `mpp` is the scale of those for which no CSV gives one. A slide named twice is there once; a second slide of
    an earlier one's name has a reason in `refused`, for both would write to one folder. Raises ListError when
    an argument gives no slide, or a CSV cannot be read or has a column or value that it should not have.
    """
    return _without_namesakes(entry for argument in arguments for entry in _entries(str(argument), mpp))


def slides_directly_in(folder: Path) -> list[SlideEntry]:
    """The slides in the folder, without those of the folders below; none where there is none."""
    paths = [path for path in _walk(folder) if path.parent == folder and path != folder]
    return _without_namesakes(_entry(path, None) for path in paths)


def shard_of(entries: Sequence[SlideEntry], shard: str) -> list[SlideEntry]:
    """Part 'i/n' of the slides, i from 1 to n: every n-th from the i-th on. The n parts are all, each once.

    Raises ListError when `shard` is not of that form.
    """
    try:
        i, n = (int(part) for part in shard.split("/"))
        if not 1 <= i <= n:
            raise ValueError
    except ValueError:
        raise ListError(
            f"--shard {shard}: expected i/n with i from 1 to n, as 3/10 for the third of ten"
        ) from None
    return list(entries[i - 1 :: n])


def _without_namesakes(found: Iterable[SlideEntry]) -> list[SlideEntry]:
    entries: list[SlideEntry] = []
    seen: dict[str, SlideEntry] = {}
    for entry in found:
        earlier = seen.setdefault(entry.name, entry)
        if earlier is entry:
            entries.append(entry)
        elif (earlier.path.absolute(), earlier.mpp) != (entry.path.absolute(), entry.mpp):
            entries.append(_refused(entry, earlier))
    return entries


def _entries(argument: str, mpp: float | None) -> Iterator[SlideEntry]:
    path = Path(argument)
    if path.is_dir():
        yield from _of_folder(path, mpp)
    elif path.suffix.lower() == LIST_SUFFIX:
        yield from _of_csv(path, mpp)
    elif not path.exists() and glob.has_magic(argument):
        yield from _of_pattern(argument, mpp)
    else:  # one that is not there fails by itself, with its reason, and spares the others
        yield _entry(path, mpp)


def _of_folder(folder: Path, mpp: float | None) -> list[SlideEntry]:
    found = [_entry(path, mpp) for path in _walk(folder)]
    if not found:
        raise ListError(
            f"{folder}: no slides in this folder or those in it; looked for files with the endings of the "
            f"formats that OpenSlide reads (.svs, .ndpi, .mrxs, .tiff ...) and folders of .dcm files"
        )
    return found


def _walk(top: Path) -> Iterator[Path]:
    """Slide files and DICOM folders, sorted by path."""
    for place, folders, files in os.walk(top):
        folder, beside = Path(place), {*files}
        if any(is_dicom_file(Path(name)) for name in files):
            yield folder
        yield from (folder / name for name in sorted(files) if is_slide_file(Path(name)))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not name.endswith(RESULT_SUFFIXES)
            and not is_part_of_a_slide(folder / name, beside)
        )


def _of_pattern(pattern: str, mpp: float | None) -> Iterator[SlideEntry]:
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - may be absolute
    beside = {path.name for path in found}
    slides = [slide for path in found for slide in _slides_at(path, beside)]
    if not slides:
        raise ListError(f"{pattern}: no slide fits this pattern ({len(found)} files and folders do)")
    yield from (_entry(path, mpp) for path in slides)


def _slides_at(path: Path, beside: set[str]) -> Iterator[Path]:
    """The slides that a hit of a pattern stands for."""
    if path.is_dir():
        if not is_part_of_a_slide(path, beside):
            yield from _walk(path)
    elif is_dicom_file(path):
        yield path.parent
    elif is_slide_file(path):
        yield path


def _of_csv(path: Path, mpp: float | None) -> Iterator[SlideEntry]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(path, names)
            reader.fieldnames = names
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ListError(f"{path}: cannot be read as a list of slides: {reason}") from error
    if not rows:
        raise ListError(f"{path}: a list without slides; expected a line a slide below the column names")
    for line, row in rows:
        yield _of_row(path, f"{path}, line {line}", row, mpp)


def _check_columns(path: Path, names: list[str]) -> None:
    known = f"known: {', '.join(COLUMNS)}"
    for name in names:
        if name not in COLUMNS:
            raise ListError(f"{path}: unknown column '{name}' ({known}); take it out, or mend its name")
        if names.count(name) > 1:
            raise ListError(f"{path}: the column '{name}' is there twice")
    if "slide" not in names:
        raise ListError(f"{path}: no column 'slide' in its first line ({known})")


def _of_row(path: Path, where: str, row: dict[str | None, str | None], mpp: float | None) -> SlideEntry:
    if None in row:
        raise ListError(f"{where}: more fields than columns; put a path with a comma into double quotes")
    values = {key: (value or "").strip() for key, value in row.items()}
    if not values["slide"]:
        raise ListError(f"{where}: the column 'slide' is empty")
    slide, name, scale = path.parent / values["slide"], values.get("name", ""), values.get("mpp", "")
    if "/" in name or "\\" in name or name.startswith("."):
        raise ListError(
            f"{where}: name '{name}': expected the name of a folder, without / and no dot in front"
        )
    try:
        own = float(scale) if scale else mpp
    except ValueError:
        raise ListError(f"{where}: mpp '{scale}': expected a number of um per level-0 pixel") from None
    return SlideEntry(slide, name or slide_name(slide), own)


def _entry(path: Path, mpp: float | None) -> SlideEntry:
    return SlideEntry(path, slide_name(path.resolve() if path.name in ("", "..") else path), mpp)


def _refused(entry: SlideEntry, earlier: SlideEntry) -> SlideEntry:
    reason = (
        f"{entry.path}: has the same name as {earlier.path}, and would write to the same folder; rename one, give "
        f"it a name of its own in a CSV list, or another --out"
    )
    return SlideEntry(entry.path, entry.name, entry.mpp, reason)
