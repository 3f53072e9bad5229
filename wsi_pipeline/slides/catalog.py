"""Which slides a batch is of: files, folders, patterns and CSV lists, in a settled order, each with its name.

A CSV has a line a slide with the columns `slide` (a path, relative to the CSV's own folder) and, where wanted, `name`
(of its run folder), `mpp` (um per level-0 pixel) and `patient` (whose slide it is); an empty field leaves it to the
file. Of a folder, what is no slide is counted by its ending: nothing is passed over without a line.
"""

import csv
import glob
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsi_pipeline.base.errors import ListError
from wsi_pipeline.base.text import counted, from_spreadsheet, printable
from wsi_pipeline.slides.names import ending, fault_of_name, run_name, slide_name
from wsi_pipeline.slides.readers.formats import dicom_folder, is_dicom_file, is_part_of_a_slide, is_slide_file

LIST_SUFFIX = ".csv"
COLUMNS = ("slide", "name", "mpp", "patient")
# Folders of these endings are results, never slides.
RESULT_SUFFIXES = (".zarr",)


# Of what is passed over, by names of ours, one.
ONE_OF = re.compile(r"\b(file|folder)s\b")


@dataclass(frozen=True)
class Scale:
    """um per level-0 pixel that the user gives: before what the files say, or where they say nothing."""

    mpp: float | None = None
    mpp_if_missing: float | None = None


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a batch: where it lies, the name of its run folder, and what overrides its file's scale.

    `mpp_if_missing` is its scale where its file names none. `refused` says why it is not worked on, where that is
    known before it is opened.
    """

    path: Path
    name: str
    mpp: float | None = None
    refused: str = ""
    mpp_if_missing: float | None = None
    patient: str = ""
    """Whose slide it is, or of which block; empty where that is not known."""

    of_patient: tuple[int, int] = (0, 1)
    """Which of its patient's slides in the list it is, counted from 0, and how many these are."""

    def __str__(self) -> str:
        return str(self.path)


