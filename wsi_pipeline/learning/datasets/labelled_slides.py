"""Slides with labels: which they are, and the grid of what the model says of each patch alone beside its label.

A folder of them holds slides and, beside each, NAME_labels.png, a grey picture of the whole slide at any scale (1 IDC,
0 not, 255 not labelled), or NAME.geojson, outlines as QuPath exports them.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.text import counted
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.stain_check import sample_patches
from wsi_pipeline.models.stain import patch_densities
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.slides.annotations.cell_labels import UNLABELLED, labels_of_slide
from wsi_pipeline.slides.annotations.files import PICTURE_SUFFIX, label_picture_of, outlines_of
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.catalog import slides_directly_in
from wsi_pipeline.slides.names import slide_name
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.overview import make_overview
from wsi_pipeline.tiling.patches import read_blocks

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledSlide:
    """One slide, cell by cell; `patient` is the slide's name."""

    patient: str

    patch_probability: NDArray[np.float32]
    """float32 [views, row, column], of each patch alone, NaN where not scored. The first view is the map; the others
    are of the same patches turned and flipped, which the network might as well have been given."""

    labels: NDArray[np.uint8]
    """uint8 [row, column]: 1 IDC, 0 not, 255 no label."""

    @property
    def evaluated(self) -> NDArray[np.bool_]:
        """[row, column] both scored and labelled."""
        return np.asarray((self.labels != UNLABELLED) & ~np.isnan(self.patch_probability[0]))


def find_labelled_slides(folder: Path) -> list[tuple[Path, Path]]:
    """Each slide of the folder with the file of its labels beside it, by the slides' paths.

    NAME_labels.png before NAME.geojson, for a picture says which cells are not labelled at all. What is left over is
    logged. Raises DataError where there is no such folder, no slide has labels, a label picture lies there without
    its slide, or the labels are of two slides.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected slides, each with its labels")
    pairs, without = [], []
    for entry in slides_directly_in(folder):
        picture, outlines = label_picture_of(folder, entry.name), outlines_of(folder, entry.path, entry.name)
        known = picture or outlines
        if known is None:
            without.append(entry.path.name)
        elif entry.refused:
            raise DataError(f"{known}: found two slides that it may be of: {entry.refused}")
        else:
            pairs.append((entry.path, known))
        if picture and outlines:
            log.warning(
                "%s: its outlines, %s, are passed over: a label picture lies beside it", *(entry, outlines)
            )
    names = {slide_name(path) for path, _ in pairs}
    for picture in sorted(folder.glob(f"*{PICTURE_SUFFIX}")):
        if (name := picture.name.removesuffix(PICTURE_SUFFIX)) not in names and not name.startswith("."):
            raise DataError(f"{picture}: found no slide {name}.* beside it; put the two together")
    if not pairs:
        raise DataError(
            f"{folder}: found no slide with labels ({len(without)} without); "
            f"expected NAME{PICTURE_SUFFIX} or NAME.geojson beside a slide NAME"
        )
    if without:
        log.warning(
            "%s: %s without labels passed over: %s", folder, counted(len(without), "slide"), _some(without)
        )
    return pairs


def score_slide(
    path: Path,
    known: Path,
    classifier: Classifier,
    config: InferConfig,
    annotations: AnnotationOptions,
    views: int,
) -> LabelledSlide:
    """The slide at `path` as `infer-slide` would score it, and in further views up to 8, with its labels in `known`.

    Raises DataError where the labels do not fit the slide.
    """
    slide, plan, probability = patch_scores(path, classifier, config, views)
    labels = labels_of_slide(known, slide, plan.grid.map_plane, plan.kept, annotations)
    return LabelledSlide(slide.name, probability, labels)


def patch_scores(
    path: Path, classifier: Classifier, config: InferConfig, views: int
) -> tuple[Slide, Plan, NDArray[np.float32]]:
    """The slide at `path`, its patches, and what each is given in so many views: [views, row, column], NaN without."""
    card = classifier.card
    grid = grid_for_model(config.grid, card.patch_px, card.mpp)
    slide = open_slide(path)
    plan = make_overview(slide, config.overview, grid).plan
    sample = sample_patches(slide, plan)
    classifier = classifier.adapted(patch_densities(sample), sample)
    probability = np.full((views, *plan.kept.shape), np.nan, np.float32)
    for block, cut in read_blocks(plan.blocks(), plan.grid, plan.grid.reader(slide), 1):
        columns, rows = block.patches[cut.readable].T
        for view in range(views):
            probability[view, rows, columns] = classifier.scores(turned(cut.rgb[cut.readable], view))
    return slide, plan, probability


def read_scored(folder: Path, name: str) -> LabelledSlide:
    """The slide of that name as it was scored before, from `folder`/NAME.npz: `probability`, `labels`.

    probability: float32 [views, row, column], 0 to 1, NaN where not scored. labels: uint8 [row, column]. Raises
    DataError where the file is missing or damaged, or does not hold these.
    """
    path = folder / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as found:
            probability, labels = found["probability"], found["labels"]
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected the scores of slide {name}, arrays 'probability' and "
            "'labels', one such file for each slide to train on"
        ) from error
    if probability.ndim != 3 or labels.shape != probability.shape[1:] or not len(probability):
        raise DataError(
            f"{path}: found probability {probability.shape} and labels {labels.shape}, expected [views, row, column] "
            "and [row, column]"
        )
    known = probability[~np.isnan(probability)] if probability.dtype.kind == "f" else np.array([-1.0])
    if labels.dtype != np.uint8 or np.any((known < 0) | (known > 1)):
        raise DataError(
            f"{path}: found labels of {labels.dtype} and probabilities that are none (of {probability.dtype}), "
            "expected uint8, and floats from 0 to 1 or NaN"
        )
    slide = LabelledSlide(name, probability.astype(np.float32), labels)
    if not slide.evaluated.any():
        raise DataError(f"{path}: found no labelled cell that is scored, expected some; score the slide anew")
    return slide


def turned(patches: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """The patches [n, S, S, 3] in one of their eight views: turned by quarters, from the fifth on flipped."""
    quarters = np.rot90(patches, view % 4, axes=(1, 2))
    return np.ascontiguousarray(quarters[:, :, ::-1] if view >= 4 else quarters)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
