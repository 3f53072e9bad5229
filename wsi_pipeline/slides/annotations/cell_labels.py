"""Labels of a map's cells, from a picture of labels or from outlines."""

import logging
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.slides.annotations.coverage import Cells, covered_share
from wsi_pipeline.slides.annotations.files import PICTURE_SUFFIX, is_xml, names_outlines
from wsi_pipeline.slides.annotations.geojson import (
    AnnotationOptions,
    Inside,
    Outlines,
    qupath_origin0,
    read_inside,
    read_outlines,
)
from wsi_pipeline.slides.annotations.masks import LabelMask, mask_share, read_mask
from wsi_pipeline.slides.resample import axis_weights
from wsi_pipeline.slides.slide import Slide

log = logging.getLogger(__name__)

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


def labels_of_slide(
    path: Path, slide: Slide, plane: Plane, tissue: NDArray[np.bool_], options: AnnotationOptions
) -> NDArray[np.uint8]:
    """uint8 [row, column], a label for each cell of `plane`, from a label picture or a file of outlines.

    tissue: bool [row, column] of the cells. Of outlines, IDC counts on tissue or not, what is not IDC on tissue
    alone. Raises DataError where the labels do not fit the slide, or label nothing of it.
    """
    if path.name.endswith(PICTURE_SUFFIX):
        return labels_of_picture(path, slide.size0, plane, tissue.shape)
    outlines = drawn_on_slide(path, slide, options)
    for warning in outlines.warnings:
        log.warning(warning)
    labels = labels_of_drawn(outlines, Cells(plane, tissue.shape[1], tissue.shape[0]), options)
    labels[(labels == NOT_IDC) & ~tissue] = UNLABELLED
    check_labelled(outlines, labels[tissue | (labels != UNLABELLED)], UNLABELLED, "cells of tissue")
    return labels


def outlines_on_slide(path: Path, slide: Slide, options: AnnotationOptions) -> Outlines:
    """The file's outlines in level-0 pixels of the slide; XML counts from its corner always.

    Raises DataError as `read_outlines`.
    """
    return read_outlines(path, options, slide.size0, _origin0(path, slide, options))


def _origin0(path: Path, slide: Slide, options: AnnotationOptions) -> tuple[float, float]:
    """The level-0 point from which the file's outlines count."""
    from_bounds = options.origin == "qupath" and not is_xml(path)
    return qupath_origin0(slide.properties, slide.size0) if from_bounds else (0.0, 0.0)


def drawn_on_slide(path: Path, slide: Slide, options: AnnotationOptions) -> Outlines | LabelMask:
    """What the file of outlines or the mask says of the slide. Raises DataError as `read_outlines` and `read_mask`."""
    if names_outlines(path):
        return outlines_on_slide(path, slide, options)
    return read_mask(path, options, slide.size0, slide.mpp)


def inside_on_slide(path: Path, slide: Slide, options: AnnotationOptions) -> Inside:
    """The area that the file outlines on the slide. Raises DataError as `read_inside`."""
    return read_inside(path, options, slide.size0, _origin0(path, slide, options))


def labels_of_drawn(
    drawn: Outlines | LabelMask, cells: Cells, options: AnnotationOptions
) -> NDArray[np.uint8]:
    """uint8 [row, column] of the cells, IDC, NOT_IDC or UNLABELLED: what covers `options.min_share` of a cell."""
    if isinstance(drawn, Outlines):
        return labels_of_outlines(drawn, cells, options)
    enough = options.min_share - 1e-6
    idc, not_idc = (mask_share(mask, drawn.plane, cells) >= enough for mask in (drawn.idc, drawn.not_idc))
    return np.where(idc, IDC, np.where(not_idc, NOT_IDC, UNLABELLED)).astype(np.uint8)


def labels_of_outlines(outlines: Outlines, cells: Cells, options: AnnotationOptions) -> NDArray[np.uint8]:
    """uint8 [row, column] of the cells: IDC or not IDC where so much of a cell is outlined as such, else not labelled.

    How much is `options.min_share`. Where the slide is annotated throughout, what is in no outline of any class counts
    as not IDC.
    """
    idc = covered_share(outlines.idc, cells)
    if not options.annotated_throughout:
        not_idc = covered_share(outlines.not_idc, cells)
    elif outlines.region is not None:
        not_idc = covered_share(shapely.difference(outlines.region, outlines.unknown), cells) - idc
    else:
        not_idc = 1 - covered_share(shapely.union(outlines.ignored, outlines.unknown), cells) - idc
    enough = options.min_share - 1e-9
    return np.where(idc >= enough, IDC, np.where(not_idc >= enough, NOT_IDC, UNLABELLED)).astype(np.uint8)


def check_labelled(
    outlines: Outlines | LabelMask, labels: NDArray[np.integer], unlabelled: int, what: str
) -> None:
    """Raises DataError where the file holds objects, there are labels to give, and all are `unlabelled`.

    `what` the labels are of, in words.
    """
    if outlines.found and labels.size and (labels == unlabelled).all():
        raise DataError(
            f"{outlines.path}: found {outlines}, which label none of the {labels.size:,} {what}; expected outlines "
            "around tissue, in pixels of the slide's full resolution (not in micrometres), or "
            "annotations: {annotated_throughout: true} in the config where the slide was looked at as a whole"
        )
