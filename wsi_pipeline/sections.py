"""Whole sections judged: the map that infer-slide makes of a slide, cell by cell beside what is known of it.

What is known lies beside the slide: `<slide>_labels.png`, a grey picture of the whole slide at any scale (0 not
IDC, 1 IDC, 255 not labelled), or `<slide>.geojson`, outlines as QuPath exports them, outside of which all tissue
counts as not IDC. Every labelled cell counts; one of IDC that the map does not score counts as missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.annotations import AnnotationOptions, read_outlines
from wsi_pipeline.config import InferConfig
from wsi_pipeline.errors import DataError
from wsi_pipeline.evaluate import Decisions, auroc, decide
from wsi_pipeline.geometry import Plane, Size
from wsi_pipeline.grid import plan_grid
from wsi_pipeline.pipeline import Progress, choose_map, grid_for_model, infer_slide
from wsi_pipeline.resample import axis_weights
from wsi_pipeline.slide import open_slide
from wsi_pipeline.stitch import Status
from wsi_pipeline.store import STORE_NAME, SlideStore

if TYPE_CHECKING:
    from wsi_pipeline.classify import Classifier

NOT_IDC, IDC, UNLABELLED = 0, 1, 255
# Pictures of labels are as wide and high as the slide, but for rounding.
SHAPE_TOLERANCE = 0.02


@dataclass(frozen=True)
class SectionJudged:
    """One slide's map and its labels; arrays are [row, column] of the map's cells."""

    name: str
    # float32, NaN where not scored.
    probability: NDArray[np.float32]
    # uint8: 0 not IDC, 1 IDC, 255 not labelled.
    labels: NDArray[np.uint8]
    cell_mm2: float
    threshold: float
    # Which map it is, in words: each patch alone, or after the model's context step.
    kind: str
    # float32, the map of each patch alone, and the threshold that belongs to it; the same where it is shown.
    alone: NDArray[np.float32]
    alone_threshold: float
    # Area of the regions that infer-slide delineates, wherever they lie.
    regions_mm2: float
    folder: Path

    @property
    def known(self) -> NDArray[np.bool_]:
        """The cells that are labelled."""
        return np.asarray(self.labels != UNLABELLED)

    @property
    def called(self) -> NDArray[np.bool_]:
        """The cells called IDC; what is not scored is not."""
        return np.asarray(np.nan_to_num(self.probability, nan=-1.0) >= self.threshold)

    @property
    def decisions_alone(self) -> Decisions:
        """What patches alone, with the threshold that belongs to them, make of the labelled cells."""
        known = self.known
        called = np.nan_to_num(self.alone[known], nan=-1.0) >= self.alone_threshold
        return decide(called.astype(float), self.labels[known].astype(int), 0.5)

    @property
    def decisions(self) -> Decisions:
        """What the threshold makes of the labelled cells."""
        known = self.known
        return decide(self.called[known].astype(float), self.labels[known].astype(int), 0.5)


def find_sections(folder: Path) -> list[tuple[Path, Path]]:
    """Each slide of the folder with the file that says what is known of it, by name.

    Raises DataError when there is no such folder, or no label or outline fits a slide.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected slides, each with its labels")
    known = {p.name.removesuffix("_labels.png"): p for p in sorted(folder.glob("*_labels.png"))}
    # A label picture says what no outline says: which cells are not labelled at all.
    known = {p.stem: p for p in sorted(folder.glob("*.geojson"))} | known
    pairs = [
        (path, known[path.stem])
        for path in sorted(folder.iterdir())
        if path.stem in known and path.suffix not in (".geojson", ".png", ".json")
    ]
    if not pairs:
        raise DataError(
            f"{folder}: found {len(known)} files of labels and no slide with one; "
            "expected NAME_labels.png or NAME.geojson beside a slide NAME"
        )
    return pairs


