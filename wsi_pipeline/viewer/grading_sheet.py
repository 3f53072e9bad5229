"""The grading sheet of a slide: what a person entered for each field, and what follows from it. Nothing is guessed."""

import csv
import io
import math
from typing import Any

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.text import for_spreadsheet
from wsi_pipeline.results.grading import (
    LEAST_FIELDS,
    SOURCE,
    mitotic_score,
    nottingham_grade,
    thresholds_of_area,
)
from wsi_pipeline.viewer.append_log import AppendLog, LogContent
from wsi_pipeline.viewer.review import clean_name

LOG_NAME = "grading.jsonl"
SCORES = ("tubules", "nuclei")
MOST_FIELDS, MOST_MITOSES = 40, 2_000
# No slide is so wide; a number beyond it, or none, is no place on one.
MOST_PX = 1e9


class GradingSheet:
    """The sheet of one slide: scores of tubules and nuclei for the slide, mitoses as points in each field."""

    def __init__(self, folder: OutPath, areas_mm2: dict[str, float]):
        """`areas_mm2` is the usable area of each field, by its name."""
        self._log, self._areas = AppendLog(folder / LOG_NAME, _is_sheet), areas_mm2

    def state(self) -> dict[str, Any]:
        """As the page takes it."""
        return self._answer(self._log.read())

    def put(self, body: dict[str, Any]) -> dict[str, Any]:
        """The state with what was entered. Raises UsageError, RevisionConflict."""
        revision = body.get("revision")
        if not isinstance(revision, int):
            raise UsageError("'revision': expected the whole number of the state that was changed")
        fields = body.get("fields")
        if not isinstance(fields, list) or len(fields) > MOST_FIELDS:
            raise UsageError(f"'fields': expected a list of at most {MOST_FIELDS} fields")
        reviewer = clean_name(body.get("reviewer"), "reviewer")
        values = {
            "fields": [self._checked(entered) for entered in fields],
            **{name: _score(body.get(name), name) for name in SCORES},
        }
        return self._answer(self._log.add(revision, reviewer, values))

    def csv(self) -> str:
        """A row a field, then the slide's scores."""
        state = self.state()
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("field", "area_mm2", "tubules", "nuclei", "mitoses", "reviewer"))
        for entered in state["fields"]:
            writer.writerow(
                (
                    for_spreadsheet(entered["id"]),
                    f"{self._areas.get(entered['id'], math.nan):.4f}",
                    entered["tubules"] or "",
                    entered["nuclei"] or "",
                    len(entered["mitoses"]),
                    for_spreadsheet(state["reviewer"] or ""),
                )
            )
        found = state["computed"]
        for name in (
            "field_area_mm2",
            "mitotic_count",
            "mitotic_score",
            "tubules",
            "nuclei",
            "total",
            "grade",
        ):
            writer.writerow((name, "" if found[name] is None else found[name]))
        if state["passed_over"]:
            writer.writerow(("lines_passed_over", state["passed_over"]["lines"]))
        return text.getvalue()

    def _answer(self, content: LogContent) -> dict[str, Any]:
        nothing: dict[str, Any] = {"fields": []}
        newest = next((entry for entry in reversed(content.entries) if _is_sheet(entry)), nothing)
        return {
            "revision": content.revision,
            "reviewer": newest.get("reviewer"),
            "time": newest.get("time"),
            "fields": newest["fields"],
            **{name: newest.get(name) for name in SCORES},
            "areas_mm2": self._areas,
            "passed_over": self._log.about_passed_over(content),
            "computed": computed(newest["fields"], {n: newest.get(n) for n in SCORES}, self._areas),
        }

    def _checked(self, entered: Any) -> dict[str, Any]:
        if not isinstance(entered, dict) or entered.get("id") not in self._areas:
            known = ", ".join(self._areas) or "none"
            raise UsageError(f"'fields': expected entries of this slide's fields ({known})")
        points = entered.get("mitoses") or []
        if not isinstance(points, list) or len(points) > MOST_MITOSES or not all(map(_is_point, points)):
            raise UsageError(f"'mitoses': expected at most {MOST_MITOSES} points [x0, y0]")
        return {
            "id": entered["id"],
            **{name: _score(entered.get(name), name) for name in SCORES},
            "counted": bool(entered.get("counted") or points),
            "mitoses": [[float(x), float(y)] for x, y in points],
        }


def computed(
    fields: list[dict[str, Any]], entered: dict[str, int | None], areas: dict[str, float]
) -> dict[str, Any]:
    """What follows from what was entered, and what is missing for a grade.

    Mitoses count in the fields that somebody counted in, by their usable area; of one field alone no score is made,
    for its count is chance. The score of tubules and of nuclei is that entered for the slide; where none is, the
    highest of its fields (nuclei) or the one that most fields have (tubules) is NOT taken: it is missing.
    """
    counted = [entry for entry in fields if entry["counted"]]
    area = sum(areas.get(entry["id"], 0.0) for entry in counted)
    count = sum(len(entry["mitoses"]) for entry in counted)
    missing = [name for name in SCORES if entered[name] is None]
    score = thresholds = None
    if area > 0 and len(counted) >= LEAST_FIELDS:
        second, third = thresholds_of_area(area)
        thresholds = {"score2_from": second, "score3_from": third, "source": SOURCE}
        score = mitotic_score(count, area)
    else:
        missing.append("mitoses (one field alone gives no score)" if counted else "mitoses")
    total = grade = None
    tubules, nuclei = entered["tubules"], entered["nuclei"]
    if tubules is not None and nuclei is not None and score is not None:
        found = nottingham_grade(tubules, nuclei, score)
        total, grade = found.total, found.grade
    return {
        "fields_counted": len(counted),
        "field_area_mm2": round(area, 4),
        "mitotic_count": count if counted else None,
        "mitotic_score": score,
        "tubules": tubules,
        "nuclei": nuclei,
        "total": total,
        "grade": grade,
        "missing": missing,
        "thresholds": thresholds,
    }


def _score(value: Any, name: str) -> int | None:
    if not _is_score(value):
        raise UsageError(f"'{name}': found {str(value)[:20]!r}, expected 1, 2, 3 or nothing")
    score: int | None = value
    return score


def _is_score(value: Any) -> bool:
    return value is None or (type(value) is int and value in (1, 2, 3))


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(type(value) in (int, float) and abs(value) < MOST_PX for value in point)
    )


def _is_sheet(entry: dict[str, Any]) -> bool:
    """Whether it is what `put` writes; a file changed by hand may hold anything."""
    fields = entry.get("fields")
    return (
        isinstance(fields, list)
        and all(isinstance(entered, dict) for entered in fields)
        and all(isinstance(entered.get("id"), str) for entered in fields)
        and all(isinstance(entered.get("counted"), bool) for entered in fields)
        and all(isinstance(entered.get("mitoses"), list) for entered in fields)
        and all(_is_point(point) for entered in fields for point in entered["mitoses"])
        and all(name in entered for entered in fields for name in SCORES)
        and all(_is_score(holder.get(name)) for holder in (entry, *fields) for name in SCORES)
    )
