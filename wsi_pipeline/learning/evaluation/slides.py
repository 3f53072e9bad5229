"""Whole sections judged: the map that infer-slide makes of a slide, cell by cell beside what is known of it.

What is known lies beside the slide (datasets/labelled_slides.py): a picture of labels, or outlines. Every labelled
cell counts; one of IDC that the map does not score counts as missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.options import options
from wsi_pipeline.base.types import Progress
from wsi_pipeline.learning.evaluation.metrics import Decisions, auroc, decide
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.maps import choose_map, grid_for_model
from wsi_pipeline.results.store import STORE_NAME, SlideStore
from wsi_pipeline.slides.annotations.cell_labels import IDC, UNLABELLED, labels_of_slide
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.tiling.grid import plan_grid

if TYPE_CHECKING:
    from wsi_pipeline.inference.classifier import Classifier


@dataclass(frozen=True)
class EvaluatedSlide:
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
    def counts_in_words(self) -> str:
        """How many cells have which label."""
        idc, known = int((self.labels == IDC).sum()), int(self.known.sum())
        unlabelled = int((~self.known & ~np.isnan(self.probability)).sum())
        return f"{idc:,} cells IDC, {known - idc:,} not, {unlabelled:,} scored and unlabelled"

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


@options
class EvaluateConfig(InferConfig):
    """The slides' part of `evaluate-model`: how they are mapped, and what their outlines mean."""

    annotations: AnnotationOptions = AnnotationOptions()

    @property
    def infer(self) -> InferConfig:
        """What of it decides a map."""
        return InferConfig(**{each.name: getattr(self, each.name) for each in fields(InferConfig)})


def evaluate_slide(
    path: Path,
    known: Path,
    out: Path,
    config: EvaluateConfig,
    classifier: "Classifier",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EvaluatedSlide:
    """The map of the slide, made by `infer_slide` into `out` (one of the same recipe is used again), judged.

    `known` is its label picture or its outlines. Raises what `infer_slide` raises, and DataError where the
    labels do not fit the slide.
    """
    card = classifier.card
    result = infer_slide(path, out, config.infer, classifier, overwrite=overwrite, progress=progress)
    slide = open_slide(path)
    infer = replace(config.infer, grid=grid_for_model(config.grid, card.patch_px, card.mpp))
    plane, shown = plan_grid(slide, infer.grid).map_plane, choose_map(classifier.models, infer)
    store = SlideStore(result.folder / STORE_NAME)
    probability, status = store.array("heatmap/0"), store.array("labels/status/0")
    labels = labels_of_slide(known, slide, plane, status != Status.BACKGROUND, config.annotations)
    return EvaluatedSlide(
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


def slide_metrics(section: EvaluatedSlide) -> dict[str, Any]:
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


def all_slides_metrics(sections: Sequence[EvaluatedSlide]) -> dict[str, Any]:
    """The same of all slides' cells together; areas are sums."""
    rows = [slide_metrics(section) for section in sections]
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
