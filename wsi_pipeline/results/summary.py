"""What a run says of itself in numbers: counts, seconds, areas, summary.json."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.types import Mask
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.models.score_distance import count_scores
from wsi_pipeline.results.extent import largest_dimension_mm
from wsi_pipeline.results.fields import FieldChoice
from wsi_pipeline.results.grading import LEAST_FIELDS, SOURCE, area_of_fields, mitotic_thresholds
from wsi_pipeline.results.provenance import key_of
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.slides.annotations.geojson import Inside
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.overview import Overview

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.card import ModelCard
    from wsi_pipeline.models.model import Model

log = logging.getLogger(__name__)

# The packages that pixels and numbers come through.
VERSIONED = ("numpy", "openslide-python", "openslide-bin", "scikit-image", "scipy", "torch", "zarr")


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the seconds that the `with` block takes to the stage's."""
        log.debug("stage %s", stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0) + time.perf_counter() - start, 3)

    @property
    def total(self) -> float:
        """All stages together."""
        return round(sum(self.seconds.values()), 3)


@dataclass(frozen=True)
class Uncertainty:
    """How far an ensemble's models are apart: means of the standard deviation between their probabilities.

    models: how many they are. mean: over all scored cells; in_regions: over those in regions; None of no cell.
    """

    models: int
    mean: float | None
    in_regions: float | None


def mean_uncertainty(models: int, deviation: NDArray[np.float32], in_regions: Mask) -> Uncertainty:
    """How far so many `models` are apart: means of `deviation`, [row, column], NaN where not scored.

    `in_regions` marks the cells of regions, of the same shape.
    """
    scored = np.isfinite(deviation)

    def mean(cells: Mask) -> float | None:
        return float(deviation[cells].mean(dtype=np.float64)) if cells.any() else None

    return Uncertainty(models, mean(scored), mean(scored & in_regions))


def count(
    plan: Plan, status: NDArray[np.uint8] | None, labels: NDArray[np.int8] | None = None
) -> dict[str, Any]:
    """Patches by the plan; cells of the map by their `status`, if given.

    labels: int8 [n] of the kept patches, if there are any; counted are those of the patches that are taken, without
    those that are rejected.
    """
    counts: dict[str, Any] = {
        "positions": plan.kept.size,
        "patches": int(plan.scored.sum()),
        "rejected": int(plan.rejected.sum()),
    }
    if status is not None:
        cells = Counter(status.ravel().tolist())
        counts["cells"] = {value.name.lower(): cells[value] for value in Status}
    if labels is not None:
        names = {"idc": 1, "not_idc": 0, "unlabelled": -1}
        taken = labels[plan.scored[plan.kept]]
        counts["labels"] = {name: int((taken == value).sum()) for name, value in names.items()}
    return counts


def region_info(regions: Sequence[IdcRegion], tissue_mm2: float, mpp0: tuple[float, float]) -> dict[str, Any]:
    """What pages, tables and files say of the regions: areas of tissue in mm2, extents in mm (docs/outputs.md)."""
    idc_mm2 = sum(region.area_mm2 for region in regions)
    return {
        "idc_mm2": round(idc_mm2, 4),
        "idc_share": round(idc_mm2 / tissue_mm2, 4) if tissue_mm2 else None,
        "foci": len(regions),
        "extent_mm": round(largest_dimension_mm([region.polygon for region in regions], mpp0), 3),
        "largest_focus_mm": round(max((region.largest_mm for region in regions), default=0.0), 3),
        "regions": [
            {
                "name": region.name,
                "area_mm2": round(region.area_mm2, 4),
                "largest_mm": round(region.largest_mm, 3),
                "nearest_mm": None if region.nearest_mm is None else round(region.nearest_mm, 3),
                "mean_probability": round(region.mean_probability, 4),
                "max_probability": round(region.max_probability, 4),
            }
            for region in regions
        ],
    }


def score_info(
    scores: NDArray[np.float32], models: "Sequence[Model]", one_patch_a_cell: bool
) -> dict[str, Any]:
    """What the summary says of the scores of a map's cells, each patch alone, [row, column], NaN where not scored.

    `one_patch_a_cell`: a cell is a patch, and no mean of several that overlap. What the card says of its validation
    patches stands beside, where the scores can be compared with them: of one model, and of single patches.
    """
    threshold = sum(model.card.threshold for model in models) / len(models)
    scored = scores[np.isfinite(scores)].astype(np.float64)
    wrong = np.where(scored >= threshold, 1 - scored, scored)
    reliability = models[0].card.metrics.get("reliability") or []
    why_not = ""
    if len(models) > 1:
        why_not = "the map is a mean of models, and no card knows how such means spread"
    elif not one_patch_a_cell:
        why_not = "patches overlap: a cell is a mean of several, and the card's scores are of single patches"
    elif not reliability:
        why_not = "the model's card does not say how its validation patches scored"
    return {
        "threshold": threshold,
        "counts": count_scores(scored),
        "positive": int((scored >= threshold).sum()),
        "expected_wrong": float(wrong.mean()) if wrong.size else None,
        "model_given": [model.given for model in models],
        "validation": None if why_not else _validation_info(models[0].card, reliability),
        "not_compared": why_not,
    }


