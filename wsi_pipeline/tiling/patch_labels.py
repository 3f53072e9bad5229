"""What outlines say of each patch."""

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.tiling.grid import Plan


def label_patches(plan: Plan, outlines: shapely.Geometry, options: AnnotationOptions) -> NDArray[np.int8]:
    """int8 [n], 1 IDC or 0 not, for each kept patch in row order."""
    rows, columns = np.nonzero(plan.kept)
    plane, grid = plan.grid.plane, plan.grid
    left = plane.origin_x0 + columns * grid.stride_px * plane.downsample_x
    top = plane.origin_y0 + rows * grid.stride_px * plane.downsample_y
    boxes = shapely.box(
        left, top, left + grid.patch_px * plane.downsample_x, top + grid.patch_px * plane.downsample_y
    )
    shapely.prepare(outlines)
    share = np.zeros(len(boxes))
    touched = shapely.intersects(outlines, boxes)
    share[touched] = shapely.area(shapely.intersection(boxes[touched], outlines)) / shapely.area(
        boxes[touched]
    )
    return (share >= options.min_share).astype(np.int8)
