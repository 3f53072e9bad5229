"""The pictures of a finished map: heatmap, overlay, uncertainty, and the report page."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import wsi_pipeline
from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.fields import GradingField
from wsi_pipeline.results.figures.maps import render_heatmap, render_overlay, render_uncertainty
from wsi_pipeline.results.figures.report import ReportInfo, render_report
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.results.summary import Uncertainty, patch_mpp
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.overview import Overview

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.model import Model


@dataclass(frozen=True, eq=False)
class FinishedMap:
    """A slide's map, and what was found on it."""

    heatmap: NDArray[np.float32]
    """[row, column], probability of IDC, NaN where not scored."""

    plane: Plane
    """Of its cells."""

    kind: str
    """Which map it is, in words."""

    threshold: float
    regions: list[IdcRegion]
    fields: list[GradingField]
    counts: dict[str, Any]
    deviation: NDArray[np.float32] | None = None
    """Of an ensemble: [row, column], standard deviation between its models, NaN where not scored."""

    uncertainty: Uncertainty | None = None
    """What that comes to."""


def draw_map(
    folder: OutPath,
    slide: Slide,
    overview: Overview,
    models: "Sequence[Model]",
    finished: FinishedMap,
    warnings: Sequence[str],
) -> None:
    """Write heatmap.png, overlay.png, report.png, and of an ensemble uncertainty.png. Raises OutputError."""
    rgb, thumbnail_plane = overview.thumbnail.rgb, overview.thumbnail_plane
    heatmap, plane, regions = finished.heatmap, finished.plane, finished.regions
    render_heatmap(folder / "heatmap.png", heatmap)
    if finished.deviation is not None:
        uncertainty = folder / "uncertainty.png"
        render_uncertainty(uncertainty, rgb, thumbnail_plane, finished.deviation, plane, regions, len(models))
    info = _report_info(
        slide,
        overview,
        models,
        finished.kind,
        finished.threshold,
        finished.counts,
        regions,
        finished.uncertainty,
        warnings,
    )
    overlay, report = folder / "overlay.png", folder / "report.png"
    with ThreadPoolExecutor(1) as beside:
        drawn = beside.submit(
            render_overlay, overlay, rgb, thumbnail_plane, heatmap, plane, regions, finished.kind
        )
        render_report(report, rgb, thumbnail_plane, heatmap, plane, slide.mpp, regions, finished.fields, info)
        drawn.result()


def _report_info(
    slide: Slide,
    overview: Overview,
    models: "Sequence[Model]",
    map_kind: str,
    threshold: float,
    counts: dict[str, Any],
    regions: Sequence[IdcRegion],
    uncertainty: Uncertainty | None,
    warnings: Sequence[str],
) -> ReportInfo:
    """What the report page states beside its pictures; `map_kind` says which map is shown, in words."""
    cells = counts["cells"]
    return ReportInfo(
        slide_name=slide.name,
        size0=slide.size0,
        mpp_overridden=slide.mpp_overridden,
        models=[(model.card.name, model.sha256) for model in models],
        map_kind=map_kind,
        threshold=threshold,
        patch_px=overview.plan.grid.patch_px,
        patch_mpp=patch_mpp(slide, overview.plan),
        scored=cells["scored"],
        rejected=cells["rejected"],
        unreadable=cells["unreadable"],
        tissue_mm2=overview.tissue_mm2(slide.mpp),
        idc_mm2=sum(region.area_mm2 for region in regions),
        uncertainty=uncertainty,
        warnings=warnings,
        version=wsi_pipeline.__version__,
        date=datetime.now(UTC).date().isoformat(),
    )
