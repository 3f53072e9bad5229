"""Labelled patches in memory, each with the patient it is of, split so that no patient stands on two sides.

Two layouts are read. Sheets: a `manifest.csv` (patient, split, label, x, y, width, height, sheet, index) and
a folder `sheets` of images that hold the patches in rows of 40. Folders, as the public IDC set has them:
`<patient>/<0|1>/<patient>_idx5_x<x>_y<y>_class<0|1>.png`.
"""

import csv
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.errors import DataError
from wsi_pipeline.options import options

logger = logging.getLogger(__name__)

SHEET_COLUMNS = 40
_PATCH_NAME = re.compile(r"(?P<patient>.+)_idx\d+_x(?P<x>\d+)_y(?P<y>\d+)_class(?P<label>[01])\.png")


@options
class SplitOptions:
    """Which patients a network is trained on, and which it is chosen and judged on."""

    # Values of the manifest's column `split`.
    train: tuple[str, ...] = ("train", "extra")
    val: tuple[str, ...] = ("val",)
    # Patients to judge on, by name; all others are trained on. Set, it replaces the two above. Folders of
    # patches, which have no column `split`, need it.
    val_patients: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledPatches:
    """Patches of one side of a split."""

    # uint8 [N, patch_px, patch_px, 3], RGB.
    pixels: NDArray[np.uint8]
    # uint8 [N], 1 where a pathologist's outline says IDC.
    labels: NDArray[np.uint8]
    # [N], names.
    patients: NDArray[np.str_]
    # [N], what the public set calls each patch, <patient>_idx5_x<x>_y<y>_class<label>, or its place in a sheet.
    names: NDArray[np.str_]
    # What `patients` tells apart. Numbers of a set by image flatter: one patient may stand on both sides.
    by: Literal["patient", "slide", "image"] = "patient"

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class _Found:
    name: str
    patient: str
    split: str
    label: int
    pixels: NDArray[np.uint8]


def load_split(folder: Path, patch_px: int, split: SplitOptions) -> tuple[LabelledPatches, LabelledPatches]:
    """The training and the validation patches under `folder`, decoded.

    Patches cut short by the edge of their section are left out (the log says how many): padding would show
    the network an edge that no map of a slide contains.

    Raises DataError when something is missing, unreadable or labelled other than 0 or 1, when a patient would
    stand on two sides, or a side would lack a class.
    """
    sides: dict[str, list[_Found]] = {"train": [], "val": []}
    patients: dict[str, set[str]] = {"train": set(), "val": set()}
    short = 0
    for found in _read_patches(folder):
        for side in _sides_of(found, split):
            patients[side].add(found.patient)
            if found.pixels.shape[:2] == (patch_px, patch_px):
                sides[side].append(found)
            else:
                short += 1
    check_no_leak(patients["train"], patients["val"])
    if missing := set(split.val_patients) - patients["val"]:
        raise DataError(
            f"{folder}: found no patch of the val_patients {', '.join(sorted(missing))}; "
            "correct the split in the config"
        )
    if short:
        logger.info("left out %d patches that are not %d x %d px", short, patch_px, patch_px)
    return _gather(sides["train"], folder, "train"), _gather(sides["val"], folder, "val")


def load_side(folder: Path, patch_px: int, side: str, split: SplitOptions) -> LabelledPatches:
    """The patches of one side ('train' or 'val'), or 'all' of them whatever the split, decoded.

    Patches of another size are left out, as by `load_split`. Raises DataError as that does.
    """
    found, other = [], 0
    for patch in _read_patches(folder):
        if side == "all" or side in _sides_of(patch, split):
            if patch.pixels.shape[:2] == (patch_px, patch_px):
                found.append(patch)
            else:
                other += 1
    if {patch.label for patch in found} != {0, 1}:
        raise DataError(
            f"{folder}: found {len(found)} patches of {patch_px} x {patch_px} px ({other} of another size) on "
            f"the side '{side}', expected some of both labels; take patches of the model's size and scale, and "
            "of data that it was not trained on the side 'all'"
        )
    if other:
        logger.info("left out %d patches that are not %d x %d px", other, patch_px, patch_px)
    return _gather(found, folder, side)


