"""What is to be known of a set of labelled images before training on it: counts, stains, doubles, damage."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.datasets.duplicates import Duplicates, exact_duplicates, near_duplicates
from wsi_pipeline.learning.datasets.image_stats import THUMBNAIL_PX, ImageStats, measure_images
from wsi_pipeline.learning.datasets.listing import UNLABELLED, Listing
from wsi_pipeline.learning.datasets.scale import why_not
from wsi_pipeline.learning.datasets.split import SplitOptions, split_sides

# A patient this many robust spreads off the others is named; of a normal distribution, one in 2,000 is.
FAR_SPREADS = 3.5
# The stain of fewer images is theirs, not the patient's.
STAIN_IMAGES = 10


@dataclass(frozen=True)
class PatientStats:
    """One patient (or slide) of a set."""

    name: str
    images: int
    positive: int
    negative: int
    # Mean optical density R, G, B over the patient's images.
    density: tuple[float, float, float]
    # Distance of that from the median patient in robust spreads, of the channel furthest off; none of few images.
    spreads: float | None

    @property
    def is_far(self) -> bool:
        """Whether the patient's stain stands out."""
        return self.spreads is not None and self.spreads > FAR_SPREADS


@dataclass(frozen=True)
class Finding:
    """Something about the set that a person should know or decide before training."""

    # What was found, in a few words, and how often.
    what: str
    count: int
    # What it means, or what to do.
    advice: str


@dataclass(frozen=True, eq=False)
class Exploration:
    """A set of images, looked at."""

    listing: Listing
    info: ImageStats
    # Empty where the set has no patients.
    patients: list[PatientStats]
    exact: Duplicates
    near: Duplicates
    # [N]: train, val or "" where the split puts each image; the set's own parts where it has no such split.
    sides: NDArray[np.str_]
    findings: list[Finding]


def explore(
    listing: Listing, split: SplitOptions | None = None, patches: tuple[int, float] | None = None
) -> Exploration:
    """All that is to be known of the listing's images; `split` says who is on which side, where that is decided.

    `patches` are the side in pixels and the um per pixel that a training would take them for, where that is decided.
    Raises DataError when no image can be decoded.
    """
    info = measure_images(listing)
    if not info.readable.any():
        raise DataError(
            f"{listing.folder}: found none of {counted(len(listing), 'image')} that can be decoded, the first: "
            f"{info.problems[0]}; get the set again"
        )
    exact = exact_duplicates(info.digests, info.readable)
    distinct = info.readable.copy()
    for group in exact.groups:
        distinct[group[1:]] = False
    # Strips that the edge of a section left look alike once they are stretched to a square.
    near = near_duplicates(info.thumbnails, distinct & (info.sizes.min(axis=1) >= THUMBNAIL_PX))
    patients = [] if listing.by == "image" else _patients(listing, info)
    sides, leak = _sides(listing, split)
    findings = [
        *_scale(listing, split, patches),
        *leak,
        *_doubles(listing, exact, "pixel for pixel", sides),
        *_doubles(listing, near, "nearly (re-encoded, flipped or turned)", sides),
        *_damage(listing, info),
        *_stains(listing, info, patients),
        *_nameless(listing),
    ]
    return Exploration(listing, info, patients, exact, near, sides, findings)


def common_size(info: ImageStats) -> tuple[int, int]:
    """Width and height that most images have."""
    sizes = Counter(map(tuple, info.sizes[info.readable].tolist()))
    (width, height), _ = sizes.most_common(1)[0]
    return width, height


def spans(listing: Listing, group: NDArray[np.int64], sides: NDArray[np.str_]) -> list[str]:
    """What the images of a group differ in though they are one: side, patient, label."""
    found = []
    if len(set(sides[group]) - {""}) > 1:
        found.append("sides")
    if listing.by != "image" and len(set(listing.patients[group])) > 1:
        found.append(f"{listing.by}s")
    if len(set(listing.labels[group].tolist()) - {UNLABELLED}) > 1:
        found.append("labels")
    return found


def _patients(listing: Listing, info: ImageStats) -> list[PatientStats]:
    names, which = np.unique(listing.patients, return_inverse=True)
    readable = info.readable
    counts = np.bincount(which[readable], minlength=len(names))  # [P]
    sums = np.stack(
        [np.bincount(which[readable], info.densities[readable, c], len(names)) for c in range(3)], axis=1
    )
    means = sums / np.maximum(counts, 1)[:, None]  # [P, 3]
    spreads = _spreads(means, counts, info.densities[readable].std(axis=0))
    positive = np.bincount(which[listing.labels == 1], minlength=len(names))
    negative = np.bincount(which[listing.labels == 0], minlength=len(names))
    every = np.bincount(which, minlength=len(names))
    return [
        PatientStats(
            str(name),
            int(every[i]),
            int(positive[i]),
            int(negative[i]),
            (float(means[i, 0]), float(means[i, 1]), float(means[i, 2])),
            float(spreads[i]) if counts[i] >= STAIN_IMAGES else None,
        )
        for i, name in enumerate(names)
    ]


