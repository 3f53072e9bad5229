"""What outlines, or a mask, say of each patch."""

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.slides.annotations.cell_labels import check_labelled, labels_of_drawn
from wsi_pipeline.slides.annotations.coverage import Cells
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, Outlines
from wsi_pipeline.slides.annotations.masks import LabelMask
from wsi_pipeline.tiling.grid import Plan

# A patch's label in the store and in the names of exported patches: 1 IDC, 0 not, this where it has none.
NO_LABEL = -1


def label_patches(plan: Plan, outlines: Outlines | LabelMask, options: AnnotationOptions) -> NDArray[np.int8]:
    """int8 [n], 1 IDC, 0 not, -1 not labelled, for each kept patch in row order.

    Raises DataError where the outlines label no patch at all.
    """
    grid = plan.grid
    cells = Cells(grid.plane, grid.columns, grid.rows, grid.patch_px, grid.stride_px)
    of_cells = labels_of_drawn(outlines, cells, options)[plan.kept]
    labels = of_cells.astype(np.int8)  # 255, not labelled, becomes -1
    check_labelled(outlines, labels, NO_LABEL, "patches")
    return labels


def rejected_labels(plan: Plan, labels: NDArray[np.int8]) -> str:
    """How many of the labelled patches are rejected as artefacts, by label; empty where none is.

    labels: int8 [n] of the kept patches, as `label_patches` gives them.
    """
    is_taken = plan.scored[plan.kept]
    lost = []
    for label, name in ((1, "IDC"), (0, "not IDC")):
        of_label = labels == label
        if count := int((of_label & ~is_taken).sum()):
            lost.append(f"{count:,} of {int(of_label.sum()):,} labelled {name}")
    if not lost:
        return ""
    return f"patches on artefacts are left out, and their labels with them: {', '.join(lost)}"
