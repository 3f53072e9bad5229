"""Whether tissue is stained like what a model was trained on: optical densities against those of its card."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.models.stain import FULLY_COUNTED, patch_densities
from wsi_pipeline.slides.slide import Pixels, Slide
from wsi_pipeline.tiling.grid import Plan

if TYPE_CHECKING:  # model.py takes torch along
    from wsi_pipeline.models.card import Stain

# Patches of a slide that are looked at, evenly over it: their mean is off by an eighth of a patch's own spread.
SAMPLED_PATCHES = FULLY_COUNTED
SAMPLE_THREADS = 2
# Limits that the shipped model's validation patients and whole mounts keep, and an IHC slide exceeds: docs/using.md has
# the figures, scripts/measure_checks.py measures them.
MAX_SPREADS = 2.5
MAX_HUE_FOLD = 2.0
# The hue of fewer patches is that of what they happen to show.
HUE_PATCHES = 16
# Below this optical density in green a patch is mostly glass, and its hue is noise.
MIN_HUE_OD = 0.05
# Red and blue are swapped where the channels exchanged fit so many times better; slides of H&E as they are fit twice
# as well as exchanged, or more.
SWAPPED_FIT = 0.7
# And where the tenth patch least blue is as far as this below the card's blue, as a logarithm of the ratio to green:
# DAB beside haematoxylin varies as much, but towards more blue.
SWAPPED_BLUE = -0.2


@dataclass(frozen=True)
class StainCheck:
    """How far a stain is from a model's training data."""

    od_mean: tuple[float, float, float]
    """Mean optical density, R, G, B."""

    patches: int
    """Patches it was measured on."""

    spreads: float
    """Distance of that mean from the card's, in the spread usual among patients, of the channel furthest off."""

    hue_fold: float | None
    """How many times the ratio of red (or blue) to green density is that of the card, or the card's is it; the larger
    of the two. None of fewer than 16 patches."""

    swapped: bool = False
    """Whether red and blue look exchanged."""

    @property
    def is_far(self) -> bool:
        """Whether it is further off than patients of the training set are from one another, or swapped."""
        return self.swapped or self.spreads > MAX_SPREADS or (self.hue_fold or 1) > MAX_HUE_FOLD

    @property
    def warning(self) -> str:
        """A sentence for people; empty where the stain is near enough."""
        if not self.is_far:
            return ""
        if self.swapped:
            return (
                "red and blue look swapped: exchanged, the stain fits the model's training data, as it is it does "
                "not. Was the file written from BGR pixels? Write it again as RGB; these probabilities mean nothing"
            )
        found = [f"its optical density lies {self.spreads:.1f} times the spread among training patients off"]
        if self.hue_fold and self.hue_fold > MAX_HUE_FOLD:
            found.append(f"its hue is {self.hue_fold:.1f}-fold off")
        return (
            f"the stain is unlike the model's training data ({', '.join(found)}): another stain, scanner or lamp? "
            "Its probabilities were never measured there"
        )


def check_stain(densities: NDArray[np.float64], stain: "Stain") -> StainCheck | None:
    """How far patches of these densities, float [N, 3], are from a card's; none where the card knows no spread."""
    mean, spread = np.array(stain.od_mean), np.array(stain.od_patient_std)
    if not len(densities) or not spread.all() or not mean.all():
        return None
    n, found = len(densities), densities.mean(axis=0)
    # Few patches also differ by chance.
    spread = np.sqrt(spread**2 + np.array(stain.od_std) ** 2 / n)
    hue = None
    if n >= HUE_PATCHES:
        ratios = np.maximum(found, 1e-3) / mean
        hue = float(np.exp(np.abs(np.log(ratios / ratios[1])).max()))
    red, green, blue = (float(value) for value in found)
    spreads = float((np.abs(found - mean) / spread).max())
    return StainCheck((red, green, blue), n, spreads, hue, _is_swapped(densities, stain))


def _is_swapped(densities: NDArray[np.float64], stain: "Stain") -> bool:
    """Whether red and blue of these densities, float [N, 3], look exchanged, by a card of H&E.

    Haematoxylin and eosin absorb blue about equally, beside green; red is what haematoxylin alone absorbs. So the
    ratio of blue to green is nearly the same in every patch, and the card knows it; the ratio of red varies.
    """
    red_mean, green_mean, blue_mean = stain.od_mean
    coloured = np.maximum(densities[densities[:, 1] >= MIN_HUE_OD], 1e-3)  # [n, 3]
    if len(coloured) < HUE_PATCHES or red_mean >= blue_mean:
        return False
    expected = np.log(blue_mean / green_mean)
    red, blue = (np.log(coloured[:, c] / coloured[:, 1]) - expected for c in (0, 2))  # [n]
    fits = np.sqrt((red**2).mean()) < SWAPPED_FIT * np.sqrt((blue**2).mean())
    steadier = (
        red.std() < SWAPPED_FIT * blue.std()
    )  # the lamp's tint shifts a ratio, and leaves how it varies
    return bool(fits and steadier and np.percentile(blue, 10) < SWAPPED_BLUE)


def slide_densities(slide: Slide, plan: Plan) -> NDArray[np.float64]:
    """Mean optical density of the patches of `sample_patches`, float [N, 3]."""
    return patch_densities(sample_patches(slide, plan))


def sampled_cells(plan: Plan) -> list[tuple[int, int]]:
    """Rows and columns of the planned patches that a slide is sampled at: evenly over them, 64 at most."""
    cells = np.argwhere(plan.scored)
    chosen = np.linspace(0, len(cells) - 1, min(SAMPLED_PATCHES, len(cells))).astype(int)
    return [(row, column) for row, column in cells[chosen].tolist()]


def sample_patches(slide: Slide, plan: Plan) -> NDArray[np.uint8]:
    """Patches of `sampled_cells`, uint8 [N, S, S, 3], unreadable ones left out."""
    reader = plan.grid.reader(slide)

    def read(place: tuple[int, int]) -> Pixels:
        row, column = place
        return reader(plan.grid.patch_box(column, row))

    with ThreadPoolExecutor(SAMPLE_THREADS, thread_name_prefix="stain") as pool:
        read_all = pool.map(read, sampled_cells(plan))
        patches = [pixels.rgb for pixels in read_all if pixels.unreadable is None]
    side = plan.grid.patch_px
    return np.stack(patches) if patches else np.empty((0, side, side, 3), np.uint8)