def _spreads(
    means: NDArray[np.float64], counts: NDArray[np.int64], within: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Distance of each patient's mean density from the median, in robust spreads, of the channel furthest off."""
    many = counts >= STAIN_IMAGES
    if many.sum() < 3:
        return np.zeros(len(means))
    median = np.median(means[many], axis=0)
    spread = 1.4826 * np.median(np.abs(means[many] - median), axis=0)
    # The fewer its images, the more a patient's mean differs by chance.
    unit = np.sqrt(spread**2 + within**2 / np.maximum(counts, 1)[:, None])
    return np.asarray((np.abs(means - median) / np.maximum(unit, 1e-6)).max(axis=1))


def _sides(listing: Listing, split: SplitOptions | None) -> tuple[NDArray[np.str_], list[Finding]]:
    """The side of each image, and who stands on several."""
    sides = listing.parts.astype(np.promote_types(listing.parts.dtype, "U5"))
    findings = []
    try:
        train, val = split_sides(listing, split or SplitOptions())
        sides[:] = ""
        sides[train], sides[val] = "train", "val"
    except DataError as error:
        # A set that is not to be split yet need not say how.
        if split or "on both sides" in str(error):
            findings.append(Finding("Leak, or a split that does not fit: training refuses it", 1, str(error)))
    if parts := sorted(set(listing.parts) - {""}):
        of_part = [set(listing.patients[listing.parts == part]) for part in parts]
        standing = Counter(name for names in of_part for name in names)
        shared = [name for name, count in standing.items() if count > 1]
        if shared and not findings:
            findings.append(
                Finding(
                    f"Leak: {listing.by}s in several of the set's own parts",
                    len(shared),
                    f"{', '.join(sorted(shared)[:5])}: split again, by {listing.by} (val_patients or val_share)",
                )
            )
    return sides, findings


def _scale(listing: Listing, split: SplitOptions | None, patches: tuple[int, float] | None) -> list[Finding]:
    squeeze = bool(split and split.resize)
    if not (listing.scale and patches and (reason := why_not(listing.scale, *patches, squeeze))):
        return []
    advice = f"{reason}, as the config says: training refuses it. Correct the config, or export that scale"
    return [Finding("Images of another scale", listing.scale.known, advice)]


def _nameless(listing: Listing) -> list[Finding]:
    if listing.by == "patient":
        return []
    advice = "One patient may stand on both sides, and the numbers flatter. patient_pattern finds patients in names"
    return [Finding(f"No patients, only {listing.by}s", len(set(listing.patients)), advice)]


def _damage(listing: Listing, info: ImageStats) -> list[Finding]:
    findings = []
    if info.problems:
        first = listing.names[min(info.problems)]
        findings.append(
            Finding(
                "Images that cannot be decoded",
                len(info.problems),
                f"{first} for one; training refuses them",
            )
        )
    if info.readable.any():
        width, height = common_size(info)
        other = info.readable & ~(info.sizes == (width, height)).all(axis=1)
        if other.any():
            findings.append(
                Finding(
                    f"Images of another size than {width} x {height} px",
                    int(other.sum()),
                    "Training leaves them out, unless resize squeezes each into one patch",
                )
            )
    if unlabelled := int((listing.labels == UNLABELLED).sum()):
        findings.append(Finding("Images without a label", unlabelled, "Training leaves them out"))
    return findings


def _doubles(listing: Listing, doubles: Duplicates, how: str, sides: NDArray[np.str_]) -> list[Finding]:
    if not doubles.groups:
        return []
    found = [Finding(f"Images there more than once, {how}", doubles.surplus, "Keep one of each group")]
    across = Counter(what for group in doubles.groups for what in spans(listing, group, sides))
    advice = {
        "sides": "Leak: the same images are trained and evaluated on. Remove them, or split again",
        "labels": "One image, both labels: one is wrong",
    }
    whose = f"Leak in waiting: these {listing.by}s share images, and no split keeps them apart; are they one?"
    for what, count in across.items():
        found.insert(0, Finding(f"Groups across {what}, alike {how}", count, advice.get(what, whose)))
    return found


def _stains(listing: Listing, info: ImageStats, patients: list[PatientStats]) -> list[Finding]:
    findings = []
    if far := sorted((p for p in patients if p.is_far), key=lambda p: -(p.spreads or 0)):
        names = ", ".join(p.name for p in far[:8])
        findings.append(
            Finding(f"{listing.by.title()}s whose stain stands out", len(far), f"{names}: look at them")
        )
    red, _, blue = info.densities[info.readable].mean(axis=0)
    if red > blue and info.readable.sum() >= STAIN_IMAGES:
        findings.append(
            Finding(
                "Red is darker than blue",
                int(info.readable.sum()),
                "As no H&E stain is: are the colours in the order BGR (channels: bgr), or is it another stain?",
            )
        )
    return findings
