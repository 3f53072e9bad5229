"""What is tissue but should not be scored, as far as one low-power plane shows: ink, clotted blood, black dirt, blur.

Blur is found by what it leaves of fine detail (blur.py). All else is found by optical density relative to the glass,
as tissue is (tissue.py). Haematoxylin, eosin and DAB absorb green at least as strongly as red (Ruifrok and Johnston
2001); blue and green inks absorb red. Red ink and clotted blood absorb blue nearly as strongly as green and hardly any
red, as no mixture of these stains does. And what is stained is never both dark and grey; black ink, pigment and dirt
are.

Folds are left out: at this scale they are as dark as dense carcinoma beside them (docs/tissue.md).
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.types import Mask, RgbImage
from wsi_pipeline.tiling.blur import find_blur
from wsi_pipeline.tiling.tissue import Glass, by_strips, channel_od, without_small


@options
class ArtefactOptions:
    """Which tissue is not worth scoring."""

    check_pen: bool = True
    """Reject blue and green ink: marker strokes and the dyes of resection margins."""

    min_pen_od: Annotated[float, Field(gt=0)] = 0.12
    """Optical density in red above that in green from which it is ink: no stained tissue reaches 0.1."""

    check_red: bool = True
    """Reject red ink and clotted blood; switch it off where saffron is among the stains."""

    min_red_od: Annotated[float, Field(gt=0)] = 0.5
    """Optical density in green from which red is looked for: paler red may be eosin."""

    min_red_blue: Annotated[float, Field(gt=0)] = 0.8
    """Least optical density in blue, relative to green: eosin and haematoxylin have 0.6, carcinoma below 0.75."""

    max_red_red: Annotated[float, Field(ge=0)] = 0.2
    """Largest optical density in red, relative to green: mixtures of eosin and DAB that absorb as much blue have
    more."""

    check_dark: bool = True
    """Reject black ink, pigment and dirt."""

    min_dark_od: Annotated[float, Field(gt=0)] = 0.8
    """Mean optical density from which grey is dirt: the darkest nuclei reach it too, but are purple."""

    max_grey_share: Annotated[float, Field(ge=0)] = 0.2
    """Largest spread of optical density between channels, relative to its mean, that is still grey: the
    greyest mixture of DAB and haematoxylin has 0.27."""

    check_blur: bool = True
    """Reject tissue that is out of focus by more than such a plane's pixel."""

    min_sharpness: Annotated[float, Field(gt=0)] = 0.95
    """Least ratio of fine detail to coarse, over a window, of tissue in focus (tiling/blur.py). docs/tissue.md says how
    much is found with it, and what of tissue in focus is rejected."""

    sharpness_um: Annotated[float, Field(gt=0)] = 400.0
    """Side of the windows: about the smallest area out of focus that is found."""

    min_spot_um2: Annotated[float, Field(ge=0)] = 1_000.0
    """Smaller spots stay: a patch is not spoilt by a speck of 30 um."""

    margin_um: Annotated[float, Field(ge=0)] = 16.0
    """Rejected around each spot: its blurred rim."""


@dataclass(frozen=True)
class Artefacts:
    """Tissue not to be scored, on `plane`, and how much of it there is for each reason: 'pen', 'red', 'dark', 'blur'.

    Tissue with two reasons counts under both; a check switched off has no entry.
    """

    rejected: NDArray[np.bool_]
    plane: Plane
    areas_mm2: dict[str, float]
    spots: dict[str, Mask]
    """By reason, [row, col] as `rejected`, which is all of them together."""


def find_artefacts(
    rgb: RgbImage,
    plane: Plane,
    mpp: tuple[float, float],
    tissue: Mask,
    glass: tuple[Glass, ...],
    options: ArtefactOptions,
) -> Artefacts:
    """The tissue on a low-power plane that should not be scored.

    rgb: the whole plane, uint8 [row, col, 3]. plane: where it lies on the slide.
    mpp: micrometres per pixel of `rgb`, along x and along y.
    tissue: what was found to be tissue, and could be read; nothing else is rejected.
    glass: what the glass may be (tissue.py); what is spoilt is so relative to each.
    """
    checked = {"pen": options.check_pen, "red": options.check_red, "dark": options.check_dark}
    found = {reason: np.ones_like(tissue) for reason, wanted in checked.items() if wanted}

    def look_at(rows: slice) -> None:
        for one in glass:
            red, green, blue = channel_od(rgb[rows], one)
            if options.check_pen:
                found["pen"][rows] &= red - green > options.min_pen_od
            if options.check_red:
                of_red = (green > options.min_red_od) & (blue > options.min_red_blue * green)
                found["red"][rows] &= of_red & (red < options.max_red_red * green)
            if options.check_dark:
                mean = (red + green + blue) / 3
                spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
                found["dark"][rows] &= (mean > options.min_dark_od) & (
                    spread <= options.max_grey_share * mean
                )

    by_strips(len(rgb), look_at)
    spoilt_by = {reason: _spots(found_by, mpp, options) & tissue for reason, found_by in found.items()}
    rejected = np.zeros_like(tissue)
    for spoilt in spoilt_by.values():
        rejected |= spoilt
    if options.check_blur:  # not of ink and dirt, whose rims are sharp
        blurred = find_blur(rgb, mpp, tissue & ~rejected, options.min_sharpness, options.sharpness_um)
        rejected |= blurred
        spoilt_by["blur"] = blurred
    areas_mm2 = {reason: int(spots.sum()) * mpp[0] * mpp[1] / 1e6 for reason, spots in spoilt_by.items()}
    return Artefacts(rejected, plane, areas_mm2, spoilt_by)


def _spots(mask: Mask, mpp: tuple[float, float], options: ArtefactOptions) -> Mask:
    """The mask's pieces that are no specks, with their margin."""
    if not mask.any():  # as on most slides
        return mask
    mask = without_small(mask, options.min_spot_um2 / (mpp[0] * mpp[1]))
    size_px = [2 * round(options.margin_um / size_um) + 1 for size_um in (mpp[1], mpp[0])]
    return np.asarray(ndimage.maximum_filter(mask, size_px, mode="constant"))
