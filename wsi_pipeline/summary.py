"""What a run says of itself in numbers: its recipe, counts, summary.json, and the report's facts."""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import wsi_pipeline
from wsi_pipeline.delineate import IdcRegion, Mask
from wsi_pipeline.grid import Plan
from wsi_pipeline.report import ReportFacts, Uncertainty
from wsi_pipeline.slide import Slide
from wsi_pipeline.stitch import Status
from wsi_pipeline.survey import Survey

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.model import Model

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


def recipe_key(recipe: dict[str, Any]) -> str:
    """A short hash of everything that decides a result: slide, scale, options, model."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def store_attributes(recipe: dict[str, Any]) -> dict[str, Any]:
    """What the store says of its making: the recipe in full and its key."""
    return {"version": wsi_pipeline.__version__, **recipe, "recipe": recipe_key(recipe)}


def slide_facts(slide: Slide) -> dict[str, Any]:
    """What a recipe must know of a slide: which it is, and at which scale it is taken."""
    return {
        "name": slide.name,
        "fingerprint": slide.fingerprint(),
        "size0": [slide.size0.width, slide.size0.height],
        "mpp": list(slide.mpp),
        "mpp_overridden": slide.mpp_overridden,
    }


def model_facts(models: "Sequence[Model]") -> dict[str, Any]:
    """What a recipe must know of what maps a slide: `model`, or of an ensemble its `models` in their order."""
    named = [{"name": model.card.name, "sha256": model.sha256} for model in models]
    return {"model": named[0]} if len(named) == 1 else {"models": named}


def mean_uncertainty(models: int, deviation: NDArray[np.float32], in_regions: Mask) -> Uncertainty:
    """How far so many `models` are apart: means of `deviation`, [row, column], NaN where not scored.

    `in_regions` marks the cells of regions, of the same shape.
    """
    scored = np.isfinite(deviation)

    def mean(cells: Mask) -> float | None:
        return float(deviation[cells].mean(dtype=np.float64)) if cells.any() else None

    return Uncertainty(models, mean(scored), mean(scored & in_regions))


def file_sha256(path: Path) -> str:
    """Of the whole file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count(
    plan: Plan, status: NDArray[np.uint8] | None, labels: NDArray[np.int8] | None = None
) -> dict[str, Any]:
    """Patches by the plan; cells of the map by their `status` and patches by their `labels`, if given."""
    counts: dict[str, Any] = {
        "positions": plan.kept.size,
        "patches": int(plan.scored.sum()),
        "rejected": int(plan.rejected.sum()),
    }
    if status is not None:
        cells = Counter(status.ravel().tolist())
        counts["cells"] = {value.name.lower(): cells[value] for value in Status}
    if labels is not None:
        counts["labels"] = {"idc": int((labels == 1).sum()), "not_idc": int((labels == 0).sum())}
    return counts


def region_facts(regions: Sequence[IdcRegion]) -> dict[str, Any]:
    """Area of IDC in mm2, in all and by region."""
    return {
        "idc_mm2": round(sum(region.area_mm2 for region in regions), 4),
        "regions": [
            {
                "name": region.name,
                "area_mm2": round(region.area_mm2, 4),
                "mean_probability": round(region.mean_probability, 4),
                "max_probability": round(region.max_probability, 4),
            }
            for region in regions
        ],
    }


def summarise(
    slide: Slide,
    survey: Survey,
    recipe: dict[str, Any],
    counts: dict[str, Any],
    watch: Stopwatch,
    warnings: list[str],
) -> dict[str, Any]:
    """What summary.json says of any run."""
    grid = survey.plan.grid
    return {
        "slide": str(slide.path),
        "size0": [slide.size0.width, slide.size0.height],
        "mpp": list(slide.mpp),
        "mpp_overridden": slide.mpp_overridden,
        "patch_px": grid.patch_px,
        "stride_px": grid.stride_px,
        "patch_mpp": _grid_mpp(slide, survey.plan),
        "level_read": slide.level_for(grid.plane),
        "tissue_mm2": round(survey.tissue_mm2(slide.mpp), 4),
        "tissue_reason": survey.tissue.reason,
        "rejected_mm2": {name: round(mm2, 4) for name, mm2 in survey.quality.areas_mm2.items()},
        "counts": counts,
        "warnings": warnings,
        "seconds": watch.seconds | {"total": watch.total},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"wsi_pipeline": wsi_pipeline.__version__}
        | {name: metadata.version(name) for name in VERSIONED},
        "recipe_key": recipe_key(recipe),
        "recipe": recipe,
    }


def report_facts(
    slide: Slide,
    survey: Survey,
    models: "Sequence[Model]",
    map_kind: str,
    threshold: float,
    counts: dict[str, Any],
    regions: Sequence[IdcRegion],
    uncertainty: Uncertainty | None,
    warnings: Sequence[str],
) -> ReportFacts:
    """What the report page states beside its pictures; `map_kind` says which map is shown, in words."""
    cells = counts["cells"]
    return ReportFacts(
        slide_name=slide.name,
        size0=slide.size0,
        mpp_overridden=slide.mpp_overridden,
        models=[(model.card.name, model.sha256) for model in models],
        map_kind=map_kind,
        threshold=threshold,
        patch_px=survey.plan.grid.patch_px,
        patch_mpp=_grid_mpp(slide, survey.plan),
        scored=cells["scored"],
        rejected=cells["rejected"],
        unreadable=cells["unreadable"],
        tissue_mm2=survey.tissue_mm2(slide.mpp),
        idc_mm2=sum(region.area_mm2 for region in regions),
        uncertainty=uncertainty,
        warnings=warnings,
        version=wsi_pipeline.__version__,
        date=datetime.now(UTC).date().isoformat(),
    )


def _grid_mpp(slide: Slide, plan: Plan) -> float:
    return round(plan.grid.plane.downsample_x * slide.mpp[0], 6)
