"""The layouts of labelled images that are known, each known by what lies in the folder, and listed.

- Sheets: `manifest.csv` (patient, split, label, width, height, sheet, index) and a folder `sheets` of images
  that hold the patches in rows of 40.
- IDC folders, as the public set has them: `<patient>/<0|1>/<patient>_idx5_x<x>_y<y>_class<0|1>.png`.
- Array pair: `X.npy`, uint8 [N, S, S, 3], and `Y.npy`, N labels.
- Class folders: `<train|val|test>/<class>/**/<image>`, or `<class>/**/<image>`; images of any size.
- Exports of `tile-slides --export`: `<slide>/export/<slide>/<0|1|unlabelled>/<slide>_x<x>_y<y>[_class<0|1>].png`; with
  `--export-format idc` IDC folders, `<slide>/export/<patient>/...`; with `shards` `<slide>/export/<slide>/*.tar`.
"""

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.images import SUFFIXES, read_image
from wsi_pipeline.learning.datasets.listing import UNLABELLED, By, Listing
from wsi_pipeline.learning.datasets.scale import scale_of_files
from wsi_pipeline.learning.datasets.shards import LAYOUT as SHARDS
from wsi_pipeline.learning.datasets.shards import Sample, samples_of
from wsi_pipeline.tiling.export_info import ExportInfo, read_export

SHEET_COLUMNS = 40
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Names of classes that say what they are; any other needs `positive_classes`.
POSITIVE = frozenset(
    {"1", "idc", "malignant", "positive", "tumor", "tumour", "cancer", "carcinoma", "invasive"}
)
NEGATIVE = frozenset({"0", "not_idc", "non_idc", "no_idc", "benign", "negative", "normal", "healthy"})
_IDC_NAME = re.compile(r"(?P<patient>.+)_idx\d+_x\d+_y\d+_class(?P<label>[01])\.png")
_EXPORT_NAME = re.compile(r"(?P<slide>.+)_x\d+_y\d+(_class(?P<label>[01]))?\.png")
_EXPORT_LABELS = {"0": 0, "1": 1, "unlabelled": UNLABELLED}
_KNOWN = (
    "manifest.csv with sheets; <patient>/<0|1>/*.png; X.npy with Y.npy; [train|test/]<class>/<images>; "
    "or what tile-slides --export wrote"
)


