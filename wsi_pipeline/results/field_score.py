"""What a place counts for grading: carcinoma nuclei per mm2 of tissue, more at the invasive front.

Each nucleus counts with the model's probability where it lies, those outside of regions not at all.
"""

import math

import numpy as np
import numpy.typing as npt

from wsi_pipeline.base.types import Mask
from wsi_pipeline.results.discs import Floats, disc_of, mean_at, mean_in_disc
from wsi_pipeline.results.field_ground import FieldGround, near_front
from wsi_pipeline.results.nuclei import Cellularity

# How near to tissue outside of regions the invasive front is: about a field.
FRONT_UM = 500.0
# A place is known where so much of what decides its score was looked at.
LEAST_COUNTED = 0.99
# Where not all is looked at, what is looked at together.
WINDOW_MM2 = 2.0


class FieldScore:
    """What a place counts: the score of circles around the cells of the ground."""

    def __init__(self, ground: FieldGround, front_bonus: float, cellularity: Cellularity | None) -> None:
        self._ground = ground
        self._bonus = front_bonus
        probability = np.where(ground.in_region, np.nan_to_num(ground.probability), 0).astype(np.float64)
        self._cellularity = cellularity
        if cellularity is None:
            self._weight, self._bonus = probability, 0.0
            self.rule = "the mean probability of IDC, for nuclei were not counted"
        else:
            per_mm2 = np.nan_to_num(cellularity.nuclei) / ground.cell_mm2
            self._weight = per_mm2 * probability
            self.rule = (
                f"carcinoma nuclei per mm2 of tissue{self._front_text}{self._counted_text(cellularity)}"
            )
        self.front = near_front(ground, FRONT_UM)

    @property
    def _front_text(self) -> str:
        return f", up to {self._bonus:.0%} more at the invasive front" if self._bonus else ""

    def _counted_text(self, cellularity: Cellularity) -> str:
        """Where not all of the regions was looked at, how much was."""
        mm2 = self._ground.usable * self._ground.cell_mm2
        counted, whole = float(mm2[cellularity.counted].sum()), float(mm2[self._ground.tumour].sum())
        if counted > LEAST_COUNTED * whole:
            return ""
        return f"; counted in {counted:.1f} of {whole:.1f} mm2, where the thumbnail shows most haematoxylin"

    def disc(self, radius_um: float) -> Floats:
        """A circle on the cells."""
        width, height = self._ground.cell_um
        return disc_of(radius_um / width, radius_um / height)

    def in_discs(self, radius_um: float) -> tuple[Floats, Floats]:
        """Score of the circle around each cell, -1 where it is not known; and the share of it that is tissue."""
        disc = self.disc(radius_um)
        tissue = mean_in_disc(self._ground.usable, disc)
        mean = mean_in_disc(self._weight, disc) / np.maximum(tissue, 1e-6)
        if self._bonus:
            in_region = mean_in_disc(self._ground.in_region, disc)
            mean *= 1 + self._bonus * mean_in_disc(self.front, disc) / np.maximum(in_region, 1e-6)
        if self._cellularity is not None:
            unknown = self._ground.tumour & ~self._cellularity.counted
            mean[mean_in_disc(unknown, disc) > 1 - LEAST_COUNTED] = -1.0
        # Rounded: the transform's noise must not choose between equals.
        return np.round(mean, 6), tissue

    def is_tumour(self, radius_um: float, least: float) -> Mask:
        """Where the circle around a cell has so large a share in regions, and its centre in one."""
        share = mean_in_disc(self._ground.in_region, self.disc(radius_um))
        return np.asarray(self._ground.in_region & (share >= least - 1e-6), np.bool_)

    def nuclei_per_mm2(self, disc: Floats, row: int, column: int) -> float | None:
        """Carcinoma nuclei per mm2 of tissue in the disc around a cell."""
        if self._cellularity is None:
            return None
        return mean_at(self._weight, disc, row, column) / mean_at(self._ground.usable, disc, row, column)

    def front_share(self, disc: Floats, row: int, column: int) -> float:
        """Of what lies in regions in the disc around a cell, the share at the front."""
        in_region = mean_at(self._ground.in_region.astype(float), disc, row, column)
        return mean_at(self.front.astype(float), disc, row, column) / in_region if in_region else 0.0


def where_to_count(ground: FieldGround, haematoxylin: npt.NDArray[np.float32], most_mm2: float) -> Mask:
    """The cells of the ground, [row, column], whose nuclei decide: all in regions, or the most promising of them.

    haematoxylin: of each cell, as far as the thumbnail shows it. Where the regions are larger than is to be counted,
    circles of 2 mm2 are taken that do not overlap, those with the most haematoxylin of carcinoma first.
    """
    tumour, room_mm2 = ground.tumour, most_mm2
    if float(ground.usable[tumour].sum()) * ground.cell_mm2 <= room_mm2:
        return tumour
    width, height = ground.cell_um
    radius_um = radius_um_of(WINDOW_MM2)
    weight = np.where(tumour, np.maximum(haematoxylin, 0) * np.nan_to_num(ground.probability), 0)
    score = np.round(mean_in_disc(weight, disc_of(radius_um / width, radius_um / height)), 9)
    rows, columns = np.arange(score.shape[0])[:, None], np.arange(score.shape[1])[None, :]
    wanted = np.zeros_like(tumour)
    while True:
        row, column = first_of(score)
        away = np.sqrt(((rows - row) * height) ** 2 + ((columns - column) * width) ** 2)
        here = tumour & (away <= radius_um)
        room_mm2 -= float(ground.usable[here].sum()) * ground.cell_mm2
        if score[row, column] <= 0 or (room_mm2 < 0 and wanted.any()):
            return np.asarray(wanted, np.bool_)
        wanted |= here
        score[away < 2 * radius_um] = 0


def first_of(values: Floats) -> tuple[int, int]:
    """Row and column of the largest value, the first in row order."""
    row, column = np.unravel_index(int(np.argmax(values)), values.shape)
    return int(row), int(column)


def radius_um_of(area_mm2: float) -> float:
    """Of a circle of that area."""
    return 1000 * math.sqrt(area_mm2 / math.pi)