def judge_section(
    path: Path,
    known: Path,
    out: Path,
    config: InferConfig,
    classifier: "Classifier",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SectionJudged:
    """The map of the slide, made by `infer_slide` into `out` (one of the same recipe is used again), judged.

    `known` is its label picture or its outlines. Raises what `infer_slide` raises, and DataError where the
    labels do not fit the slide.
    """
    card = classifier.model.card
    result = infer_slide(path, out, config, classifier, overwrite=overwrite, progress=progress)
    slide = open_slide(path)
    config = replace(config, grid=grid_for_model(config.grid, card.patch_px, card.mpp))
    plane, shown = plan_grid(slide, config.grid).map_plane, choose_map(classifier.models, config)
    store = SlideStore(result.folder / STORE_NAME)
    probability, status = store.array("heatmap/0"), store.array("labels/status/0")
    if known.suffix == ".png":
        labels = labels_of_picture(known, slide.size0, plane, probability.shape)
    else:
        labels = labels_of_outlines(known, plane, status != Status.BACKGROUND)
    return SectionJudged(
        name=slide.name,
        probability=probability,
        labels=labels,
        cell_mm2=plane.downsample_x * slide.mpp[0] * plane.downsample_y * slide.mpp[1] / 1e6,
        threshold=shown.threshold,
        kind=shown.kind,
        alone=store.array(f"{store.scores}/0"),
        alone_threshold=card.threshold if shown.step else shown.threshold,
        regions_mm2=result.idc_mm2 or 0.0,
        folder=out / result.folder.name,
    )


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


def section_metrics(section: SectionJudged) -> dict[str, Any]:
    """What is measured of one slide, as plain values; what has no meaning is NaN."""
    known, scored = section.known, section.known & ~np.isnan(section.probability)
    labels = section.labels.astype(int)
    measured = _measured(section.decisions, section.cell_mm2, section.regions_mm2)
    return {"slide": section.name, "map": section.kind, "threshold": section.threshold, **measured} | {
        "dice_patch_alone": section.decisions_alone.f1,
        "auroc": auroc(section.probability[scored], labels[scored]),
        "not_scored": int((known & ~scored).sum()),
        "idc_not_scored": int((known & ~scored & (labels == IDC)).sum()),
    }


def all_sections_metrics(sections: Sequence[SectionJudged]) -> dict[str, Any]:
    """The same of all slides' cells together; areas are sums."""
    rows = [section_metrics(section) for section in sections]
    together = _summed([section.decisions for section in sections])
    scored = [section.known & ~np.isnan(section.probability) for section in sections]
    probability = np.concatenate([s.probability[own] for s, own in zip(sections, scored, strict=True)])
    labels = np.concatenate([s.labels[own] for s, own in zip(sections, scored, strict=True)]).astype(int)
    # Cells of slides of one model are alike but for rounding; areas are added slide by slide.
    sums = {
        name: sum(row[name] for row in rows)
        for name in ("labelled_mm2", "called_mm2", "regions_mm2", "not_scored", "idc_not_scored")
    }
    measured = _measured(together, sections[0].cell_mm2, sums["regions_mm2"]) | sums
    return {
        "slides": len(rows),
        **measured,
        "dice_patch_alone": _summed([section.decisions_alone for section in sections]).f1,
        "area_error_mm2": sums["called_mm2"] - sums["labelled_mm2"],
        "mean_absolute_area_error_mm2": float(np.mean([abs(row["area_error_mm2"]) for row in rows])),
        "auroc": auroc(probability, labels),
    }


def _summed(decisions: Sequence[Decisions]) -> Decisions:
    return Decisions(
        sum(d.true_positive for d in decisions),
        sum(d.false_positive for d in decisions),
        sum(d.true_negative for d in decisions),
        sum(d.false_negative for d in decisions),
    )


def _measured(decisions: Decisions, cell_mm2: float, regions_mm2: float) -> dict[str, Any]:
    labelled = (decisions.true_positive + decisions.false_negative) * cell_mm2
    called = (decisions.true_positive + decisions.false_positive) * cell_mm2
    return {
        "cells": decisions.true_positive
        + decisions.false_positive
        + decisions.true_negative
        + decisions.false_negative,
        "idc_cells": decisions.true_positive + decisions.false_negative,
        "dice": decisions.f1,
        "recall": decisions.recall,
        "specificity": decisions.specificity,
        "balanced_accuracy": decisions.balanced_accuracy,
        "labelled_mm2": labelled,
        "called_mm2": called,
        "area_error_mm2": called - labelled,
        "regions_mm2": regions_mm2,
    }
