"""What exports are made of, and the pixel grid that several of them lay on the slide."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.base.types import FloatMap
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.multiscales import DISPLAY_UM, MOST_DISPLAY_PIXELS
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


def covering_grid(size0: Size, mpp0: tuple[float, float], um: float = DISPLAY_UM) -> tuple[Plane, Size]:
    """A grid of about `um` a pixel that covers exactly the slide, from corner to corner, and its size in pixels.

    No larger than MOST_DISPLAY_PIXELS.

    >>> covering_grid(Size(1000, 500), (0.5, 0.5), 8.0)  # doctest: +ELLIPSIS
    (Plane(downsample_x=15.87..., downsample_y=15.625, origin_x0=0.0, origin_y0=0.0), Size(width=63, height=32))
    """
    width_um, height_um = size0.width * mpp0[0], size0.height * mpp0[1]
    um = max(um, math.sqrt(width_um * height_um / MOST_DISPLAY_PIXELS), *mpp0)
    size = Size(max(1, math.ceil(width_um / um)), max(1, math.ceil(height_um / um)))
    return Plane(size0.width / size.width, size0.height / size.height), size


def cells_at_centres(heatmap: FloatMap, plane: Plane, target: Plane, size: Size) -> FloatMap:
    """For each pixel of another grid the cell that holds its centre, float32 [row, column]; NaN where there is none.

    plane: of the map's cells; target, size: of the other grid.
    """
    x0, y0 = target.point_to_level0(np.arange(size.width) + 0.5, np.arange(size.height) + 0.5)  # type: ignore[arg-type]
    x, y = plane.point_from_level0(x0, y0)
    columns, rows = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    outside_x = (columns < 0) | (columns >= heatmap.shape[1])
    outside_y = (rows < 0) | (rows >= heatmap.shape[0])
    values: FloatMap = heatmap[np.ix_(np.where(outside_y, 0, rows), np.where(outside_x, 0, columns))]
    values[outside_y] = np.nan
    values[:, outside_x] = np.nan
    return values
