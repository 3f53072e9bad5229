"""The pictures of a finished map: heatmap, overlay, uncertainty, and the report page."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.delineate import GradingField, IdcRegion
from wsi_pipeline.files import OutPath
from wsi_pipeline.geometry import Plane
from wsi_pipeline.render import render_heatmap, render_overlay, render_uncertainty
from wsi_pipeline.report import Uncertainty, render_report
from wsi_pipeline.slide import Slide
from wsi_pipeline.summary import report_facts
from wsi_pipeline.survey import Survey

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.model import Model


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
    survey: Survey,
    models: "Sequence[Model]",
    finished: FinishedMap,
    warnings: Sequence[str],
) -> None:
    """Write heatmap.png, overlay.png, report.png, and of an ensemble uncertainty.png. Raises OutputError."""
    rgb, thumbnail_plane = survey.thumbnail.rgb, survey.thumbnail_plane
    heatmap, plane, regions = finished.heatmap, finished.plane, finished.regions
    render_heatmap(folder / "heatmap.png", heatmap)
    if finished.deviation is not None:
        uncertainty = folder / "uncertainty.png"
        render_uncertainty(uncertainty, rgb, thumbnail_plane, finished.deviation, plane, regions, len(models))
    facts = report_facts(
        slide,
        survey,
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
        render_report(
            report, rgb, thumbnail_plane, heatmap, plane, slide.mpp, regions, finished.fields, facts
        )
        drawn.result()
