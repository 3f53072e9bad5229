"""What the run folders and the event log of an OUT say: maps with their figures, failures, and what cannot be read."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from wsi_pipeline.base.errors import ResultError, UsageError
from wsi_pipeline.base.files import OutPath, folders, names, read_whole, reading
from wsi_pipeline.base.text import counted, from_spreadsheet, printable_values
from wsi_pipeline.jobs.events import EVENTS
from wsi_pipeline.models.names import PACKAGE_OF
from wsi_pipeline.models.score_distance import SCORE_BINS, Reliability
from wsi_pipeline.monitoring.reviews import SlideReview, read_review
from wsi_pipeline.pipeline.manifest import MANIFEST_NAME, SLIDE_EVENT
from wsi_pipeline.results.run_folder import MARKER, SUMMARY
from wsi_pipeline.results.store import ROOT_FILE, STORE_NAME

UNFINISHED = "a run is at work on it, or was stopped, and the same command goes on with it"


@dataclass(frozen=True)
class ModelRef:
    """The model, or the models of an ensemble, that made a map."""

    key: str
    """SHA-256 of weights and card; of an ensemble all of them, joined by +. Only maps of one key are put together."""

    words: str
    """Its name, or NAME@VERSION, and the beginning of its hash."""

    given: tuple[str, ...]
    """What `--model` named; empty where the summary does not say."""

    patch_px: int
    mpp: float
    hears_slide: bool
    """Whether its network takes what the whole slide looks like beside each patch."""

    is_package: bool = False
    """Whether it is a package of other people's, which cannot be trained."""


@dataclass(frozen=True)
class Validation:
    """What the card says of its validation patches, each alone: their scores, the shares of positive and wrong ones."""

    reliability: Reliability
    positive: float | None
    wrong: float | None


@dataclass(frozen=True)
class MappedSlide:
    """A finished map, by its summary.json; None for what that does not say. Areas in mm2, shares 0 to 1."""

    name: str
    path: str
    patient: str
    finished: datetime
    map_key: str
    model: ModelRef
    mpp_given: float | None
    """um per level-0 pixel where the user gave it, and not the file."""

    tissue_mm2: float
    tissue_share: float
    """Of the slide's area."""

    idc_mm2: float
    idc_share: float | None
    """Of the tissue."""

    scored: int
    counts: tuple[int, ...] | None
    """Cells by score, each patch alone, in 15 bins of equal width."""

    positive: int | None
    expected_wrong: float | None
    validation: Validation | None
    not_compared: str
    spreads: float | None
    hue_fold: float | None
    swapped: bool
    distance: float | None
    """Of the slide from the training slides, as the network hears them; above 1 is beyond the usual ones."""

    uncertainty: float | None
    """Of an ensemble: the mean standard deviation between its models."""

    warnings: tuple[str, ...]
    review: SlideReview | None = None

    @property
    def day(self) -> date:
        """In UTC."""
        return self.finished.date()

    @property
    def positive_share(self) -> float | None:
        """Of the cells scored, each patch alone."""
        return self.positive / self.scored if self.positive is not None and self.scored else None


@dataclass(frozen=True)
class FailedSlide:
    """A slide that failed on a day, by the events, with the newest reason; whether it was mapped since."""

    name: str
    day: date
    reason: str
    mapped_since: bool


@dataclass
class Runs:
    """What an OUT holds since a day."""

    slides: list[MappedSlide] = field(default_factory=list)
    failed: list[FailedSlide] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What cannot be read or is not finished, a line each."""

    before: int = 0
    """Maps that are older than the day."""

    tiled: int = 0
    """Run folders of `tile-slides`, which hold no map."""


def parse_since(text: str, today: date) -> date:
    """The day of a `--since`. Raises UsageError where it is none, or in the future."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--since {text}: expected a day as 2026-01-31") from None
    if day > today:
        raise UsageError(
            f"--since {text}: lies in the future (today is {today}, in UTC); give an earlier day"
        )
    return day


