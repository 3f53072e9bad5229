"""Whole mounts with labels: the grid of what the model says of each patch alone, and what the pathologist said.

A folder of them holds slides and, beside each, NAME_labels.png: 1 IDC, 0 not, 255 no label, in pixels of the
model's scale.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.stain_check import slide_densities
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import make_overview
from wsi_pipeline.tiling.patches import read_blocks

logger = logging.getLogger(__name__)

NO_LABEL = 255
LABELS = "_labels.png"
# What lies beside a slide and is none.
NO_SLIDES = (".png", ".json", ".geojson", ".csv", ".txt")


@dataclass(frozen=True, eq=False)
class LabelledSlide:
    """One whole mount, cell by cell; `patient` is the slide's name."""

    patient: str
    # float32 [views, row, column], each patch alone, NaN where not scored. The first view is the map; the
    # others are of the same patches turned and flipped: what the network might as well have said.
    alone: NDArray[np.float32]
    # uint8 [row, column]: 1 IDC, 0 not, 255 no label.
    labels: NDArray[np.uint8]

    @property
    def evaluated(self) -> NDArray[np.bool_]:
        """[row, column] both scored and labelled."""
        return np.asarray((self.labels != NO_LABEL) & ~np.isnan(self.alone[0]))


def find_mounts(folder: Path) -> dict[str, Path]:
    """The slides under `folder` that have labels beside them, by name.

    Raises DataError when there are none, or labels lie there without their slide.
    """
    found = {}
    for labels in sorted(folder.glob(f"*{LABELS}")):
        name = labels.name.removesuffix(LABELS)
        slides = [p for p in sorted(folder.glob(f"{name}.*")) if p.suffix.lower() not in NO_SLIDES]
        if not slides:
            raise DataError(f"{labels}: found no slide {name}.* beside it; put the two together")
        found[name] = slides[0]
    if not found:
        raise DataError(f"{folder}: found no NAME{LABELS}; expected slides with their label pictures")
    return found


def score_slide(path: Path, classifier: Classifier, config: InferConfig, views: int) -> LabelledSlide:
    """The mount at `path` as `infer-slide` would score it, and in further views up to 8."""
    card = classifier.card
    grid = grid_for_model(config.grid, card.patch_px, card.mpp)
    slide = open_slide(path)
    plan = make_overview(slide, config.overview, grid).plan
    classifier = classifier.adapted(slide_densities(slide, plan))
    alone = np.full((views, *plan.kept.shape), np.nan, np.float32)
    for block, cut in read_blocks(
        plan.blocks(), plan.grid, lambda box: slide.read_readable(box, plan.grid.plane), 1
    ):
        columns, rows = block.patches[cut.readable].T
        for view in range(views):
            alone[view, rows, columns] = classifier.scores(turned(cut.rgb[cut.readable], view))
    return LabelledSlide(
        path.stem, alone, read_cell_labels(path, (alone.shape[1], alone.shape[2]), card.patch_px)
    )


def turned(patches: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """The patches [n, S, S, 3] in one of their eight views: turned by quarters, from the fifth on flipped."""
    quarters = np.rot90(patches, view % 4, axes=(1, 2))
    return np.ascontiguousarray(quarters[:, :, ::-1] if view >= 4 else quarters)


def read_cell_labels(slide: Path, shape: tuple[int, int], patch_px: int) -> NDArray[np.uint8]:
    """uint8 [row, column]: the label of each cell's patch, 255 where there is none.

    `slide` is the slide that the labels lie beside. Raises DataError when they cannot be read.
    """
    path = slide.with_name(f"{slide.stem}{LABELS}")
    try:
        labels = np.asarray(Image.open(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a picture of labels ({error})") from error
    if labels.ndim != 2 or not np.isin(np.unique(labels), (0, 1, NO_LABEL)).all():
        raise DataError(f"{path}: expected one channel of 0, 1 and {NO_LABEL} (no label)")
    height, width = shape[0] * patch_px, shape[1] * patch_px
    padded = np.full((height, width), NO_LABEL, np.uint8)
    padded[: labels.shape[0], : labels.shape[1]] = labels[:height, :width]
    # Patches are labelled whole, and start where cells start: any of their pixels says it.
    return padded[::patch_px, ::patch_px]
