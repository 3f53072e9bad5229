"""Labels of a map's cells, from a picture of labels or from outlines."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, read_outlines
from wsi_pipeline.slides.resample import axis_weights

if TYPE_CHECKING:
    pass


NOT_IDC, IDC, UNLABELLED = 0, 1, 255

# Pictures of labels are as wide and high as the slide, but for rounding.
SHAPE_TOLERANCE = 0.02


def labels_of_picture(path: Path, size0: Size, plane: Plane, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """uint8 of `shape`, a label for each cell of `plane`, from a picture of the whole slide.

    A cell is labelled where half of it (of what lies on the slide) is, and IDC where half of that is. Raises
    DataError for a picture of another shape than the slide's, or of other values than 0, 1 and 255.
    """
    try:
        with Image.open(path) as opened:
            picture = np.asarray(opened)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); get the labels again") from error
    found = set(np.unique(picture).tolist()) if picture.ndim == 2 else {"several channels"}
    if not found <= {NOT_IDC, IDC, UNLABELLED}:
        shown = ", ".join(str(value) for value in sorted(found)[:8])
        raise DataError(
            f"{path}: found {shown}; expected a grey picture of 0 (not IDC), 1 (IDC), 255 (not labelled)"
        )
    height, width = picture.shape
    if abs(width * size0.height / (height * size0.width) - 1) > SHAPE_TOLERANCE:
        raise DataError(
            f"{path}: found {width} x {height} px, the slide has {size0.width} x {size0.height}; "
            "expected a picture of the whole slide, at any scale"
        )
    # Cells in pixels of the picture; a rim around it stands for what lies off the slide.
    x, y = width / size0.width, height / size0.height
    across = axis_weights(shape[1], plane.origin_x0 * x + 1, plane.downsample_x * x, width + 2)
    down = axis_weights(shape[0], plane.origin_y0 * y + 1, plane.downsample_y * y, height + 2)

    def share(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        return np.asarray(down @ (across @ np.pad(mask, 1).astype(np.float32).T).T)

    inside = share(np.ones_like(picture, bool))
    labelled, idc = share(picture != UNLABELLED), share(picture == IDC)
    half = 0.5 - 1e-6
    labels = np.where(idc >= half * labelled, IDC, NOT_IDC)
    return np.where((labelled >= half * inside) & (labelled > 0), labels, UNLABELLED).astype(np.uint8)


def labels_of_outlines(
    path: Path, plane: Plane, tissue: NDArray[np.bool_], options: AnnotationOptions | None = None
) -> NDArray[np.uint8]:
    """uint8 as `tissue` (bool, cells of `plane`): IDC where outlines cover half of a cell, tissue or not.

    All other tissue counts as not IDC, the rest as not labelled. Raises DataError as `read_outlines`, and
    where the file has no outline of IDC.
    """
    options = options or AnnotationOptions()
    outlines = read_outlines(path, options)
    if outlines.is_empty:
        raise DataError(
            f"{path}: found no outline of IDC; expected some of the class {' or '.join(options.idc_classes)}"
        )
    rows, columns = np.indices(tissue.shape)
    left, top = (
        plane.origin_x0 + columns * plane.downsample_x,
        plane.origin_y0 + rows * plane.downsample_y,
    )
    cells = shapely.box(left, top, left + plane.downsample_x, top + plane.downsample_y)
    shapely.prepare(outlines)
    share = np.zeros(tissue.shape)
    touched = shapely.intersects(outlines, cells)
    share[touched] = shapely.area(shapely.intersection(cells[touched], outlines))
    idc = share >= options.min_share * plane.downsample_x * plane.downsample_y
    return np.where(idc, IDC, np.where(tissue, NOT_IDC, UNLABELLED)).astype(np.uint8)
