"""What exports are made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pipeline.base.geometry import Size
from wsi_pipeline.base.types import FloatMap
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.tiling.overview import Thumbnail

TITLE = "probability of IDC"
# Of what was not scored, in formats whose readers do not bear NaN (histograms of large_image, some viewers of DICOM).
NOT_SCORED = -1.0


@dataclass(frozen=True, eq=False)
class ExportedMap:
    """A finished map of a slide, and what its run says of it."""

    name: str
    """The slide's, as its run folder is called."""

    slide_path: Path
    """Where the slide lies, or lay."""

    finished: FinishedMap

    summary: dict[str, Any]
    """The run's summary.json: the numbers of every export are from there."""

    thumbnail: Thumbnail | None = None
    """A picture of the slide, for those that show it."""

    @property
    def size0(self) -> Size:
        """Of level 0, in pixels."""
        return Size(*self.summary["size0"])

    @property
    def mpp0(self) -> tuple[float, float]:
        """Micrometres per level-0 pixel, along x and y."""
        x, y = self.summary["mpp"]
        return float(x), float(y)


def without_nan(values: FloatMap) -> FloatMap:
    """A copy with NOT_SCORED in place of NaN."""
    return np.where(np.isfinite(values), values, np.float32(NOT_SCORED))