@dataclass
class PassedOver:
    """What was met in folders and patterns and is not taken for a slide, counted."""

    counts: Counter[str] = field(default_factory=Counter)
    # Folders that could not be read, with the reason.
    unreadable: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.counts or self.unreadable)

    def __str__(self) -> str:
        """In words, the largest counts first; empty where there is nothing."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        words = [counted(count, ONE_OF.sub(r"\1", what), what) for what, count in ordered]
        return ", ".join([*words, *(f"{place} ({reason})" for place, reason in self.unreadable.items())])


class SlideList(list[SlideEntry]):
    """Slides, and what was passed over on the way to them."""

    def __init__(self, entries: Iterable[SlideEntry], passed_over: PassedOver):
        super().__init__(entries)
        self.passed_over = passed_over


def list_slides(
    arguments: Iterable[str | Path],
    mpp: float | None = None,
    mpp_if_missing: float | None = None,
    patient_pattern: re.Pattern[str] | None = None,
) -> SlideList:
    """The slides that files, folders, patterns and CSV lists name, in that order; a folder's by their paths.

    `mpp` is the scale of those for which no CSV gives one, `mpp_if_missing` of those whose files do not say it either.
    Where no CSV says the patient, it is what `patient_pattern` finds in the slide's name: its group, or all of it.
    A slide named twice is there once; a second slide of an earlier one's name has a reason in `refused`, for both
    would write to one folder. Raises ListError when an argument gives no slide, or a CSV cannot be read or has a
    column or value that it should not have.
    """
    passed_over, scale = PassedOver(), Scale(mpp, mpp_if_missing)
    found: Iterable[SlideEntry] = (
        entry for argument in arguments for entry in _entries(str(argument), scale, passed_over)
    )
    if patient_pattern:
        found = (_of_patient(entry, patient_pattern) for entry in found)
    return SlideList(_counted_by_patient(_without_namesakes(found)), passed_over)


def slides_directly_in(folder: Path) -> SlideList:
    """The slides in the folder, without those of the folders below; none where there is none."""
    passed_over = PassedOver()
    found = [entry for entry in _walk(folder, passed_over, below=False) if entry.path != folder]
    return SlideList(_without_namesakes(found), passed_over)


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


def _of_patient(entry: SlideEntry, pattern: re.Pattern[str]) -> SlideEntry:
    if entry.patient or not (match := pattern.search(entry.name)):
        return entry
    return replace(entry, patient=(match[1] if pattern.groups else match[0]) or "")


def _counted_by_patient(entries: list[SlideEntry]) -> list[SlideEntry]:
    """The entries, each with its place among those of its patient that are to be worked on."""
    counts = Counter(entry.patient for entry in entries if entry.patient and not entry.refused)
    seen: Counter[str] = Counter()
    counted = []
    for entry in entries:
        if counts[entry.patient] and not entry.refused:
            entry = replace(entry, of_patient=(seen[entry.patient], counts[entry.patient]))
            seen[entry.patient] += 1
        counted.append(entry)
    return counted


def _without_namesakes(found: Iterable[SlideEntry]) -> list[SlideEntry]:
    entries: list[SlideEntry] = []
    seen: dict[str, SlideEntry] = {}
    for entry in found:
        earlier = seen.setdefault(entry.name, entry)
        if earlier is entry:
            entries.append(entry)
        elif earlier.path.absolute() == entry.path.absolute() and earlier.patient != entry.patient:
            entries.append(replace(entry, refused=_of_two_patients(earlier, entry)))
        elif (earlier.path.absolute(), earlier.mpp) != (entry.path.absolute(), entry.mpp):
            entries.append(_refused(entry, earlier))
    return entries


def _entries(argument: str, scale: Scale, passed_over: PassedOver) -> Iterator[SlideEntry]:
    path = Path(argument)
    if os.path.isdir(path):  # noqa: PTH112 - False, not an error, where it may not be looked at
        found: Iterable[SlideEntry] = _of_folder(path, passed_over)
    elif path.suffix.lower() == LIST_SUFFIX:
        yield from _of_csv(path, scale)
        return
    elif not os.path.exists(path) and glob.has_magic(argument):  # noqa: PTH110
        found = _of_pattern(argument, passed_over)
    elif is_dicom_file(path):
        found = _of_dicom_file(path, passed_over)
    else:  # one that is not there fails by itself, with its reason, and spares the others
        found = [_entry(path)]
    yield from (replace(entry, mpp=scale.mpp, mpp_if_missing=scale.mpp_if_missing) for entry in found)


def _of_folder(folder: Path, passed_over: PassedOver) -> list[SlideEntry]:
    met = PassedOver()
    found = list(_walk(folder, met))
    if not found:
        raise ListError(
            f"{folder}: no slides in this folder or those in it (passed over: {str(met) or 'nothing'}); looked for "
            f"files with the endings of slide formats (.svs, .ndpi, .mrxs, .tiff ...) and for DICOM files"
        )
    passed_over.counts.update(met.counts)
    passed_over.unreadable.update(met.unreadable)
    return found


def _walk(top: Path, passed_over: PassedOver, below: bool = True) -> Iterator[SlideEntry]:
    """The slides under `top`: a folder's own, then those of the folders in it, by name. Links to folders are followed.

    Each folder comes once, under the path that is no link where there is one.

    Without `below`, those in it and those that are folders in it alone.
    """
    found: list[tuple[Path, list[SlideEntry]]] = []
    seen: set[tuple[int, int]] = set()
    waiting, links = deque([(top, 0)]), deque[tuple[Path, int]]()
    while waiting or links:
        folder, depth = waiting.popleft() if waiting else links.popleft()
        try:
            state = os.stat(folder)  # noqa: PTH116
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
        except OSError as error:
            passed_over.unreadable[str(folder)] = _reason(error)
            continue
        folders = [entry for entry in entries if _is_dir(entry)]
        files = [Path(entry.path) for entry in entries if entry not in folders]
        own = list(_of_files(folder, files, passed_over if below or not depth else PassedOver()))
        if depth and not below:
            found.append((folder, [entry for entry in own if entry.path == folder]))
            continue
        found.append((folder, own))
        beside = {entry.name for entry in entries}
        for entry in folders:
            place = Path(entry.path)
            if entry.name.startswith("."):
                passed_over.counts["hidden folders"] += 1
            elif entry.name.endswith(RESULT_SUFFIXES):
                passed_over.counts[f"{ending(place)} folders"] += 1
            elif not is_part_of_a_slide(place, beside):
                (links if entry.is_symlink() else waiting).append((place, depth + 1))
    for _, own in sorted(found, key=lambda item: item[0].parts):
        yield from own


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _of_files(folder: Path, files: Sequence[Path], passed_over: PassedOver) -> Iterator[SlideEntry]:
    """The slides among the files of a folder; DICOM files are slides together."""
    dicom = [path for path in files if is_dicom_file(path)]
    if dicom:
        yield from _of_dicom_folder(folder, passed_over)
    for path in files:
        if path in dicom:
            continue
        if is_slide_file(path):
            yield _entry(path)
        elif path.name.startswith("."):
            passed_over.counts["hidden files"] += 1
        else:
            passed_over.counts[ending(path) or "files without an ending"] += 1


def _of_dicom_folder(folder: Path, passed_over: PassedOver) -> Iterator[SlideEntry]:
    found = dicom_folder(folder)
    passed_over.counts.update({f"files of .dcm ({what})": count for what, count in found.others.items()})
    yield from _of_series(folder, found.series)


def _of_series(folder: Path, series: Mapping[str, Sequence[Path]]) -> Iterator[SlideEntry]:
    """Each slide of a folder of DICOM files: called as the folder, and by its series where it is not alone there."""
    for uid, files in series.items():
        if len(series) == 1:
            yield _entry(folder)
        else:
            yield _checked(SlideEntry(files[0], run_name(f"{slide_name(folder)}_{uid}")))


def _of_dicom_file(path: Path, passed_over: PassedOver) -> Iterator[SlideEntry]:
    """The slide that the file is of.

    One that is of none is passed over where it lies beside slides; else, or where it is not there, it fails by itself.
    """
    try:
        found = dicom_folder(path.parent)
    except OSError:
        yield _entry(path)
        return
    for entry, files in zip(_of_series(path.parent, found.series), found.series.values(), strict=True):
        if path in files:
            yield entry
            return
    if found.series and path.is_file():
        passed_over.counts["files of .dcm (of no slide)"] += 1
    else:
        yield _entry(path)


def _of_pattern(pattern: str, passed_over: PassedOver) -> Iterator[SlideEntry]:
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - may be absolute
    beside = {path.name for path in found}
    slides = [slide for path in found for slide in _slides_at(path, beside, passed_over)]
    if not slides:
        raise ListError(
            f"{pattern}: no slide fits this pattern "
            f"({counted(len(found), 'file or folder does', 'files and folders do')})"
        )
    yield from slides


def _slides_at(path: Path, beside: set[str], passed_over: PassedOver) -> Iterator[SlideEntry]:
    """The slides that a hit of a pattern stands for."""
    if os.path.isdir(path):  # noqa: PTH112
        if not is_part_of_a_slide(path, beside):
            yield from _walk(path, passed_over)
    elif is_dicom_file(path):
        yield from _of_dicom_file(path, passed_over)
    else:
        yield from _of_files(path.parent, [path], passed_over)


def _of_csv(path: Path, scale: Scale) -> Iterator[SlideEntry]:
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
        yield _of_row(path, f"{path}, line {line}", row, scale)


def _check_columns(path: Path, names: list[str]) -> None:
    known = f"known: {', '.join(COLUMNS)}"
    for name in names:
        if name not in COLUMNS:
            raise ListError(f"{path}: unknown column '{name}' ({known}); take it out, or mend its name")
        if names.count(name) > 1:
            raise ListError(f"{path}: the column '{name}' is there twice")
    if "slide" not in names:
        raise ListError(f"{path}: no column 'slide' in its first line ({known})")


def _of_row(path: Path, where: str, row: dict[str | None, str | None], scale: Scale) -> SlideEntry:
    if None in row:
        raise ListError(f"{where}: more fields than columns; put a path with a comma into double quotes")
    values = {key: from_spreadsheet((value or "").strip()) for key, value in row.items()}
    if not values["slide"]:
        raise ListError(f"{where}: the column 'slide' is empty")
    if "\0" in values["slide"]:
        raise ListError(
            f"{where}: a NUL byte in the slide's path; was the list saved as UTF-16? save it as UTF-8"
        )
    slide, name, mpp = path.parent / values["slide"], values.get("name", ""), values.get("mpp", "")
    if name and (("\\" in name) or fault_of_name(name)):
        raise ListError(
            f"{where}: name '{name}': expected the name of a folder, without / or \\ and no dot in front"
        )
    try:
        own = float(mpp) if mpp else scale.mpp
    except ValueError:
        raise ListError(f"{where}: mpp '{mpp}': expected a number of um per level-0 pixel") from None
    of_dicom = _of_dicom_file(slide, PassedOver()) if is_dicom_file(slide) else iter(())
    entry = next(of_dicom, None) or _entry(slide)  # a file of no slide fails by itself
    if name:
        entry = replace(entry, name=run_name(name), refused="")
    return replace(
        entry, mpp=own, mpp_if_missing=scale.mpp_if_missing, patient=printable(values.get("patient", ""))
    )


def _entry(path: Path) -> SlideEntry:
    return _checked(SlideEntry(path, slide_name(path)))


def _checked(entry: SlideEntry) -> SlideEntry:
    fault = fault_of_name(entry.name)
    if not fault:
        return entry
    return replace(
        entry, refused=f"{entry.path}: {fault}; rename it, or give it a name of its own in a CSV list"
    )


def _refused(entry: SlideEntry, earlier: SlideEntry) -> SlideEntry:
    reason = (
        f"{entry.path}: has the same name as {earlier.path}, and would write to the same folder; rename one, give "
        f"it a name of its own in a CSV list, or another --out"
    )
    return replace(entry, refused=reason)


def _of_two_patients(earlier: SlideEntry, entry: SlideEntry) -> str:
    """Why a slide that is listed twice is not worked on a second time."""
    one, other = (f"patient '{each.patient}'" if each.patient else "no patient" for each in (earlier, entry))
    return f"{entry.path}: listed as of {one} and again as of {other}; the first counts: take one out of the list"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
