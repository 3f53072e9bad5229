"""The two sides of a split, in memory, as training and judging take them."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.datasets.cache import Decoded, cache_folder, decode
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.datasets.listing import UNLABELLED, By, Listing, named_by_pattern
from wsi_pipeline.learning.datasets.scale import DataScale, check_scale
from wsi_pipeline.learning.datasets.sharing import ONE_READER, Readers, share_of, shared_zeros
from wsi_pipeline.learning.datasets.split import Indices, SplitOptions, split_sides

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledPatches:
    """Patches of one side of a split."""

    # uint8 [N, patch_px, patch_px, 3], RGB.
    pixels: NDArray[np.uint8]
    # uint8 [N], 1 where a pathologist's outline says IDC (of other sets: where the image counts as positive).
    labels: NDArray[np.uint8]
    # [N], names; of a set without patients, each image's own.
    patients: NDArray[np.str_]
    # What `patients` tells apart. "image": the set has no patients, and numbers of it flatter, as one patient
    # may stand on both sides. "slide": so may one patient's slides.
    by: By = "patient"
    # [N], what each image is called in its set; empty where nobody knows.
    names: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))
    # At what scale the patches are, as their set says; none where it does not.
    scale: DataScale | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, rows: Indices) -> "LabelledPatches":
        """The patches at the indices `rows`, in their order."""
        names = self.names[rows] if len(self.names) else self.names
        return replace(
            self,
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            patients=self.patients[rows],
            names=names,
        )


def load_split(
    folder: Path,
    patch_px: int,
    split: SplitOptions,
    cache: Path | None = None,
    readers: Readers = ONE_READER,
    mpp: float | None = None,
) -> tuple[LabelledPatches, LabelledPatches]:
    """The training and the validation patches under `folder`, decoded; files once, then from `cache`.

    Patches cut short by the edge of their section are left out (the log says how many): padding would show
    the network an edge that no map of a slide contains. `cache` is the user's cache folder unless given.
    Of several `readers` (processes of this machine that make the same call), each decodes and copies its share, and
    all get the same patches in memory that they share.

    Raises DataError when something is missing, unreadable or labelled other than 0 or 1, when a patient would
    stand on two sides, or a side would lack a class; ScaleError where the set says that its images are not of `mpp`
    um per pixel (none: of any).
    """
    listing = list_labelled(folder, split)
    if mpp:
        check_scale(listing.scale, folder, patch_px, mpp, split.resize, "config")
    train, val = split_sides(listing, split)
    sides = np.sort(np.concatenate([train, val]))
    decoded = decode(listing, sides, patch_px, split.resize, cache, readers)
    _check_readable(decoded, sides, listing, split)
    _tell_short(decoded, sides, listing, patch_px)
    if listing.by != "patient":
        log.warning(
            "%s: found no patients, only %ss: one patient may stand on both sides, and the numbers flatter; "
            "patient_pattern in the config can find patients in the names",
            folder,
            listing.by,
        )
    return (
        _gather(decoded, train, listing, "train", cache, readers),
        _gather(decoded, val, listing, "val", cache, readers),
    )


def load_side(
    folder: Path,
    patch_px: int,
    side: str,
    split: SplitOptions,
    cache: Path | None = None,
    mpp: float | None = None,
) -> LabelledPatches:
    """The patches of one side ('train' or 'val') alone, or 'all' that are labelled, whatever the split.

    `mpp` is the scale of the model that is to see them. Otherwise, and in its errors, as `load_split`.
    """
    listing = list_labelled(folder, split)
    if mpp:
        check_scale(listing.scale, folder, patch_px, mpp, split.resize, "model")
    if side == "all":
        rows = np.flatnonzero(listing.labels != UNLABELLED)
    else:
        rows = split_sides(listing, split)[("train", "val").index(side)]
    decoded = decode(listing, rows, patch_px, split.resize, cache)
    _check_readable(decoded, rows, listing, split)
    _tell_short(decoded, rows, listing, patch_px)
    return _gather(decoded, rows, listing, side, cache, ONE_READER)


def list_labelled(folder: Path, split: SplitOptions) -> Listing:
    """The images under `folder` as the options say they are to be read."""
    listing = list_images(folder, split.positive_classes, split.channels)
    return named_by_pattern(listing, split.patient_pattern) if split.patient_pattern else listing


def _check_readable(decoded: Decoded, sides: Indices, listing: Listing, split: SplitOptions) -> None:
    unreadable = [int(index) for index in sides if int(index) in decoded.problems]
    if not unreadable:
        return
    if not split.skip_unreadable:
        raise DataError(
            f"{listing.folder}: found {len(unreadable)} of {counted(len(sides), 'image')} that cannot be decoded, "
            f"the first: {'; '.join(decoded.problems[index] for index in unreadable[:3])}; mend or remove them "
            "(explore-patches lists all), or set skip_unreadable: true under split in the config"
        )
    log.warning("left out %s that cannot be decoded", counted(len(unreadable), "image"))


def _tell_short(decoded: Decoded, sides: Indices, listing: Listing, patch_px: int) -> None:
    """Log how many are left out for their size; raise where that is all of them."""
    other = sides[~decoded.whole[sides] & (decoded.sizes[sides, 0] > 0)]
    if len(other) == len(sides) and len(sides):
        width, height = decoded.sizes[other[0]]
        raise DataError(
            f"{listing.folder}: found no image of {patch_px} x {patch_px} px, the first has {width} x {height}; "
            "correct patch_px in the config, or set resize: true under split to squeeze each into one patch "
            "(mpp must then be the scale of the squeezed image)"
        )
    if len(other):
        log.info("left out %s not of %d x %d px", counted(len(other), "patch"), patch_px, patch_px)


def _gather(
    decoded: Decoded, side: Indices, listing: Listing, name: str, cache: Path | None, readers: Readers
) -> LabelledPatches:
    rows = side[decoded.whole[side]]
    labels = listing.labels[rows]
    if set(labels.tolist()) != {0, 1}:
        raise DataError(
            f"{listing.folder}: found {counted(len(rows), f'{name} patch')}, expected some of both labels; "
            "correct the folder, the split or patch_px in the config"
        )
    pixels = shared_zeros((len(rows), *decoded.pixels.shape[1:]), cache or cache_folder(), readers)
    mine = share_of(len(rows), readers)
    np.take(decoded.pixels, rows[mine], axis=0, out=pixels[mine], mode="clip")  # "raise" would copy once more
    readers.all_say(None)
    return LabelledPatches(
        pixels,
        labels.astype(np.uint8),
        listing.patients[rows],
        listing.by,
        np.array([listing.names[row] for row in rows]),
        listing.scale,
    )
