"""At what scale the images of a set are, where anything says it, and whether that is the scale wanted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_pipeline.base.errors import DataError, ScaleError
from wsi_pipeline.base.text import counted
from wsi_pipeline.tiling.export_info import EXPORT_FILE, export_of, same_scale, scale_in

log = logging.getLogger(__name__)

Whose = Literal["config", "model"]
_REMEDIES = {
    "config": "correct mpp and patch_px in the config to what the patches are, or export patches of that scale",
    "model": "export patches of the model's scale, or take a model of the patches' scale",
}


@dataclass(frozen=True)
class DataScale:
    """The one scale of a set's images."""

    # um per pixel.
    mpp: float
    # Their width in pixels; none where they have several.
    width_px: int | None
    # Where it is said, in words for people.
    said_by: str
    # How many of the set's images it is known of, and how many there are.
    known: int
    images: int

    @property
    def words(self) -> str:
        """For people."""
        rest = "" if self.known == self.images else f", of {self.known:,} of {counted(self.images, 'image')}"
        return f"{self.mpp:g} um/px ({self.said_by}{rest})"


def scale_of_files(folder: Path, paths: Sequence[Path]) -> DataScale | None:
    """The scale of image files of a set; none where nothing says it.

    It is said by the export.json of `tile-slides --export` in a file's folder or up to two above, else by the PNGs
    themselves: all of a folder are asked where its first or last says one. Raises DataError where there are two scales.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    found: list[tuple[float, int, str, Path]] = []  # um per pixel, width, said by what, of which file
    for place, files in by_folder.items():
        if info := export_of(place):
            found += [(info.mpp, info.patch_px, EXPORT_FILE, path) for path in files]
        elif scale_in(files[0]) or scale_in(files[-1]):
            found += [(*said, "the PNGs", path) for path in files if (said := scale_in(path))]
    if not found:
        return None
    mpp, _, _, first = found[0]
    if other := next((each for each in found if not same_scale(each[0], mpp)), None):
        raise DataError(
            f"{folder}: found images of two scales, {mpp:g} um/px ({first.relative_to(folder)}) and {other[0]:g} "
            f"({other[3].relative_to(folder)}), expected one; name a folder that holds one of them"
        )
    widths = {width for _, width, _, _ in found}
    said_by = " and ".join(sorted({said for _, _, said, _ in found}))
    return DataScale(mpp, widths.pop() if len(widths) == 1 else None, said_by, len(found), len(paths))


def scale_in_words(scale: DataScale | None, whose: Whose) -> str:
    """What is known of the scale of a set, for people."""
    return scale.words if scale else f"not known, taken as the {whose}'s"


def why_not(scale: DataScale, patch_px: int, mpp: float, squeeze: bool) -> str | None:
    """Why images of that scale are no patches of `patch_px` px at `mpp` um per pixel; none where they are.

    With `squeeze` each whole image becomes one patch, whose scale is coarser by as much.
    """
    found, how = scale.mpp, ""
    if squeeze:
        if scale.width_px is None:
            return None  # each image comes out at a scale of its own
        found, how = (
            scale.mpp * scale.width_px / patch_px,
            f", squeezed from {scale.width_px} px to {patch_px}",
        )
    if not same_scale(found, mpp):
        return f"found patches of {found:g} um/px ({scale.said_by}{how}), expected {mpp:g}"
    if not squeeze and scale.width_px not in (None, patch_px):
        return f"found patches of {scale.width_px} px ({scale.said_by}), expected {patch_px}"
    return None


def check_scale(
    scale: DataScale | None, folder: Path, patch_px: int, mpp: float, squeeze: bool, whose: Whose
) -> None:
    """Say in the log at what scale the set's images are; raises ScaleError where it is another than is wanted."""
    log.info("scale of the patches: %s", scale_in_words(scale, whose))
    if scale and squeeze and scale.width_px is None:
        log.warning("%s: images of several widths are squeezed, each to a scale of its own", folder)
    if scale and (reason := why_not(scale, patch_px, mpp, squeeze)):
        raise ScaleError(f"{folder}: {reason}, as the {whose} says; {_REMEDIES[whose]}")