def check_no_leak(train_patients: set[str], val_patients: set[str]) -> None:
    """Raises DataError when a patient stands on both sides: neighbours of one section look alike."""
    if both := train_patients & val_patients:
        names = ", ".join(sorted(both)[:5])
        raise DataError(
            f"found {len(both)} patients on both sides of the split ({names}), expected none: "
            "split by patient, or the numbers are too good"
        )


def _sides_of(found: _Found, split: SplitOptions) -> list[str]:
    if split.val_patients:
        return ["val" if found.patient in split.val_patients else "train"]
    return [side for side, names in (("train", split.train), ("val", split.val)) if found.split in names]


def _gather(found: list[_Found], folder: Path, side: str) -> LabelledPatches:
    if {f.label for f in found} != {0, 1}:
        raise DataError(
            f"{folder}: found {len(found)} {side} patches, expected some of both labels; "
            "correct the folder, the split or patch_px in the config (folders of patches need val_patients)"
        )
    return LabelledPatches(
        np.stack([f.pixels for f in found]),
        np.array([f.label for f in found], np.uint8),
        np.array([f.patient for f in found]),
        np.array([f.name for f in found]),
    )


def _read_patches(folder: Path) -> Iterator[_Found]:
    if (folder / "manifest.csv").exists():
        return _read_sheets(folder)
    if folder.is_dir():
        return _read_folders(folder)
    raise DataError(f"{folder}: no such folder; expected manifest.csv and sheets, or <patient>/<0|1>/*.png")


def _read_sheets(folder: Path) -> Iterator[_Found]:
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {"patient", "split", "label", "width", "height", "sheet", "index"}
    if not rows or not wanted <= set(rows[0]):
        raise DataError(
            f"{folder / 'manifest.csv'}: expected rows with the columns {', '.join(sorted(wanted))}"
        )
    for row in rows:
        if not all(row[key].isdecimal() for key in ("width", "height", "index")):
            raise DataError(f"{folder / 'manifest.csv'}: expected whole numbers in the row {row}")
    name, sheet = "", np.empty((0, 0, 3), np.uint8)
    # In the order of their sheets, so that each is decoded once.
    for row in sorted(rows, key=lambda r: (r["sheet"], int(r["index"]))):
        if row["sheet"] != name:
            name = row["sheet"]
            sheet = _read_rgb(folder / "sheets" / name)
        width, height = int(row["width"]), int(row["height"])
        patch_px = sheet.shape[1] // SHEET_COLUMNS
        line, column = divmod(int(row["index"]), SHEET_COLUMNS)
        y, x = line * patch_px, column * patch_px
        pixels = sheet[y : y + height, x : x + width]
        if pixels.shape[:2] != (height, width) or row["label"] not in ("0", "1"):
            raise DataError(
                f"{folder / 'manifest.csv'}: sheet {name} index {row['index']}: found label {row['label']} "
                f"and {pixels.shape[1]} x {pixels.shape[0]} px, expected 0 or 1 and {width} x {height}"
            )
        yield _Found(_name_of(row), row["patient"], row["split"], int(row["label"]), pixels)


def _read_folders(folder: Path) -> Iterator[_Found]:
    for path in sorted(folder.glob("*/[01]/*.png")):
        patient, label = path.parent.parent.name, path.parent.name
        name = _PATCH_NAME.fullmatch(path.name)
        if name is None or (name["patient"], name["label"]) != (patient, label):
            raise DataError(
                f"{path}: expected the name {patient}_idx5_x<x>_y<y>_class{label}.png "
                f"in the folder {patient}/{label}"
            )
        yield _Found(path.stem, patient, "", int(label), _read_rgb(path))


def _name_of(row: dict[str, str]) -> str:
    """As the public set names it, where the manifest says its place in the section."""
    if row.get("x") and row.get("y"):
        return f"{row['patient']}_idx5_x{row['x']}_y{row['y']}_class{row['label']}"
    return f"{row['patient']}, {row['sheet']} {row['index']}"


def _read_rgb(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); get the data again") from error
