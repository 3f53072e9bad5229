"""Slides evaluated: the map that infer-slide makes of a slide, cell by cell beside what is known of it.

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
from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.evaluation.metrics import Decisions, auroc, decide
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.maps import choose_map, grid_for_model
from wsi_pipeline.pipeline.run import DEFAULT_RUN, RunOptions
from wsi_pipeline.results.store import STORE_NAME, SlideStore
from wsi_pipeline.slides.annotations.cell_labels import IDC, UNLABELLED, labels_of_slide
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.tiling.grid import plan_grid

if TYPE_CHECKING:
    from wsi_pipeline.inference.classifier import Classifier


@dataclass(frozen=True)
class EvaluatedSlide:
    """One slide's map and its labels; arrays are [row, column] of the map's cells."""

    name: str
    probability: NDArray[np.float32]
    """The map shown, NaN where not scored."""

    labels: NDArray[np.uint8]
    """0 not IDC, 1 IDC, 255 not labelled."""

    cell_mm2: float
    threshold: float
    """Of the map shown."""

    kind: str
    """Which map is shown, in words: each patch alone, or after the model's context step."""

    patch_probability: NDArray[np.float32]
    """The map before the context step, NaN where not scored; `probability` where there is no step."""

    patch_threshold: float
    """The threshold that belongs to `patch_probability`."""

    regions_mm2: float
    """Area of the regions that infer-slide delineates, wherever they lie."""

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
        return f"{counted(idc, 'cell')} IDC, {known - idc:,} not, {unlabelled:,} scored and unlabelled"

    @property
    def called(self) -> NDArray[np.bool_]:
        """The cells called IDC; what is not scored is not."""
        return np.asarray(np.nan_to_num(self.probability, nan=-1.0) >= self.threshold)

    @property
    def patch_decisions(self) -> Decisions:
        """What the map before the context step, with its own threshold, makes of the labelled cells."""
        known = self.known
        called = np.nan_to_num(self.patch_probability[known], nan=-1.0) >= self.patch_threshold
        return decide(called.astype(float), self.labels[known].astype(int), 0.5)

    @property
    def decisions(self) -> Decisions:
        """What the threshold makes of the labelled cells."""
        known = self.known
        return decide(self.called[known].astype(float), self.labels[known].astype(int), 0.5)


@options
class EvaluateConfig(InferConfig):
    """The slides' part of `evaluate-model`: how they are mapped, and what their outlines mean."""

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
    run: RunOptions = DEFAULT_RUN,
) -> EvaluatedSlide:
    """The map of the slide, made by `infer_slide` into `out` (one of the same map key is used again), and its labels.

    `known` is its label picture or its outlines. Raises what `infer_slide` raises, and DataError where the
    labels do not fit the slide.
    """
    card = classifier.card
    result = infer_slide(path, out, config.infer, classifier, run)
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
        patch_probability=store.array(f"{store.scores}/0"),
        patch_threshold=card.threshold if shown.step else shown.threshold,
        regions_mm2=result.idc_mm2 or 0.0,
        folder=out / result.folder.name,
    )


def slide_metrics(slide: EvaluatedSlide) -> dict[str, Any]:
    """What is measured of one slide, as plain values; what has no meaning is NaN."""
    known, scored = slide.known, slide.known & ~np.isnan(slide.probability)
    labels = slide.labels.astype(int)
    measured = _measured(slide.decisions, slide.cell_mm2, slide.regions_mm2)
    return {"slide": slide.name, "map": slide.kind, "threshold": slide.threshold, **measured} | {
        "dice_patch_alone": slide.patch_decisions.f1,
        "auroc": auroc(slide.probability[scored], labels[scored]),
        "not_scored": int((known & ~scored).sum()),
        "idc_not_scored": int((known & ~scored & (labels == IDC)).sum()),
    }


def all_slides_metrics(slides: Sequence[EvaluatedSlide]) -> dict[str, Any]:
    """The same of all slides' cells together; areas are sums."""
    rows = [slide_metrics(slide) for slide in slides]
    together = _summed([slide.decisions for slide in slides])
    scored = [slide.known & ~np.isnan(slide.probability) for slide in slides]
    probability = np.concatenate([s.probability[own] for s, own in zip(slides, scored, strict=True)])
    labels = np.concatenate([s.labels[own] for s, own in zip(slides, scored, strict=True)]).astype(int)
    # Cells of slides of one model are alike but for rounding; areas are added slide by slide.
    sums = {
        name: sum(row[name] for row in rows)
        for name in ("labelled_mm2", "called_mm2", "regions_mm2", "not_scored", "idc_not_scored")
    }
    measured = _measured(together, slides[0].cell_mm2, sums["regions_mm2"]) | sums
    return {
        "slides": len(rows),
        **measured,
        "dice_patch_alone": _summed([slide.patch_decisions for slide in slides]).f1,
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