def list_images(
    folder: Path, positive_classes: Iterable[str] = (), channels: Literal["rgb", "bgr"] = "rgb"
) -> Listing:
    """The images under `folder`, whichever layout it has.

    `positive_classes` are the folders that count as positive where class names do not say it; `channels` is the
    order in which an array pair holds its colours. Raises DataError where the layout is none of those known, or
    not what it should be.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected {_KNOWN}")
    if exports := _export_folders(folder):
        return _list_exports(folder, exports)
    if (folder / "manifest.csv").exists():
        return _list_sheets(folder)
    if (folder / "X.npy").exists() or (folder / "Y.npy").exists():
        return _list_pair(folder, channels)
    inside = {entry.name: _subfolders(folder / entry.name) for entry in _folders(folder)}
    if any(name.lower() in PARTS for name in inside):
        return _list_classes(folder, tuple(positive_classes), with_parts=True)
    labelled = [folder / name / label for name in inside for label in inside[name] if label in _EXPORT_LABELS]
    if any(_is_shard_set(folder / name) for name in inside):
        return _list_exports(folder, [folder])
    if labelled:
        first = next((entry.name for place in labelled for entry in _images(place)), "")
        if _EXPORT_NAME.fullmatch(first) and not _IDC_NAME.fullmatch(first):
            return _list_exports(folder, [folder])
        return _list_idc(folder)
    if inside and any(_images(folder / name) for name in inside):
        return _list_classes(folder, tuple(positive_classes), with_parts=False)
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise DataError(f"{folder}: found {found}; expected {_KNOWN}; name the folder that holds these")


def _list_sheets(folder: Path) -> Listing:
    manifest = folder / "manifest.csv"
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {"patient", "split", "label", "width", "height", "sheet", "index"}
    if not rows or not wanted <= set(rows[0]):
        raise DataError(f"{manifest}: expected rows with the columns {', '.join(sorted(wanted))}")
    for row in rows:
        if not all(row[key].isdecimal() for key in ("width", "height", "index")):
            raise DataError(f"{manifest}: expected whole numbers in the row {row}")
        if row["label"] not in ("0", "1"):
            raise DataError(
                f"{manifest}: sheet {row['sheet']} index {row['index']}: found label {row['label']}, expected 0 or 1"
            )
    # In the order of their sheets, so that each is decoded once.
    rows.sort(key=lambda r: (r["sheet"], int(r["index"])))
    sheet_of = lru_cache(maxsize=4)(lambda name: read_image(folder / "sheets" / name))
    one_at_a_time = Lock()  # or each thread would decode the same sheet

    def load(index: int) -> NDArray[np.uint8]:
        row = rows[index]
        with one_at_a_time:
            sheet = sheet_of(row["sheet"])
        width, height = int(row["width"]), int(row["height"])
        patch_px = sheet.shape[1] // SHEET_COLUMNS
        line, column = divmod(int(row["index"]), SHEET_COLUMNS)
        y, x = line * patch_px, column * patch_px
        pixels = sheet[y : y + height, x : x + width]
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{folder / 'sheets' / row['sheet']}: found {pixels.shape[1]} x {pixels.shape[0]} px at index "
                f"{row['index']}, expected {width} x {height} as {manifest.name} says; get it again"
            )
        return pixels

    return Listing(
        "sheets with a manifest",
        folder,
        tuple(_name_in_sheet(row) for row in rows),
        np.array([int(row["label"]) for row in rows], np.int8),
        np.array([row["patient"] for row in rows]),
        "patient",
        np.array([row["split"] for row in rows]),
        load,
    )


def _list_idc(folder: Path) -> Listing:
    files = (file for patient in _folders(folder) for file in _idc_files(Path(patient.path)))
    return _of_files("IDC folders", folder, files, "patient")


def _idc_files(patient: Path) -> Iterator[tuple[Path, str, int, str]]:
    for label in ("0", "1"):
        for entry in _images(patient / label):
            name = _IDC_NAME.fullmatch(entry.name)
            if name is None or (name["patient"], name["label"]) != (patient.name, label):
                raise DataError(
                    f"{entry.path}: expected the name {patient.name}_idx5_x<x>_y<y>_class{label}.png "
                    f"in the folder {patient.name}/{label}"
                )
            yield Path(entry.path), patient.name, int(label), ""


def _list_exports(folder: Path, exports: list[Path]) -> Listing:
    """Exports of slides, all in one format; by patient where each says whose slide it is."""
    places = [Path(slide.path) for export in exports for slide in _folders(export)]
    infos = {place: info for place in places if (info := read_export(place))}
    formats = {infos[place].format if place in infos else "png" for place in places}
    if len(formats) > 1:
        raise DataError(
            f"{folder}: found exports of several formats ({', '.join(sorted(formats))}), expected one; export all "
            "slides alike"
        )
    by: By = (
        "patient" if places and all(place in infos and infos[place].patient for place in places) else "slide"
    )
    if formats == {"shards"}:
        return _list_shards(folder, infos, by)
    if formats == {"idc"}:
        return _of_files("IDC folders of tile-slides", folder, _exported_idc(places), by)
    return _of_files("patches of tile-slides", folder, _exported_pngs(places, infos, by), by)


def _exported_idc(places: list[Path]) -> Iterator[tuple[Path, str, int, str]]:
    for place in places:
        yield from _idc_files(place)


def _exported_pngs(
    places: list[Path], infos: Mapping[Path, ExportInfo], by: By
) -> Iterator[tuple[Path, str, int, str]]:
    for place in places:
        for name in _subfolders(place):
            if name not in _EXPORT_LABELS:
                raise DataError(f"{place}/{name}: expected folders 0, 1 or unlabelled, as tile-slides writes")
            for entry in _images(place / name):
                parts = _EXPORT_NAME.fullmatch(entry.name)
                label = parts and (parts["label"] or "unlabelled")
                if parts is None or (parts["slide"], label) != (place.name, name):
                    raise DataError(
                        f"{entry.path}: expected a name {place.name}_x<x>_y<y>_class<0|1>.png, as tile-slides writes"
                    )
                patient = infos[place].patient if by == "patient" else place.name
                yield Path(entry.path), patient, _EXPORT_LABELS[name], ""


def _list_shards(folder: Path, infos: Mapping[Path, ExportInfo], by: By) -> Listing:
    samples: list[Sample] = []
    patients: list[str] = []
    for place, info in infos.items():
        own = samples_of(place, info)
        samples += own
        patients += [info.patient if by == "patient" else info.slide] * len(own)
    if not samples:
        raise DataError(f"{folder}: found {SHARDS} without patches; name another folder")
    shards = list(dict.fromkeys(sample.shard for sample in samples))
    return Listing(
        SHARDS,
        folder,
        tuple(f"{sample.shard.relative_to(folder).as_posix()}/{sample.key}" for sample in samples),
        np.array([sample.label for sample in samples], np.int8),
        np.array(patients),
        by,
        np.full(len(samples), ""),
        lambda index: samples[index].read(),
        _fingerprint(folder, shards),
        scale_of_files(folder, [sample.shard for sample in samples]),
    )


def _list_classes(folder: Path, positive: tuple[str, ...], with_parts: bool) -> Listing:
    places: list[tuple[str, Path]] = [("", folder)]
    if with_parts:
        if others := [e.name for e in _folders(folder) if e.name.lower() not in PARTS]:
            raise DataError(
                f"{folder}: found {', '.join(others[:5])} beside parts; expected only train, val or test"
            )
        places = [(PARTS[e.name.lower()], Path(e.path)) for e in _folders(folder)]
    classes = sorted({name for _, place in places for name in _subfolders(place)})
    label_of = _labels_of(classes, positive, folder)

    def found() -> Iterator[tuple[Path, str, int, str]]:
        for part, place in places:
            for name in _subfolders(place):
                for root, _, _ in sorted(os.walk(place / name)):
                    for entry in _images(Path(root)):
                        yield Path(entry.path), "", label_of[name], part

    listing = _of_files("class folders", folder, found(), "image")
    # Patches of the public set, sorted into classes, keep their patients in their names.
    named = [_IDC_NAME.fullmatch(name.rsplit("/", 1)[-1]) for name in listing.names]
    if all(named):
        patients = np.array([match["patient"] for match in named if match])
        return replace(listing, patients=patients, by="patient")
    return listing


def _labels_of(classes: list[str], positive: tuple[str, ...], folder: Path) -> dict[str, int]:
    """The label that each class's name says, or `positive` decides."""
    if missing := set(positive) - set(classes):
        raise DataError(
            f"{folder}: found the classes {', '.join(classes)}, no {', '.join(sorted(missing))}; "
            "correct positive_classes in the config"
        )
    if positive:
        return {name: int(name in positive) for name in classes}
    plain = {name: re.sub(r"[\s-]+", "_", name.lower()) for name in classes}
    if unclear := [name for name in classes if plain[name] not in POSITIVE | NEGATIVE]:
        raise DataError(
            f"{folder}: found the classes {', '.join(classes)}, of which {', '.join(unclear)} may be either; "
            "say in the config which are positive, all others being negative: positive_classes: [...]"
        )
    return {name: int(plain[name] in POSITIVE) for name in classes}


