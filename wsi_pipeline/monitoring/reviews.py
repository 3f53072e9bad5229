"""How far reviewers agree with a map: regions accepted, rejected, redrawn and added, and the areas of each."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import shapely

from wsi_pipeline.base.errors import OutputError
from wsi_pipeline.base.files import OutPath, names, read_whole
from wsi_pipeline.base.text import counted
from wsi_pipeline.results.geojson import regions_from_geojson
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.slides.annotations.files import REVIEW_NAME
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.viewer.append_log import AppendLog
from wsi_pipeline.viewer.review import LOG_NAME, is_change, replayed

REGIONS_NAME = "regions.geojson"
_CLASSES = AnnotationOptions()
IDC_CLASSES = {name.casefold() for name in _CLASSES.idc_classes}
NOT_IDC_CLASSES = {name.casefold() for name in _CLASSES.not_idc_classes}


@dataclass
class SlideReview:
    """What people say of one map; areas in mm2 of the slide."""

    regions: int
    """How many the map has."""

    verdicts: Counter[str] = field(default_factory=Counter)
    """Outlines by verdict: accepted, rejected, redrawn, added, and `other class` (accepted or drawn as no IDC)."""

    agreed_mm2: float = 0.0
    """IDC to both."""

    taken_mm2: float = 0.0
    """IDC to the map alone."""

    added_mm2: float = 0.0
    """IDC to the reviewer alone."""

    corrections: Counter[date] = field(default_factory=Counter)
    """By day (UTC): outlines rejected, redrawn, given another class, or added as IDC that day."""

    reviewers: set[str] = field(default_factory=set)
    earlier: int = 0
    """Outlines that stand in the review and are of another map, of before; they are in none of the figures."""

    idc_outlines: int = 0
    not_idc_outlines: int = 0
    """Outlines, of whatever map, that label patches as IDC and as not IDC."""

    has_labels: bool = False
    """Whether the review.geojson that tile-slides reads is there."""

    @property
    def corrected_share(self) -> float | None:
        """Of the area that either calls IDC among what was reviewed, what only one of them does; None of none."""
        whole = self.agreed_mm2 + self.taken_mm2 + self.added_mm2
        return (self.taken_mm2 + self.added_mm2) / whole if whole else None


def read_review(
    folder: OutPath, map_key: str, mpp0: Sequence[float], problems: list[str]
) -> SlideReview | None:
    """The review of the map in the run folder; None where nobody reviewed it. What cannot be read goes to `problems`.

    mpp0: um per level-0 pixel, x and y.
    """
    there = names(folder)
    if LOG_NAME not in there:
        if REVIEW_NAME in there:
            problems.append(
                f"{folder.name}/{REVIEW_NAME}: without {LOG_NAME}, so that who changed what of which map is not known; "
                "it labels patches, and is in no figure"
            )
        return None
    try:
        content = AppendLog(folder / LOG_NAME, is_change).read(warns=False)
    except (OutputError, OSError) as error:
        problems.append(f"{folder.name}/{LOG_NAME}: cannot be read: {error}")
        return None
    if lines := content.passed_over:
        problems.append(
            f"{folder.name}/{LOG_NAME}: lines that are no whole change: {len(lines)}, the first is line {lines[0]}; "
            "the others stand. Mend them by hand, or enter those changes again"
        )
    regions = _regions(folder, problems)
    review = SlideReview(len(regions), has_labels=REVIEW_NAME in there)
    entries = [_with_map(entry) for entry in content.entries if is_change(entry)]
    _count_changes(review, entries, map_key, f"{folder.name}/{LOG_NAME}", problems)
    scale = float(mpp0[0]) * float(mpp0[1]) / 1e6
    for feature in replayed(entries).values():
        _count_outline(review, feature, regions, map_key, scale)
    if review.earlier:
        problems.append(
            f"{folder.name}/{LOG_NAME}: of an earlier map of this slide: {counted(review.earlier, 'outline')}, which "
            "label patches, and are in no figure of this one"
        )
    if not review.has_labels:
        problems.append(
            f"{folder.name}: {LOG_NAME} without {REVIEW_NAME}, which tile-slides reads; change something in the page, "
            "and it is written again"
        )
    return review


def _regions(folder: OutPath, problems: list[str]) -> list[IdcRegion]:
    try:
        return regions_from_geojson(json.loads(read_whole(folder / REGIONS_NAME)))[0]
    except (ValueError, KeyError, TypeError, OSError, RecursionError, shapely.errors.ShapelyError) as error:
        problems.append(
            f"{folder.name}/{REGIONS_NAME}: cannot be read ({type(error).__name__}: {error}); areas are those of the "
            "review alone. infer-slide again writes it"
        )
        return []


def _with_map(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, its feature knowing of which map it is."""
    if entry["action"] != "put":
        return entry
    properties = entry["feature"]["properties"] | {"map_key": entry.get("map_key")}
    return entry | {"feature": entry["feature"] | {"properties": properties}}


