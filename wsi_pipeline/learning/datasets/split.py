"""Who is trained on and who is evaluated on: by patient wherever a set knows patients."""

import logging
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.options import Field, options
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
        log.info("left out %d images without a label", int((~labelled).sum()))
    if split.val_patients:
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
            f"found {len(both)} {by}s on both sides of the split ({names}), expected none: "
            "split by patient, or the numbers are too good"
        )


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
