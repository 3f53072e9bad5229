"""What `monitor` writes into OUT: its page, its tables, the same as JSON, and what leads to a new model."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wsi_pipeline.base.files import OutPath, write_bytes, write_json
from wsi_pipeline.base.text import for_spreadsheet, printable_values, without_surrogates
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.monitoring.against_card import distance_of
from wsi_pipeline.monitoring.figures import Day, Monitored
from wsi_pipeline.monitoring.look_first import LookFirst
from wsi_pipeline.monitoring.page import monitor_page
from wsi_pipeline.monitoring.retraining import write_retraining
from wsi_pipeline.monitoring.runs import MappedSlide
from wsi_pipeline.results.figures.html import to_html

PAGE_NAME, JSON_NAME = "monitor.html", "monitor.json"
SLIDES_NAME, DAYS_NAME = "monitor_slides.csv", "monitor_days.csv"


def write_monitor(monitored: Monitored) -> list[OutPath]:
    """Write page, tables and what leads to a new model into OUT, each whole; gives what was written.

    Raises OutputError.
    """
    out = monitored.out
    written = write_retraining(out, monitored.retraining)
    _write_csv(out / DAYS_NAME, [_day_row(day) for day in monitored.days])
    first = {each.slide.name: each for each in monitored.first}
    _write_csv(
        out / SLIDES_NAME, [_slide_row(slide, first.get(slide.name)) for slide in monitored.runs.slides]
    )
    write_json(out / JSON_NAME, printable_values(as_json(monitored)))
    write_bytes(out / PAGE_NAME, without_surrogates(to_html(monitor_page(monitored))).encode())
    return [out / PAGE_NAME, out / SLIDES_NAME, out / DAYS_NAME, out / JSON_NAME, *written]


def as_json(monitored: Monitored) -> dict[str, Any]:
    """All figures as plain values."""
    first = {each.slide.name: each for each in monitored.first}
    return {
        "out": str(monitored.out),
        "since": monitored.since and monitored.since.isoformat(),
        "made": monitored.made.isoformat(timespec="seconds"),
        "version": VERSION,
        "older_maps": monitored.runs.before,
        "models": [
            {
                "key": each.model.key,
                "model": each.model.words,
                "slides": len(each.slides),
                "against_card": [asdict(comparison) for comparison in each.comparisons],
            }
            for each in monitored.models
        ],
        "days": [_day_row(day) for day in monitored.days],
        "slides": [_slide_row(slide, first.get(slide.name)) for slide in monitored.runs.slides],
        "look_first": [each.slide.name for each in monitored.first],
        "failed": [asdict(each) | {"day": each.day.isoformat()} for each in monitored.runs.failed],
        "problems": monitored.runs.problems,
        "retraining": {
            "slides": [slide.name for slide in monitored.retraining.slides],
            "lines": list(monitored.retraining.lines),
            "notes": list(monitored.retraining.notes),
        },
    }


def _day_row(day: Day) -> dict[str, Any]:
    return {**vars(day), "day": day.day.isoformat(), "model": day.model.words, "model_key": day.model.key}


def _slide_row(slide: MappedSlide, first: LookFirst | None) -> dict[str, Any]:
    review, known = slide.review, ("accepted", "rejected", "redrawn", "added", "other class")
    return {
        "slide": slide.name,
        "path": slide.path,
        "patient": slide.patient,
        "finished": slide.finished.isoformat(),
        "model": slide.model.words,
        "model_key": slide.model.key,
        "map_key": slide.map_key,
        "times_limit": first.times if first else None,
        "reasons": "; ".join(first.reasons) if first else "",
        "tissue_mm2": slide.tissue_mm2,
        "tissue_share": slide.tissue_share,
        "idc_mm2": slide.idc_mm2,
        "idc_share": slide.idc_share,
        "scored": slide.scored,
        "positive_share": slide.positive_share,
        "score_distance": distance_of([slide]),
        "not_compared": slide.not_compared,
        "expected_wrong": slide.expected_wrong,
        "uncertainty": slide.uncertainty,
        "spreads": slide.spreads,
        "hue_fold": slide.hue_fold,
        "distance": slide.distance,
        "warnings": len(slide.warnings),
        "regions": review.regions if review else None,
        **{name.replace(" ", "_"): review.verdicts[name] if review else None for name in known},
        "agreed_mm2": review.agreed_mm2 if review else None,
        "taken_mm2": review.taken_mm2 if review else None,
        "added_mm2": review.added_mm2 if review else None,
        "corrected_share": review.corrected_share if review else None,
        "reviewers": ", ".join(sorted(review.reviewers)) if review else "",
    }


def _write_csv(path: OutPath, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({name: for_spreadsheet(value) for name, value in row.items()} for row in rows)
    write_bytes(path, without_surrogates(text.getvalue()).encode())