def _count_changes(
    review: SlideReview, entries: Sequence[Mapping[str, Any]], map_key: str, file: str, problems: list[str]
) -> None:
    seen: set[tuple[date, str, str]] = set()
    for entry in entries:
        if entry.get("map_key") != map_key:
            continue
        if entry.get("reviewer"):
            review.reviewers.add(str(entry["reviewer"]))
        if entry["action"] != "put":
            continue
        own = entry["feature"]["properties"]
        try:
            day = datetime.fromisoformat(entry["time"]).astimezone(UTC).date()
        except (KeyError, TypeError, ValueError):
            problems.append(f"{file}: revision {entry['revision']} has no time; it is of no day")
            continue
        change = (day, str(own["id"]), str(own["verdict"]))
        if _corrects(own) and change not in seen:
            seen.add(change)
            review.corrections[day] += 1


def _corrects(own: Mapping[str, Any]) -> bool:
    """Whether an outline of these properties says that the map is wrong."""
    is_idc = str(own["class"]).casefold() in IDC_CLASSES
    added = is_idc and own["verdict"] in ("added", None)
    return added or own["verdict"] in ("rejected", "redrawn") or (own["verdict"] == "accepted" and not is_idc)


def _count_outline(
    review: SlideReview, feature: Mapping[str, Any], regions: Sequence[IdcRegion], map_key: str, scale: float
) -> None:
    own = feature["properties"]
    verdict = str(own["verdict"] or "added")
    name = "not idc" if verdict == "rejected" else str(own["class"]).casefold()
    is_idc = name in IDC_CLASSES
    review.idc_outlines += is_idc
    review.not_idc_outlines += name in NOT_IDC_CLASSES
    if own["map_key"] != map_key:
        review.earlier += 1
        return
    outline = shapely.make_valid(shapely.geometry.shape(feature["geometry"]))
    overlapped = [region for region in regions if shapely.area(region.polygon.intersection(outline))]
    of_map = shapely.union_all([region.polygon for region in overlapped])
    if verdict == "rejected":
        review.verdicts[verdict] += 1
        review.taken_mm2 += outline.area * scale
    elif not is_idc:
        review.verdicts["other class"] += 1
        review.taken_mm2 += outline.intersection(of_map).area * scale
    elif verdict == "accepted":
        review.verdicts[verdict] += 1
        review.agreed_mm2 += outline.area * scale
    else:
        review.verdicts[verdict] += 1
        review.agreed_mm2 += outline.intersection(of_map).area * scale
        review.added_mm2 += outline.difference(of_map).area * scale
        if verdict == "redrawn":
            # At another threshold the page's regions have other outlines, and their names are of others.
            named = [region.polygon for region in overlapped if region.name == own["source_region"]]
            before = named[0] if named else of_map
            review.taken_mm2 += before.difference(outline).area * scale
