"""Ground to choose fields on, made from a map."""

from collections.abc import Sequence

import numpy as np

from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.results.field_ground import FieldGround, field_ground
from wsi_pipeline.results.fields import FieldChoice, FieldOptions, choose_fields
from wsi_pipeline.results.regions import IdcRegion

TISSUE_UM = 8.0
# Of slides that would have more, pixels are larger.
MOST_PX = 4_000_000


def ground_of(
    heatmap: np.ndarray,
    plane: Plane,
    mpp0: tuple[float, float],
    regions: Sequence[IdcRegion],
    tissue: np.ndarray | None = None,
) -> FieldGround:
    """The ground of a slide as large as its map; `tissue`, on pixels of 8 um from its corner, is all of it if None."""
    width0 = heatmap.shape[1] * plane.downsample_x
    height0 = heatmap.shape[0] * plane.downsample_y
    tissue_um = max(TISSUE_UM, (width0 * mpp0[0] * height0 * mpp0[1] / MOST_PX) ** 0.5)
    fine = Plane(tissue_um / mpp0[0], tissue_um / mpp0[1], plane.origin_x0, plane.origin_y0)
    if tissue is None:
        tissue = np.ones((int(height0 / fine.downsample_y), int(width0 / fine.downsample_x)), bool)
    bounds = Box(int(plane.origin_x0), int(plane.origin_y0), int(width0), int(height0))
    return field_ground(tissue, fine, bounds, mpp0, heatmap, plane, regions)


def chosen(
    heatmap: np.ndarray,
    plane: Plane,
    mpp0: tuple[float, float],
    regions: Sequence[IdcRegion],
    options: FieldOptions | None = None,
    tissue: np.ndarray | None = None,
) -> FieldChoice:
    """Fields chosen by probability."""
    return choose_fields(ground_of(heatmap, plane, mpp0, regions, tissue), regions, options or FieldOptions())