def _list_pair(folder: Path, channels: Literal["rgb", "bgr"]) -> Listing:
    images, labels = (_array(folder / name) for name in ("X.npy", "Y.npy"))
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{folder / 'X.npy'}: found {images.dtype} {list(images.shape)}, expected uint8 [N, S, S, 3]"
        )
    if labels.shape not in ((len(images),), (len(images), 1)) or not np.isin(labels, (0, 1)).all():
        raise DataError(
            f"{folder / 'Y.npy'}: found {labels.dtype} {list(labels.shape)} of {_some(labels)}, "
            f"expected {len(images)} labels of 0 or 1, one an image of X.npy"
        )

    def load(index: int) -> NDArray[np.uint8]:
        return np.array(images[index] if channels == "rgb" else images[index][..., ::-1])

    names = tuple(f"X.npy[{index}]" for index in range(len(images)))
    return Listing(
        "array pair",
        folder,
        names,
        labels.reshape(-1).astype(np.int8),
        np.array(names),
        "image",
        np.full(len(names), ""),
        load,
    )


def _name_in_sheet(row: dict[str, str]) -> str:
    """The patch's place in its sheet, and before it, where the manifest says it, what the public set calls it."""
    place = f"{row['sheet']} index {row['index']}"
    if not (row.get("x") and row.get("y")):
        return place
    return f"{row['patient']}_idx5_x{row['x']}_y{row['y']}_class{row['label']}, {place}"


def _array(path: Path) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    except Exception as error:
        # At a damaged header numpy raises ValueError, EOFError, tokenize's errors ...
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: cannot be read as an array ({why}); expected X.npy, images, with Y.npy, their labels"
        ) from error


def _some(labels: NDArray[np.generic]) -> str:
    values = [str(value) for value in np.unique(labels)]
    return ", ".join([*values[:5], "..."] if len(values) > 5 else values)


def _of_files(layout: str, folder: Path, found: Iterator[tuple[Path, str, int, str]], by: By) -> Listing:
    """The listing of (path, patient, label, part) a file; its fingerprint is of names, sizes and times."""
    items = list(found)
    if not items:
        raise DataError(
            f"{folder}: found {layout} without images ({', '.join(sorted(SUFFIXES))}); name another folder"
        )
    paths = [path for path, _, _, _ in items]
    names = tuple(path.relative_to(folder).as_posix() for path in paths)
    return Listing(
        layout,
        folder,
        names,
        np.array([label for _, _, label, _ in items], np.int8),
        np.array([patient for _, patient, _, _ in items]) if by != "image" else np.array(names),
        by,
        np.array([part for _, _, _, part in items]),
        lambda index: read_image(paths[index]),
        _fingerprint(folder, paths),
        scale_of_files(folder, paths),
    )


def _fingerprint(folder: Path, paths: Iterable[Path]) -> str:
    """Changes with any file's name, size or time."""
    fingerprint = hashlib.sha256()
    for path in paths:
        name, state = path.relative_to(folder).as_posix(), path.stat()
        fingerprint.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return fingerprint.hexdigest()


def _export_folders(folder: Path) -> list[Path]:
    """The folders `export` of a run folder, or of all run folders in `folder`."""
    places = [folder / "export", *(Path(entry.path) / "export" for entry in _folders(folder))]
    return [place for place in places if place.is_dir()]


def _is_shard_set(folder: Path) -> bool:
    info = read_export(folder)
    return info is not None and info.format == "shards"


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name)


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _folders(folder)]


def _images(folder: Path) -> list[os.DirEntry[str]]:
    """Files of image formats; whatever else lies there is none of ours."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        images = [
            e for e in entries if Path(e.name).suffix.lower() in SUFFIXES and not e.name.startswith(".")
        ]
    return sorted(images, key=lambda e: e.name)