def _validation_info(card: "ModelCard", reliability: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The card's validation patches by their scores, and their measured share of IDC, of positive and of wrong ones."""
    measured = card.metrics.get("val") or {}
    found: dict[str, Any] = {"reliability": reliability, "positive": None, "wrong": None}
    try:
        idc, recall, precision = (float(measured[name]) for name in ("idc_share", "recall", "precision"))
    except (KeyError, TypeError, ValueError):
        return found
    if precision > 0:
        positive = idc * recall / precision
        found |= {"positive": positive, "wrong": idc * (1 - recall) + positive * (1 - precision)}
    return found


def field_info(choice: FieldChoice, field_mm: float) -> dict[str, Any]:
    """Fields for grading and hot spots, how they were chosen, and which counts of mitoses in all fields score 2 and 3.

    Of one field alone there is no score.
    """
    fields = len(choice.fields)
    thresholds = mitotic_thresholds(field_mm, fields) if fields >= LEAST_FIELDS else None
    return {
        "diameter_mm": field_mm,
        "rule": choice.rule,
        "fields": [
            {
                "name": field.name,
                "region": field.region_name,
                "usable_mm2": round(field.usable_mm2, 4),
                "nuclei_per_mm2": None if field.nuclei_per_mm2 is None else round(field.nuclei_per_mm2),
                "front_share": round(field.front_share, 3),
                "mean_probability": round(field.mean_probability, 4),
            }
            for field in choice.fields
        ],
        "hot_spots": [
            {
                "name": spot.name,
                "wanted_mm2": spot.wanted_mm2,
                "usable_mm2": round(spot.usable_mm2, 4),
                "idc_mm2": round(spot.idc_mm2, 4),
            }
            for spot in choice.hot_spots
        ],
        "mitoses": {
            "fields": fields,
            "area_mm2": round(area_of_fields(field_mm, fields), 4),
            "score2_from": thresholds.score2_from if thresholds else None,
            "score3_from": thresholds.score3_from if thresholds else None,
            "published": bool(thresholds and thresholds.is_published),
            "source": SOURCE,
        },
    }


def summarise(
    slide: Slide,
    overview: Overview,
    recipes: tuple[dict[str, Any], dict[str, Any]],
    counts: dict[str, Any],
    watch: Stopwatch,
    warnings: list[str],
) -> dict[str, Any]:
    """What summary.json says of any run; `recipes` are the map's and the report's."""
    grid = overview.plan.grid
    return {
        "slide": str(slide.path),
        "size0": [slide.size0.width, slide.size0.height],
        "mpp": list(slide.mpp),
        "mpp_overridden": slide.mpp_overridden,
        "patch_px": grid.patch_px,
        "stride_px": grid.stride_px,
        "patch_mpp": patch_mpp(slide, overview.plan),
        "level_read": grid.reader(slide).level,
        "tissue_mm2": round(overview.tissue_mm2(slide.mpp), 4),
        "tissue_reason": overview.tissue.reason,
        "rejected_mm2": {name: round(mm2, 4) for name, mm2 in overview.artefacts.areas_mm2.items()},
        "passed_over_mm2": {name: round(mm2, 4) for name, mm2 in overview.passed_over_mm2(slide.mpp).items()},
        "counts": counts,
        "warnings": warnings,
        "seconds": watch.seconds | {"total": watch.total},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"wsi_pipeline": VERSION} | {name: metadata.version(name) for name in VERSIONED},
        "map_key": key_of(recipes[0]),
        "report_key": key_of(recipes[1]),
        "map_recipe": recipes[0],
        "report_recipe": recipes[1],
    }


def inside_info(inside: Inside | None, mpp0: tuple[float, float]) -> dict[str, Any] | None:
    """What the summary says of the outlines within which alone a slide was mapped; None: the whole slide was."""
    if inside is None:
        return None
    mm2 = inside.area.area * mpp0[0] * mpp0[1] / 1e6
    return {"file": inside.path.name, "outlines": inside.outlines, "mm2": round(mm2, 4)}


def patch_mpp(slide: Slide, plan: Plan) -> float:
    """um per pixel of the slide's patches."""
    return round(plan.grid.plane.downsample_x * slide.mpp[0], 6)
