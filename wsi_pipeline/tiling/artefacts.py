"""What is tissue but should not be scored, as far as one low-power plane shows: ink, blood, black dirt, blur, folds.

Blur is found by what it leaves of fine detail (blur.py), a fold as a band darker than both its sides (folds.py). All
else is found by optical density relative to the glass, as tissue is (tissue.py). Haematoxylin, eosin and DAB absorb
green at least as strongly as red (Ruifrok and Johnston 2001); blue and green inks absorb red. Red ink and clotted blood
absorb blue nearly as strongly as green and hardly any red, as no mixture of these stains does; orange and yellow ink
absorb blue more than green, as only DAB does, and less. And what is stained is never both dark and grey; black ink,
pigment and dirt are. Over dense tissue ink has the colour of dense tissue, and is denser than any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.types import Mask, RgbImage
from wsi_pipeline.tiling.blur import find_blur
from wsi_pipeline.tiling.folds import find_folds
from wsi_pipeline.tiling.tissue import Glass, by_strips, channel_od, without_small

# Blue ink over eosin has haematoxylin's colour, nearly: it absorbs more of red than dense nuclei do over such a pixel,
# and of blue a smaller part of that than haematoxylin alone, which has 0.45.
DENSE_PEN_RED_OD, DENSE_PEN_BLUE = 1.4, 0.45
# Red ink over tissue: denser in green and blue than tissue is; DAB with haematoxylin has 0.56 and more of red.
DENSE_RED_GREEN_OD, DENSE_RED_BLUE_OD, DENSE_RED_RED = 1.9, 1.5, 0.45
# Orange and yellow ink: DAB absorbs blue 1.25 times as much as green, with eosin less, and red 0.38 times as much as
# blue wherever it absorbs as much blue as green.
YELLOW_BLUE_OD, YELLOW_GREEN, ORANGE_RED = 0.8, 1.35, 0.3

_Densities = Sequence[NDArray[np.float32]]


@options
class ArtefactOptions:
    """Which tissue is not worth scoring."""

    check_pen: bool = True
    """Reject blue and green ink: marker strokes and the dyes of resection margins."""

    min_pen_od: Annotated[float, Field(gt=0)] = 0.12
    """Optical density in red above that in green from which it is ink: no stained tissue reaches 0.1."""

    check_red: bool = True
    """Reject red, orange and yellow ink and clotted blood; switch it off where saffron is among the stains."""

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

    check_folds: bool = True
    """Reject tissue that is folded over itself."""

    min_fold_ratio: Annotated[float, Field(gt=1)] = 1.3
    """Least ratio of optical density in a fold to that on both its sides, in haematoxylin and in eosin, all along
    (tiling/folds.py). Two layers should have 2, and have less where a side is denser than what was folded."""

    min_fold_um: Annotated[float, Field(gt=0)] = 720.0
    """Length from which folds are found: shorter, and vessels and ducts look like them."""

    min_spot_um2: Annotated[float, Field(ge=0)] = 1_000.0
    """Smaller spots stay: a patch is not spoilt by a speck of 30 um."""

    margin_um: Annotated[float, Field(ge=0)] = 16.0
    """Rejected around each spot: its blurred rim."""


@dataclass(frozen=True)
class Artefacts:
    """Tissue not to be scored, on `plane`, and how much of it there is for each reason.

    The reasons are 'pen', 'red', 'dark', 'blur', 'fold'. Tissue with two reasons counts under both; a check switched
    off has no entry.
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
            od = channel_od(rgb[rows], one)
            for reason, spots in found.items():
                spots[rows] &= _SPOT_OF[reason](od, options)

    by_strips(len(rgb), look_at)
    spoilt_by = {reason: _spots(found_by, mpp, options) & tissue for reason, found_by in found.items()}
    rejected = np.zeros_like(tissue)
    for spoilt in spoilt_by.values():
        rejected |= spoilt
    if options.check_blur:  # not of ink and dirt, whose rims are sharp
        blurred = find_blur(rgb, mpp, tissue & ~rejected, options.min_sharpness, options.sharpness_um)
        spoilt_by["blur"] = blurred
    if options.check_folds:
        clean = tissue & ~rejected
        folds = clean.copy()
        for one in glass:
            folds &= find_folds(rgb, mpp, clean, one, options.min_fold_ratio, options.min_fold_um)
        spoilt_by["fold"] = folds
    for spoilt in spoilt_by.values():
        rejected |= spoilt
    areas_mm2 = {reason: int(spots.sum()) * mpp[0] * mpp[1] / 1e6 for reason, spots in spoilt_by.items()}
    return Artefacts(rejected, plane, areas_mm2, spoilt_by)


def _spots(mask: Mask, mpp: tuple[float, float], options: ArtefactOptions) -> Mask:
    """The mask's pieces that are no specks, with their margin."""
    if not mask.any():  # as on most slides
        return mask
    mask = without_small(mask, options.min_spot_um2 / (mpp[0] * mpp[1]))
    size_px = [2 * round(options.margin_um / size_um) + 1 for size_um in (mpp[1], mpp[0])]
    return np.asarray(ndimage.maximum_filter(mask, size_px, mode="constant"))


def _pen(od: _Densities, options: ArtefactOptions) -> Mask:
    red, green, blue = od
    over_tissue = (red > DENSE_PEN_RED_OD) & (blue < DENSE_PEN_BLUE * red)
    return np.asarray((red - green > options.min_pen_od) | over_tissue)


def _red(od: _Densities, options: ArtefactOptions) -> Mask:
    red, green, blue = od
    of_red = (green > options.min_red_od) & (blue > options.min_red_blue * green)
    of_red &= red < options.max_red_red * green
    over_tissue = (green > DENSE_RED_GREEN_OD) & (blue > DENSE_RED_BLUE_OD) & (red < DENSE_RED_RED * green)
    orange = (blue > YELLOW_GREEN * green) | ((blue > green) & (red < ORANGE_RED * blue))
    orange &= (blue > YELLOW_BLUE_OD) & (red < green)  # green ink is not so
    return np.asarray(of_red | over_tissue | orange)


def _dark(od: _Densities, options: ArtefactOptions) -> Mask:
    red, green, blue = od
    mean = (red + green + blue) / 3
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return np.asarray((mean > options.min_dark_od) & (spread <= options.max_grey_share * mean))


# Of each reason, which pixels are so, by their optical density in red, green and blue relative to one glass.
_SPOT_OF = {"pen": _pen, "red": _red, "dark": _dark}
