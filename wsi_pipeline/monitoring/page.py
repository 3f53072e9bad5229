"""The page of `monitor`: what lies beyond its limit first, then the lists and tables it rests on."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from wsi_pipeline.base.files import read_whole
from wsi_pipeline.base.text import counted
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.inference.stain_check import MAX_SPREADS
from wsi_pipeline.monitoring.against_card import (
    MAX_SCORE_DISTANCE,
    MIN_SLIDES,
    pooled_corrected,
    pooled_scores,
)
from wsi_pipeline.monitoring.figures import Day, ModelFigures, Monitored
from wsi_pipeline.monitoring.look_first import LookFirst
from wsi_pipeline.monitoring.runs import MappedSlide
from wsi_pipeline.results.figures.html import (
    Block,
    Cell,
    CommandLines,
    Page,
    Picture,
    Plots,
    Section,
    Sheet,
    Table,
    image,
    plot,
)
from wsi_pipeline.results.figures.palette import BLUE, GREY, VERMILLION

LISTED, PICTURED, PICTURE_PX = 50, 12, 240


def monitor_page(monitored: Monitored) -> Page:
    """What is to be done first, and everything it rests on."""
    since = f" since {monitored.since}" if monitored.since else ""
    return Page(
        f"Monitor: {monitored.out.name or monitored.out.absolute().name}{since}",
        _lead(monitored),
        [
            _first(monitored),
            *(_against_card(each) for each in monitored.models),
            _by_day(monitored),
            _reviews(monitored),
            _retraining(monitored),
            *_failed(monitored),
            *_problems(monitored),
        ],
        f"monitor, wsi_pipeline {VERSION}, {monitored.made:%Y-%m-%d %H:%M} UTC. Research use only, not a medical "
        "device",
    )


def _lead(monitored: Monitored) -> list[str]:
    runs = monitored.runs
    days = {slide.day for slide in runs.slides}
    text = f"{counted(len(runs.slides), 'slide')} mapped on {counted(len(days), 'day')} (UTC)"
    text += f" by {counted(len(monitored.models), 'model')}"
    text += (
        f"; {counted(len({each.name for each in runs.failed}), 'slide')} failed"
        if runs.failed
        else "; none failed"
    )
    text += f"; {counted(runs.before, 'older map')} left out" if runs.before else ""
    text += (
        f"; {counted(runs.tiled, 'folder')} of tile-slides, which hold no map, left out" if runs.tiled else ""
    )
    lead = [f"{text}."]
    lead += [
        f"Beyond its limit, {model.words}: {each.measure} {_figure(each.found)} ({each.limit}): {each.words}."
        for model, each in monitored.beyond
    ]
    if not monitored.beyond:
        compared = any(each.state == "within" for own in monitored.models for each in own.comparisons)
        lead.append(
            "No figure of a model is beyond its limit."
            if compared
            else f"No figure can be compared with a card yet: that takes {MIN_SLIDES} slides of one model."
        )
    first = len(monitored.first)
    lead.append(f"{counted(first, 'slide')} to look at first." if first else "No slide stands out.")
    if runs.problems:
        lead.append(f"Not read, not finished, or to be known, each named below: {len(runs.problems)}.")
    return lead


def _first(monitored: Monitored) -> Section:
    found = monitored.first
    blocks: list[Block] = [
        "Uncertain, far from training, or strongly corrected: slides of which a figure is beyond its limit, by how "
        "many times the limit it is."
    ]
    if not found:
        return Section("Slides to look at first", [*blocks, "None."])
    rows = [
        (f"{rank}", each.slide.name, "; ".join(each.reasons), each.slide.day.isoformat(), f"{each.times:.1f}")
        for rank, each in enumerate(found[:LISTED], 1)
    ]
    more = f"{len(found) - LISTED} more stand in monitor_slides.csv." if len(found) > LISTED else ""
    names = ("", "slide", "why", "mapped", "times its limit")
    blocks.append(Table(names, rows, more, text_columns=4))
    if pictures := [picture for each in found[:PICTURED] if (picture := _overlay(monitored, each))]:
        blocks.append(Sheet(pictures, PICTURE_PX))
    return Section("Slides to look at first", blocks)


def _overlay(monitored: Monitored, each: LookFirst) -> Picture | None:
    try:
        with Image.open(io.BytesIO(read_whole(monitored.out / each.slide.name / "overlay.png"))) as opened:
            picture = opened.convert("RGB")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        monitored.runs.problems.append(f"{each.slide.name}/overlay.png: cannot be read, and is not shown")
        return None
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    return image(np.asarray(picture), f"{each.slide.name}\n{each.reasons[0]}")


def _against_card(own: ModelFigures) -> Section:
    rows = [
        (each.measure, each.state, each.words, each.expected, each.limit, each.slides, _figure(each.found))
        for each in own.comparisons
    ]
    names = ("figure", "state", "meaning", "on the card", "limit", "slides", "found")
    blocks: list[Block] = [
        f"{counted(len(own.slides), 'slide')} together, each patch alone. Of fewer than {MIN_SLIDES} slides nothing is "
        "concluded.",
        Table(names, rows, text_columns=5),
    ]
    if picture := _score_plot(own.slides):
        blocks.append(Plots([picture]))
    return Section(f"Against the card: {own.model.words}", blocks)


def _score_plot(slides: Sequence[MappedSlide]) -> Picture | None:
    counts, validation = pooled_scores(slides)
    if validation is None or not sum(counts):
        return None
    figure = Figure((7, 2.8), layout="constrained")
    axes = figure.subplots()
    width = 1 / len(counts)
    left = np.arange(len(counts)) * width
    axes.bar(
        left, np.array(counts) / sum(counts), width, align="edge", color=BLUE, alpha=0.6, label="these slides"
    )
    patches = np.array([row["patches"] for row in validation.reliability])
    starts = [row["from"] for row in validation.reliability]
    axes.step(
        [*starts, 1.0],
        [*(patches / patches.sum()), 0],
        where="post",
        color=VERMILLION,
        label="validation patches",
    )
    axes.set(
        xlabel="probability of IDC, each patch alone", ylabel="share of patches", xlim=(0, 1), yscale="log"
    )
    axes.legend(frameon=False)
    return plot(
        figure,
        "Scores of these slides beside those of the card's validation patches. The scale is logarithmic.",
    )


def _by_day(monitored: Monitored) -> Section:
    names = (
        *(
            "day",
            "model",
            "slides",
            "distance of scores",
            "stain spreads",
            "hue fold",
            "distance",
            "tissue share",
        ),
        *("IDC share", "positive share", "corrections", "corrected share", "failed"),
    )
    rows = [
        (
            *(
                day.day.isoformat(),
                day.model.words,
                day.slides,
                day.score_distance,
                day.spreads,
                day.hue_fold,
            ),
            *(day.distance, day.tissue_share, day.idc_share, day.positive_share, day.corrections),
            *(day.corrected_share, day.failed),
        )
        for day in monitored.days
    ]
    caption = (
        "Days in UTC, a row a model. Distance of scores: from those of the card's validation patches, 0 to 1. Stain "
        "spreads, hue fold, distance (of the slide from the training slides) and tissue share (of the slide): of the "
        "median slide. IDC share (of tissue), positive share (of the patches, each alone): all slides together. "
        "Corrections: outlines rejected, redrawn, given another class or added as IDC that day. Failed "
        "slides have no map, and so no model."
    )
    pictures = [
        _day_plot(own, [day for day in monitored.days if day.model.key == own.model.key])
        for own in monitored.models
    ]
    return Section("By day", [Table(names, rows, caption, text_columns=2), Plots(pictures)])


def _day_plot(own: ModelFigures, days: Sequence[Day]) -> Picture:
    figure = Figure((11, 2.8), layout="constrained")
    axes = figure.subplots(1, 4)
    labels = [day.day.isoformat() for day in days]
    place = {day.day: number for number, day in enumerate(days)}
    _line(axes[0], "distance of scores", labels, [day.score_distance for day in days], MAX_SCORE_DISTANCE)
    known = [slide for slide in own.slides if slide.spreads is not None]
    axes[1].plot(
        [place[slide.day] for slide in known], [slide.spreads or 0 for slide in known], "o", color=GREY, ms=3
    )
    _line(axes[1], "stain spreads, slides and median", labels, [day.spreads for day in days], MAX_SPREADS)
    positive = own.slides[-1].validation.positive if own.slides[-1].validation else None
    _line(axes[2], "positive share", labels, [day.positive_share for day in days], positive, "--")
    _line(axes[3], "IDC share of tissue", labels, [day.idc_share for day in days], None)
    return plot(figure, f"{own.model.words} by day. Red: the limit; dashed, the card's share.")


def _line(
    axes: Axes,
    title: str,
    labels: Sequence[str],
    values: Sequence[float | None],
    limit: float | None,
    style: str = "-",
) -> None:
    axes.plot(range(len(values)), [np.nan if value is None else value for value in values], "o-", color=BLUE)
    if limit is not None:
        axes.axhline(limit, color=VERMILLION, linestyle=style, linewidth=1)
    shown = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), 4)).astype(int)).tolist()
    axes.set_xticks(shown, [labels[i] for i in shown], rotation=30, ha="right", fontsize=7)
    axes.set(ylim=(0, None), xlim=(-0.5, len(labels) - 0.5))
    axes.set_title(title, fontsize=9)


def _reviews(monitored: Monitored) -> Section:
    names = (
        *(
            "slide",
            "model",
            "reviewers",
            "regions",
            "accepted",
            "rejected",
            "redrawn",
            "added",
            "other class",
        ),
        *("agreed mm²", "map alone mm²", "reviewer alone mm²", "corrected share"),
    )
    rows: list[Sequence[Cell]] = []
    for own in monitored.models:
        reviewed = [slide for slide in own.slides if slide.review]
        if not reviewed:
            continue
        reviews = [slide.review for slide in reviewed if slide.review]
        who = set().union(*(review.reviewers for review in reviews))
        lines = [(slide.name, [slide], slide.review.reviewers) for slide in reviewed if slide.review]
        for name, slides, people in [(f"all {len(reviewed)}", reviewed, who), *lines[:LISTED]]:
            each = [slide.review for slide in slides if slide.review]
            verdicts: list[Cell] = [
                sum(review.verdicts[verdict] for review in each) for verdict in names[4:9]
            ]
            areas = [
                sum(getattr(review, f"{what}_mm2") for review in each)
                for what in ("agreed", "taken", "added")
            ]
            regions = sum(review.regions for review in each)
            texts = [f"{area:.2f}" for area in areas]
            who_did = ", ".join(sorted(people)) or "–"
            rows.append(
                [name, own.model.words, who_did, regions, *verdicts, *texts, pooled_corrected(slides)]
            )
    if not rows:
        return Section("Reviewers and the map", ["Nobody reviewed one of these maps."])
    caption = (
        "Outlines as they stand now, of these maps. Agreed: IDC to both; of regions that nobody answered nothing is "
        "counted. Corrected share: what only one of them calls IDC, of what either does."
    )
    return Section("Reviewers and the map", [Table(names, rows, caption, text_columns=3)])


def _retraining(monitored: Monitored) -> Section:
    plan = monitored.retraining
    blocks: list[Block] = []
    if plan.lines:
        blocks.append(
            f"On {counted(len(plan.slides), 'reviewed slide')}: cut and label, go on from the model, compare with it."
        )
        blocks.append(CommandLines(plan.lines))
    return Section("From here to a new model", [*blocks, *plan.notes])


def _failed(monitored: Monitored) -> list[Section]:
    failed = monitored.runs.failed
    if not failed:
        return []
    rows = [
        (each.day.isoformat(), each.name, "yes" if each.mapped_since else "no", each.reason)
        for each in failed[:LISTED]
    ]
    more = f"{len(failed) - LISTED} more stand in monitor.json." if len(failed) > LISTED else ""
    return [
        Section("Failed", [Table(("day", "slide", "mapped since", "reason"), rows, more, text_columns=4)])
    ]


def _problems(monitored: Monitored) -> list[Section]:
    problems = monitored.runs.problems
    return [Section("Not read, not finished, or to be known", list(problems))] if problems else []


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