def read_runs(out: OutPath, since: date | None) -> Runs:
    """All that lies in OUT, of `since` (UTC) or later. Raises UsageError without OUT, ResultError without a map."""
    with reading(out):
        is_there = out.exists()
    if not is_there:
        raise UsageError(f"{out}: no such folder; expected one that infer-slide wrote, its --out")
    runs = Runs()
    patients, events = _events_of(out, runs.problems)
    for name in sorted(folders(out)):
        _read_folder(out / name, patients.get(name, ""), since, runs)
    if not runs.slides:
        found = ", ".join([*_counted(runs), *runs.problems[:3]]) or "no run folder"
        raise ResultError(
            f"{out}: found {found}; expected maps of infer-slide{f' since {since}' if since else ''}"
        )
    runs.slides.sort(key=lambda slide: (slide.finished, slide.name))
    newest = {slide.name: slide.finished for slide in runs.slides}
    runs.failed = list(_failures(events, newest, since))
    return runs


def _counted(runs: Runs) -> list[str]:
    older = [counted(runs.before, "older map")] if runs.before else []
    return older + ([f"{counted(runs.tiled, 'folder')} of tile-slides"] if runs.tiled else [])


def _read_folder(folder: OutPath, patient: str, since: date | None, runs: Runs) -> None:
    there = names(folder)
    if SUMMARY not in there:
        if (folder / STORE_NAME / ROOT_FILE).exists():
            runs.problems.append(f"{folder.name}: not finished: {UNFINISHED}")
        elif MARKER in there:
            runs.problems.append(f"{folder.name}: begun, and no map yet: {UNFINISHED}")
        else:
            runs.problems.append(f"{folder.name}: no run folder, passed over")
        return
    try:
        summary = json.loads(read_whole(folder / SUMMARY))
        recipe = summary["map_recipe"]
        if recipe["command"] == "tile-slides":
            runs.tiled += 1
            return
        slide = _mapped(folder.name, patient, summary)
    except FileNotFoundError:  # a run took it back since the folder was listed
        runs.problems.append(f"{folder.name}: not finished: {UNFINISHED}")
        return
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError) as error:
        runs.problems.append(
            f"{folder.name}/{SUMMARY}: cannot be read ({type(error).__name__}: {error}); remove it and run "
            "infer-slide again, which draws the report of the map that is there"
        )
        return
    if since and slide.day < since:
        runs.before += 1
        return
    if slide.counts is None:
        runs.problems.append(
            f"{folder.name}/{SUMMARY}: of an earlier version, which kept no scores; infer-slide again adds them, "
            "without classifying"
        )
    review = read_review(folder, slide.map_key, summary["mpp"], runs.problems)
    runs.slides.append(MappedSlide(**{**vars(slide), "review": review}))


def _mapped(name: str, patient: str, summary: dict[str, Any]) -> MappedSlide:
    """The figures of a summary; raises KeyError, TypeError or ValueError for what infer-slide did not write."""
    summary = printable_values(summary)
    scores = summary.get("scores") or {}
    stain = summary.get("stain") or {}
    width, height = (float(side) * mpp for side, mpp in zip(summary["size0"], summary["mpp"], strict=True))
    distances = [_number(each) for each in (summary.get("slide_condition") or {}).get("distance", [])]
    finished = datetime.fromisoformat(summary["finished"])
    if finished.tzinfo is None:
        raise ValueError(f"found the time {finished} without its zone, expected UTC")
    return MappedSlide(
        name=name,
        path=str(summary["slide"]),
        patient=patient,
        finished=finished.astimezone(UTC),
        map_key=str(summary["map_key"]),
        model=_model_of(summary),
        mpp_given=float(summary["mpp"][0]) if summary["mpp_overridden"] else None,
        tissue_mm2=float(summary["tissue_mm2"]),
        tissue_share=float(summary["tissue_mm2"]) / (width * height / 1e6),
        idc_mm2=float(summary["idc_mm2"]),
        idc_share=_number(summary.get("idc_share")),
        scored=int(summary["counts"]["cells"]["scored"]),
        counts=_counts(scores["counts"]) if scores else None,
        positive=int(scores["positive"]) if scores else None,
        expected_wrong=_number(scores.get("expected_wrong")),
        validation=_validation(scores.get("validation")),
        not_compared=str(scores.get("not_compared") or "") if scores else "its summary keeps no scores",
        spreads=_number(stain.get("spreads")),
        hue_fold=_number(stain.get("hue_fold")),
        swapped=stain.get("swapped") is True,
        distance=max((each for each in distances if each is not None), default=None),
        uncertainty=_number((summary.get("uncertainty") or {}).get("mean")),
        warnings=tuple(map(str, summary["warnings"])),
    )


