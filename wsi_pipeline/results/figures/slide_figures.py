"""The pictures of a finished map: heatmap, overlay, uncertainty, and the report page."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.text import counted
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.results.figures.maps import render_heatmap, render_overlay, render_uncertainty
from wsi_pipeline.results.figures.report import render_report
from wsi_pipeline.results.figures.report_words import ReportInfo, inside_text
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.summary import patch_mpp
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.overview import Overview

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.card import ModelCard
    from wsi_pipeline.models.model import Model


def draw_map(
    folder: OutPath,
    slide: Slide,
    overview: Overview,
    models: "Sequence[Model]",
    finished: FinishedMap,
    warnings: Sequence[str],
    inside: dict[str, Any] | None = None,
) -> None:
    """Write heatmap.png, overlay.png, report.png, and of an ensemble uncertainty.png. Raises OutputError.

    `inside`: what summary.py's `inside_info` gives.
    """
    thumbnail, deviation = overview.thumbnail, finished.deviation
    info = _report_info(slide, overview, models, warnings, inside)

    def draw_maps() -> None:
        render_heatmap(folder / "heatmap.png", finished, slide.size0, slide.mpp)
        if deviation is not None:
            place = folder / "uncertainty.png"
            render_uncertainty(place, thumbnail, deviation, finished, len(models), slide.mpp[0])
        render_overlay(folder / "overlay.png", thumbnail, finished, slide.mpp[0])

    with ThreadPoolExecutor(1) as beside:
        drawn = beside.submit(draw_maps)
        render_report(folder / "report.png", thumbnail, finished, info)
        drawn.result()


def _report_info(
    slide: Slide,
    overview: Overview,
    models: "Sequence[Model]",
    warnings: Sequence[str],
    inside: dict[str, Any] | None,
) -> ReportInfo:
    """What the report page states of slide and run."""
    return ReportInfo(
        slide_name=slide.name,
        size0=slide.size0,
        mpp0=slide.mpp,
        mpp_overridden=slide.mpp_overridden,
        models=[(model.card.name, model.sha256) for model in models],
        registered=[model.registered for model in models],
        patch_px=overview.plan.grid.patch_px,
        patch_mpp=patch_mpp(slide, overview.plan),
        tissue_mm2=overview.tissue_mm2(slide.mpp),
        warnings=warnings,
        version=VERSION,
        date=datetime.now(UTC).date().isoformat(),
        inside=inside_text(inside),
        **model_words(models),
    )


def model_words(models: "Sequence[Model]") -> dict[str, str]:
    """What the models' cards say that readers of any report must know: `area_error` and `limits`, each may be empty."""
    return {
        "area_error": area_error_text(models[0].card) if len(models) == 1 else "",
        "limits": " ".join(dict.fromkeys(model.card.limits for model in models)).strip(),
    }


def area_error_text(card: "ModelCard") -> str:
    """How far areas of IDC were off on the slides that the card was measured on; empty where it does not say."""
    found = (card.context.metrics if card.context else card.metrics).get("areas")
    if not found:
        return ""
    return (
        f"on {counted(found['slides'], 'validation slide')} {found['lowest']:.1f} to {found['highest']:.1f} times "
        f"those outlined (median {found['median']:.1f})"
    )
