"""All figures of an OUT: by day and model, beside the card, and as lists."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from statistics import median
from typing import Any

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.monitoring.against_card import (
    Comparison,
    compare,
    distance_of,
    pooled_corrected,
    pooled_positive,
)
from wsi_pipeline.monitoring.look_first import LookFirst, look_first
from wsi_pipeline.monitoring.retraining import Retraining, plan_retraining
from wsi_pipeline.monitoring.runs import FailedSlide, MappedSlide, ModelRef, Runs, read_runs

NO_MODEL = ModelRef("", "no map", (), 0, 0.0, False)


@dataclass(frozen=True)
class Day:
    """A day (UTC) of one model; failed slides, which no model mapped, are a row of their own."""

    day: date
    model: ModelRef
    slides: int
    score_distance: float | None
    """Of the day's scores from those of the card's validation patches, 0 to 1."""

    spreads: float | None
    """Median over its slides; so are the three below."""

    hue_fold: float | None
    distance: float | None
    tissue_share: float | None
    idc_share: float | None
    """Area of IDC of that of tissue, all slides together."""

    positive_share: float | None
    """Of the cells scored, each patch alone, all slides together."""

    corrections: int
    """Outlines by which reviewers corrected maps of the model that day, as `SlideReview` counts them."""

    corrected_share: float | None
    """Of the IDC area of the day's slides that reviewers looked at, since then."""

    failed: int


@dataclass(frozen=True)
class ModelFigures:
    """All of one model."""

    model: ModelRef
    slides: tuple[MappedSlide, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Monitored:
    """What `monitor` found in an OUT."""

    out: OutPath
    since: date | None
    made: datetime
    runs: Runs
    models: tuple[ModelFigures, ...]
    """The one of the newest map last."""

    days: tuple[Day, ...]
    first: tuple[LookFirst, ...]
    retraining: Retraining

    @property
    def beyond(self) -> list[tuple[ModelRef, Comparison]]:
        """What lies beyond its limit."""
        return [
            (each.model, comparison)
            for each in self.models
            for comparison in each.comparisons
            if comparison.state == "beyond"
        ]


def monitor(out: OutPath, since: date | None) -> Monitored:
    """Read OUT; nothing is written. Raises UsageError without OUT, ResultError without a map since that day."""
    runs = read_runs(out, since)
    grouped = by_model(runs.slides)
    return Monitored(
        out,
        since,
        datetime.now(UTC),
        runs,
        tuple(ModelFigures(own[-1].model, tuple(own), tuple(compare(own))) for own in grouped),
        tuple(_days(grouped, runs.failed, since)),
        tuple(look_first(runs.slides)),
        plan_retraining(out, runs.slides),
    )


def by_model(slides: Sequence[MappedSlide]) -> list[list[MappedSlide]]:
    """The slides of each model, in the order in which these were last used."""
    grouped: dict[str, list[MappedSlide]] = {}
    for slide in slides:
        own = grouped.pop(slide.model.key, [])
        grouped[slide.model.key] = [*own, slide]
    return list(grouped.values())


def _days(
    grouped: Sequence[Sequence[MappedSlide]], failed: Sequence[FailedSlide], since: date | None
) -> list[Day]:
    days = []
    for own in grouped:
        corrections: Counter[date] = Counter()
        for slide in own:
            corrections += slide.review.corrections if slide.review else Counter()
        for day in {slide.day for slide in own} | {day for day in corrections if not since or day >= since}:
            of_day = [slide for slide in own if slide.day == day]
            days.append(_day(day, own[-1].model, of_day, corrections[day]))
    days += [_day(day, NO_MODEL, [], 0, count) for day, count in Counter(each.day for each in failed).items()]
    return sorted(days, key=lambda day: (day.day, day.model.words))


def _day(day: date, model: ModelRef, slides: Sequence[MappedSlide], corrections: int, failed: int = 0) -> Day:
    tissue = sum(slide.tissue_mm2 for slide in slides)
    return Day(
        day=day,
        model=model,
        slides=len(slides),
        score_distance=distance_of(slides),
        spreads=_median(slide.spreads for slide in slides),
        hue_fold=_median(slide.hue_fold for slide in slides),
        distance=_median(slide.distance for slide in slides),
        tissue_share=_median(slide.tissue_share for slide in slides),
        idc_share=sum(slide.idc_mm2 for slide in slides) / tissue if tissue else None,
        positive_share=pooled_positive(slides),
        corrections=corrections,
        corrected_share=pooled_corrected(slides),
        failed=failed,
    )


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None
