"""Who is trained on and who is evaluated on: by patient wherever a set knows patients."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.text import counted, from_spreadsheet
from wsi_pipeline.learning.datasets.listing import UNLABELLED, Listing

log = logging.getLogger(__name__)

Indices = NDArray[np.int64]


@options
class SplitOptions:
    """Which patients a network is trained on, and which it is chosen and evaluated on; how their images are read."""

    train: tuple[str, ...] = ("train", "extra")
    """The set's own subsets to train on: values of a manifest's column `split`, or folders train, val, test."""

    val: tuple[str, ...] = ("val",)
    """The set's own subsets to evaluate on."""

    val_patients: tuple[str, ...] = ()
    """Patients to evaluate on, by name; all others are trained on. Set, it replaces the two above."""

    patients_csv: str = ""
    """A CSV file with the columns `patient` and `split`, a line a patient, that takes the place of the set's own
    subsets: `train` and `val` above say which values of `split` are which side; patients of any other value are left
    out. Of a set by slide, the column `patient` has the slides' names."""

    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Above 0, this share of the patients (of a set without patients: of each class's images), drawn by `val_seed`, is
    evaluated on. Of a set with subsets, they are drawn from those that `train` names."""

    val_seed: Annotated[int, Field(ge=0)] = 0
    """Another seed draws another share."""

    positive_classes: tuple[str, ...] = ()
    """Class folders that count as IDC (malignant, positive), where their names leave it open."""

    patient_pattern: str = ""
    """A regular expression that finds the patient in an image's path under the folder, where the layout does not say
    who it is, or slides of one patient have names of their own."""

    channels: Literal["rgb", "bgr"] = "rgb"
    """The order in which an array pair holds its colours; OpenCV writes bgr."""

    resize: bool = False
    """Whether an image of another size is squeezed into one patch, as a whole. Off, it is left out: `mpp` would not be
    its scale."""

    skip_unreadable: bool = False
    """Whether images that cannot be decoded are left out; off, they are an error."""


def split_sides(listing: Listing, split: SplitOptions) -> tuple[Indices, Indices]:
    """Indices of the images to train on, and of those to evaluate on; unlabelled images are on neither side.

    Raises DataError when a patient would stand on both sides, or the split names what is not there.
    """
    labelled = listing.labels != UNLABELLED
    if not labelled.all():
        log.info("left out %s without a label", counted(int((~labelled).sum()), "image"))
    if split.patients_csv:
        train, val = _sides_of_csv(listing, labelled, split)
    elif split.val_patients:
        if missing := set(split.val_patients) - set(listing.patients[labelled]):
            raise DataError(
                f"{listing.folder}: found no patch of the val_patients {', '.join(sorted(missing))}; "
                "correct the split in the config"
            )
        val = np.isin(listing.patients, split.val_patients)
        train = ~val
    elif split.val_share:
        pool = labelled & np.isin(listing.parts, ["", *split.train])
        val = _drawn(listing, pool, split)
        train = pool & ~val
    else:
        train, val = np.isin(listing.parts, split.train), np.isin(listing.parts, split.val)
        if not val.any():
            raise DataError(_no_side(listing, split))
    train, val = train & labelled, val & labelled
    check_no_leak(set(listing.patients[train]), set(listing.patients[val]), listing.by)
    return np.flatnonzero(train), np.flatnonzero(val)


def check_no_leak(train_patients: set[str], val_patients: set[str], by: str = "patient") -> None:
    """Raises DataError when a patient stands on both sides: neighbours of one section look alike."""
    if both := train_patients & val_patients:
        names = ", ".join(sorted(both)[:5])
        raise DataError(
            f"found {counted(len(both), by)} on both sides of the split ({names}), expected none: "
            "split by patient, or the numbers are too good"
        )


def _sides_of_csv(
    listing: Listing, labelled: NDArray[np.bool_], split: SplitOptions
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images are trained on and which are evaluated on, by the CSV of patients."""
    path = Path(split.patients_csv)
    if split.val_patients or split.val_share:
        raise DataError(
            f"split: found patients_csv ({path}) beside val_patients or val_share, expected one of them; leave the "
            "other out"
        )
    if listing.by == "image":
        raise DataError(
            f"{listing.folder}: found {listing.layout} that name no patients, as patients_csv ({path}) needs; set "
            "patient_pattern under split in the config, or use val_share"
        )
    side_of = read_patients(path)
    here = set(listing.patients[labelled].tolist())
    if missing := sorted(here - set(side_of)):
        raise DataError(
            f"{path}: found no line of {counted(len(missing), listing.by)} whose patches lie in {listing.folder} "
            f"({_some(missing)}); add a line for each, with a split such as 'none' for those to be left out"
        )
    if unknown := sorted(set(side_of) - here):
        raise DataError(
            f"{path}: found {counted(len(unknown), 'patient')} of whom {listing.folder} has no labelled patch "
            f"({_some(unknown)}), expected names such as {_some(sorted(here))}; correct or remove their lines"
        )
    if others := {name: side for name, side in side_of.items() if side not in {*split.train, *split.val}}:
        log.info(
            "%s: left out %s whose split is neither of train (%s) nor of val (%s): %s",
            *(path, counted(len(others), listing.by), ", ".join(split.train), ", ".join(split.val)),
            _some(sorted(set(others.values()))),
        )
    of_each = np.array([side_of.get(name, "") for name in listing.patients.tolist()])
    train, val = np.isin(of_each, split.train), np.isin(of_each, split.val)
    if not (labelled & val).any():
        raise DataError(
            f"{path}: found the splits {_some(sorted(set(side_of.values())))}, none of which is in val "
            f"({', '.join(split.val) or 'empty'}); correct the file, or val under split in the config"
        )
    return train, val


def read_patients(path: Path) -> dict[str, str]:
    """The split of each patient in a CSV with the columns patient and split.

    Raises DataError where it cannot be read, lacks a column or a value, or has a patient in two splits.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as a CSV of patients ({error}); expected the columns patient and split"
        ) from error
    if not {"patient", "split"} <= set(columns):
        raise DataError(
            f"{path}: found the columns {', '.join(columns) or 'none'}, expected patient and split; name them so in "
            "its first line"
        )
    side_of: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        patient, side = (from_spreadsheet((row[name] or "").strip()) for name in ("patient", "split"))
        if not patient or not side:
            raise DataError(
                f"{path}: line {number}: found patient '{patient}' and split '{side}', expected both; fill them in"
            )
        if side_of.setdefault(patient, side) != side:
            raise DataError(
                f"{path}: line {number}: found the patient {patient} in '{side}' and before in '{side_of[patient]}', "
                "expected one split; a patient on two sides makes the numbers too good: keep one of the lines"
            )
    return side_of


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _drawn(listing: Listing, pool: NDArray[np.bool_], split: SplitOptions) -> NDArray[np.bool_]:
    """Which images of the pool to evaluate on: whole patients, or a share of each class's images."""
    rng = np.random.default_rng(split.val_seed)
    if listing.by != "image":
        names = np.unique(listing.patients[pool])
        if len(names) < 2:
            raise DataError(
                f"{listing.folder}: found labelled patches of one {listing.by} alone, {', '.join(names) or 'none'}, "
                f"expected two at least: one to train on and one to evaluate on; add a {listing.by}"
            )
        count = min(max(1, round(split.val_share * len(names))), len(names) - 1)
        return np.asarray(pool & np.isin(listing.patients, rng.permutation(names)[:count]))
    chosen = np.zeros(len(listing), np.bool_)
    for label in (0, 1):
        images = np.flatnonzero(pool & (listing.labels == label))
        chosen[rng.permutation(images)[: max(1, round(split.val_share * len(images)))]] = True
    return chosen


def _no_side(listing: Listing, split: SplitOptions) -> str:
    parts = ", ".join(sorted(set(listing.parts) - {""})) or "none"
    choices = "val_share: 0.15, a share to draw by chance"
    if listing.by != "image":
        choices = f"val_patients: [...], by name, or {choices}"
    if parts != "none":
        choices = f"val: [...], one of the parts, or {choices}"
    return (
        f"{listing.folder}: found {listing.layout} whose own parts are {parts}, none of which is in val "
        f"({', '.join(split.val) or 'empty'}); say in the config, under split, whom to evaluate on: {choices}"
    )
