"""What the report page says of a slide, in words and numbers: its rows, its table of regions, its warnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wsi_pipeline.base.geometry import Size
from wsi_pipeline.base.text import counted, printable
from wsi_pipeline.results.extent import largest_dimension_mm
from wsi_pipeline.results.fields import GradingField
from wsi_pipeline.results.figures.fonts import text_width, wrapped
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.grading import mitoses_words
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.results.summary import Uncertainty

MOST_ROWS = 10
MOST_WARNINGS = 8
# Of one warning, and of what the card says: texts are whole, unless they are no sentences.
MOST_LINES = 12
HEADS = ("Warnings", "What the model was not measured on")
BULLET, NO_BULLET = "•  ", "    "


@dataclass(frozen=True)
class ReportInfo:
    """What the report states of slide and run, beside the map and what was found on it."""

    slide_name: str
    size0: Size
    mpp0: tuple[float, float]
    """um per level-0 pixel, along x and y."""

    mpp_overridden: bool
    """The scale was given by hand."""

    models: Sequence[tuple[str, str]]
    """Name and SHA-256 of each."""

    patch_px: int
    patch_mpp: float
    tissue_mm2: float
    warnings: Sequence[str]
    """A sentence each."""

    version: str
    date: str
    area_error: str = ""
    """How far areas were off on validation slides, in words; empty where the card does not say."""

    inside: str = ""
    """Within which outlines the slide was mapped alone; empty: all of it."""

    limits: str = ""
    """What the model is not for, as its card says."""

    registered: Sequence[str | None] = ()
    """By model, NAME@VERSION of the registry, where it was asked for by that; of none: nothing for any."""


def inside_text(inside: dict[str, Any] | None) -> str:
    """What `inside_info` gave, in words; empty where the whole slide was mapped."""
    if inside is None:
        return ""
    return (
        f"within {counted(inside['outlines'], 'outline')} of {inside['file']} alone, {inside['mm2']:.2f} mm²"
    )


def info_rows(info: ReportInfo, finished: FinishedMap) -> list[tuple[str, str]]:
    """What the page states of the run: a label and its text a row."""
    size, (mpp_x, mpp_y), cells = info.size0, info.mpp0, finished.counts["cells"]
    width_mm, height_mm = size.width * mpp_x / 1000, size.height * mpp_y / 1000
    source = "given by hand, not the file's" if info.mpp_overridden else "as the file says"
    patch_um = info.patch_px * info.patch_mpp
    models = [f"{name} ({sha256[:12]})" for name, sha256 in info.models]
    labels = ["Model"] if len(models) == 1 else [f"Model {number}" for number in range(1, len(models) + 1)]
    rows = [
        (
            "Slide",
            f"{size.width:,} x {size.height:,} px, {width_mm:.2f} x {height_mm:.2f} mm",
        ),
        ("Scale", f"{mpp_x:.4g} x {mpp_y:.4g} µm per pixel, {source}"),
        *zip(labels, models, strict=True),
        *([("Registry", _registry_text(info.registered))] if any(info.registered) else []),
        ("Map", finished.kind),
        ("Patches", f"{info.patch_px} px at {info.patch_mpp:g} µm per pixel: {patch_um:g} µm a side"),
        ("Scored", f"{cells['scored']:,} {_cells_text(info, finished)}"),
        ("Not scored", f"{cells['rejected']:,} rejected, {cells['unreadable']:,} unreadable"),
        ("Tissue", f"{info.tissue_mm2:.2f} mm²"),
        ("IDC", _idc_text(finished, info)),
    ]
    if info.inside:
        rows.insert(-2, ("Mapped", info.inside))
    if finished.regions:
        rows.append(("Extent", _extent_text(finished.regions, info.mpp0)))
    if info.area_error:
        rows.append(("Areas", info.area_error))
    if finished.fields:
        field_mm = round(2 * finished.fields[0].radius_x0 * mpp_x / 1000, 6)
        rows.append(("Mitoses", mitoses_words(field_mm, len(finished.fields))))
    if finished.uncertainty:
        rows.append(("Uncertainty", _uncertainty_text(finished.uncertainty)))
    return rows


def _registry_text(registered: Sequence[str | None]) -> str:
    """Versions in the order of the models; of those not of the registry a dash."""
    return ", ".join(version or "–" for version in registered)


def _cells_text(info: ReportInfo, finished: FinishedMap) -> str:
    """What a cell of the map is: a patch, or, where patches overlap, smaller."""
    cell_um = finished.plane.downsample_x * info.mpp0[0]
    whole = abs(cell_um - info.patch_px * info.patch_mpp) < 1e-6 * cell_um
    return "patches" if whole else f"cells of {cell_um:g} µm"


def _idc_text(finished: FinishedMap, info: ReportInfo) -> str:
    share = f", {finished.idc_mm2 / info.tissue_mm2:.0%} of the tissue" if info.tissue_mm2 else ""
    return f"{finished.idc_mm2:.2f} mm² of tissue{share}"


def _extent_text(regions: Sequence[IdcRegion], mpp0: tuple[float, float]) -> str:
    extent = largest_dimension_mm([region.polygon for region in regions], mpp0)
    if len(regions) == 1:
        return f"one focus, {extent:.1f} mm in its largest dimension"
    largest = max(region.largest_mm for region in regions)
    return f"{len(regions)} foci, {extent:.1f} mm over all, the largest {largest:.1f} mm"


def _uncertainty_text(uncertainty: Uncertainty) -> str:
    means = [
        f"{mean:.3f} {where}"
        for mean, where in ((uncertainty.mean, "in the mean"), (uncertainty.in_regions, "in regions"))
        if mean is not None
    ]
    return f"{', '.join(means) or 'nothing scored'}: standard deviation between {uncertainty.models} models"


def table_rows(regions: Sequence[IdcRegion], fields: Sequence[GradingField]) -> list[tuple[str, ...]]:
    """The table of regions, its head first; the smallest together in one row."""
    rows: list[tuple[str, ...]] = [
        ("Region", "Tissue, mm²", "Largest, mm", "Mean prob.", "Highest", "Fields")
    ]
    for region in regions[:MOST_ROWS]:
        numbers = [str(n) for n, field in enumerate(fields, start=1) if field.region_name == region.name]
        rows.append(
            (
                region.name,
                f"{region.area_mm2:.2f}",
                f"{region.largest_mm:.1f}",
                f"{region.mean_probability:.2f}",
                f"{region.max_probability:.2f}",
                ", ".join(numbers) or "–",
            )
        )
    rest = regions[MOST_ROWS:]
    if rest:
        rows.append((f"{len(rest)} smaller", f"{sum(r.area_mm2 for r in rest):.2f}", "", "", "", ""))
    if not regions:
        rows = [("No region of IDC was found.",)]
    return rows


def limit_lines(limits: str, width_in: float, size_pt: float) -> list[str]:
    """What the model was not measured on, whole, under its head, as wide as the page; nothing where no card says it."""
    if not limits:
        return []
    return [HEADS[1], *_lines(limits, width_in, size_pt)]


def warning_lines(warnings: Sequence[str], width_in: float, size_pt: float) -> list[str]:
    """The warnings under their head, those that find no room counted; nothing of none."""
    if not warnings:
        return []
    lines = [HEADS[0]]
    for warning in warnings[:MOST_WARNINGS]:
        own = _lines(warning, width_in - text_width(BULLET, 100) * size_pt / 7200, size_pt)
        lines += [(BULLET if i == 0 else NO_BULLET) + line for i, line in enumerate(own)]
    if len(warnings) > MOST_WARNINGS:
        lines.append(f"{NO_BULLET}and {len(warnings) - MOST_WARNINGS} more in summary.json")
    return lines


def _lines(text: str, width_in: float, size_pt: float) -> list[str]:
    """The text in lines, whole; one that would fill the page is cut, and says where all of it stands."""
    lines = wrapped(printable(text), width_in * 72, size_pt)
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "… (all of it in summary.json)"]