def _model_of(summary: Mapping[str, Any]) -> ModelRef:
    models = summary["map_recipe"]["models"]
    known = summary.get("registered") or [None] * len(models)
    labels = [
        f"{registered or model['name']} ({model['sha256'][:8]})"
        for model, registered in zip(models, known, strict=True)
    ]
    return ModelRef(
        key="+".join(sorted(str(model["sha256"]) for model in models)),
        words=" + ".join(labels),
        given=tuple(map(str, (summary.get("scores") or {}).get("model_given", ()))),
        patch_px=int(summary["patch_px"]),
        mpp=float(models[0]["card"]["mpp"]),
        hears_slide=(models[0]["card"].get("architecture_options") or {}).get("slide_condition") is not None,
        is_package=str(models[0]["card"].get("architecture", "")).startswith(PACKAGE_OF),
    )


def _validation(found: Mapping[str, Any] | None) -> Validation | None:
    if not found:
        return None
    reliability = [
        {"from": float(row["from"]), "patches": int(row["patches"])} for row in found["reliability"]
    ]
    if sum(row["patches"] for row in reliability) <= 0:
        raise ValueError("found a card without validation patches")
    return Validation(reliability, _number(found["positive"]), _number(found["wrong"]))


def _counts(found: Iterable[Any]) -> tuple[int, ...]:
    counts = tuple(map(int, found))
    if len(counts) != SCORE_BINS or min(counts) < 0:
        raise ValueError(f"found {len(counts)} bins of scores, expected {SCORE_BINS} counts")
    return counts


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"found {value!r}, expected a number")
    return float(value)


def _events_of(out: OutPath, problems: list[str]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """By slide its patient, as far as known, and the events of slides; lines that are none are named."""
    patients: dict[str, str] = {}
    events: list[dict[str, Any]] = []
    folder = out / EVENTS
    for name in sorted(names(folder)):
        damaged = []
        for number, line in enumerate(read_whole(folder / name).split(b"\n"), 1):
            try:
                event = json.loads(line) if line.strip() else {}
                if event.get("event") == SLIDE_EVENT:
                    event = printable_values(event)
                    events.append(
                        event
                        | {"day": datetime.fromisoformat(event["finished"]), "slide": str(event["slide"])}
                    )
                    # Of a second slide of the name, which was refused, the map is not.
                    if event.get("status") != "failed" or event["slide"] not in patients:
                        known = patients.get(event["slide"], "")
                        patients[event["slide"]] = str(event.get("patient") or known)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                damaged.append(number)
        if damaged:
            problems.append(
                f"{EVENTS}/{name}: lines that are no whole event: {len(damaged)}, the first is line {damaged[0]}; the "
                "others stand"
            )
    if not events:
        _rows_of_manifest(out, patients, problems)
    return patients, events


def _rows_of_manifest(out: OutPath, patients: dict[str, str], problems: list[str]) -> None:
    """Of an OUT whose events are gone: patients by the manifest; that its failures have no days is named."""
    if MANIFEST_NAME not in names(out):
        return
    try:
        rows = list(csv.DictReader(io.StringIO(read_whole(out / MANIFEST_NAME).decode(), newline="")))
        for row in rows:
            patients[from_spreadsheet(row["slide"])] = from_spreadsheet(row.get("patient") or "")
    except (ValueError, KeyError, csv.Error) as error:
        problems.append(f"{MANIFEST_NAME}: cannot be read ({error})")
        return
    failed = Counter(row.get("status") for row in rows)["failed"]
    problems.append(
        f"{EVENTS}: no event of a slide; {MANIFEST_NAME} counts {counted(failed, 'failed slide')}, on days not known"
    )


def _failures(
    events: Iterable[Mapping[str, Any]], newest: Mapping[str, datetime], since: date | None
) -> Iterable[FailedSlide]:
    """A slide a day, by the newest event of it that day; runs that were refused and left a map as it is are none."""
    last: dict[tuple[str, date], Mapping[str, Any]] = {}
    for event in events:
        if event.get("status") != "failed" or (event.get("refused") is True and event["slide"] in newest):
            continue
        key = (event["slide"], event["day"].date())
        if key not in last or event["day"] >= last[key]["day"]:
            last[key] = event
    for (name, day), event in sorted(last.items(), key=lambda item: (item[0][1], item[0][0])):
        if since is None or day >= since:
            mapped = name in newest and newest[name].replace(microsecond=999_999) >= event["day"]
            yield FailedSlide(name, day, str(event.get("reason") or "not known"), mapped)
