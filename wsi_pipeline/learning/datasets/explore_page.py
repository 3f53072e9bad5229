"""The page of `explore-patches`: an exploration in tables, plots and sheets of images."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.text import counted
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.learning.datasets.duplicates import Duplicates
from wsi_pipeline.learning.datasets.explore import Exploration, PatientStats, common_size, spans
from wsi_pipeline.learning.datasets.image_stats import stain_amounts
from wsi_pipeline.learning.datasets.listing import UNLABELLED
from wsi_pipeline.results.figures.html import Page, Picture, Plots, Section, Sheet, Table, image, plot

LABELS = {1: "positive (IDC)", 0: "negative", UNLABELLED: "no label"}
COLOURS = {1: "#c2410c", 0: "#2563eb", UNLABELLED: "#737373"}
SAMPLES = 24
GROUPS_SHOWN = 12
LISTED = 200
PATIENTS_SHOWN = 500
# Larger images are reduced to this side on the page.
SHOWN_PX = 128
CELL_PX = 96


def exploration_page(exploration: Exploration) -> Page:
    """Findings first, then what they rest on."""
    return Page(
        f"What is in {exploration.listing.folder.resolve().name}",
        _lead(exploration),
        [
            _findings(exploration),
            _classes(exploration),
            *_patients(exploration),
            _samples(exploration),
            _stains(exploration),
            _doubles(exploration),
            *_damage(exploration),
            *_every_patient(exploration),
        ],
        f"explore-patches, wsi_pipeline {VERSION}; samples drawn with seed 0",
    )


def _lead(exploration: Exploration) -> list[str]:
    listing, info = exploration.listing, exploration.info
    counts = Counter(listing.labels.tolist())
    labelled = counts[0] + counts[1]
    text = f"{counted(len(listing), 'image')} ({listing.layout})"
    if exploration.patients:
        text += f" of {counted(len(exploration.patients), listing.by)}"
    text += f": {counts[1]:,} positive, {counts[0]:,} negative"
    if labelled:
        text += f", {counts[1] / labelled:.1%} of those with a label positive"
    text += "."
    if info.readable.any():
        width, height = common_size(info)
        text += f" The usual size is {width} x {height} px."
    text += f" Scale: {listing.scale.words if listing.scale else 'not known'}."
    lead = [text]
    if listing.by != "patient":
        lead.append(
            f"This set has no patients: every number of a model trained on it is by {listing.by}, and flatters, since "
            "one patient may stand on both sides of a split."
        )
    return lead


def _findings(exploration: Exploration) -> Section:
    rows = [(f.what, f"{f.count:,}", f.advice) for f in exploration.findings]
    if not rows:
        return Section("To know before training", ["Nothing stands out."])
    ordered = [(what, advice, count) for what, count, advice in rows]
    return Section(
        "To know before training", [Table(("found", "what to do", "how many"), ordered, text_columns=2)]
    )


def _classes(exploration: Exploration) -> Section:
    listing, info, sides = exploration.listing, exploration.info, exploration.sides
    rows = []
    for side in ["", *sorted(set(sides) - {""})]:
        here = sides == side if side else np.ones(len(listing), np.bool_)
        counts = Counter(listing.labels[here].tolist())
        share = counts[1] / max(counts[0] + counts[1], 1)
        rows.append((side or "all", counts[1], counts[0], counts[UNLABELLED], f"{share:.1%}"))
    sizes = Counter(map(tuple, info.sizes[info.readable].tolist())).most_common()
    shown = [(f"{width} x {height}", count) for (width, height), count in sizes[:10]]
    if len(sizes) > 10:
        shown.append((f"{len(sizes) - 10} other sizes", sum(count for _, count in sizes[10:])))
    names = ("side", "positive", "negative", "no label", "share positive")
    return Section(
        "Classes and sizes", [Table(names, rows), Table(("size in px", "images"), shown, "Width x height.")]
    )


def _patients(exploration: Exploration) -> list[Section]:
    patients, by = exploration.patients, exploration.listing.by
    if not patients:
        return []
    ordered = sorted(patients, key=lambda p: -p.images)
    place = np.arange(len(ordered))
    figure = Figure((11, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(3, 1.4))
    positive = np.array([p.positive for p in ordered])
    axes[0].bar(place, [p.images for p in ordered], 1, color=COLOURS[0], label="all")
    axes[0].bar(place, positive, 1, color=COLOURS[1], label="positive")
    axes[0].set(xlabel=f"{by}s, the largest first", ylabel="images", xlim=(-0.5, len(ordered) - 0.5))
    axes[0].legend(frameon=False)
    shares = [p.positive / (p.positive + p.negative) for p in ordered if p.positive + p.negative]
    axes[1].hist(shares, np.linspace(0, 1, 21).tolist(), color=COLOURS[1])
    axes[1].set(xlabel="share of positive images", ylabel=f"{by}s", xlim=(0, 1))
    numbers = np.array([p.images for p in ordered])
    half = int(np.searchsorted(np.cumsum(numbers), numbers.sum() / 2)) + 1
    text = (
        f"Of {len(ordered):,} {by}s, the {half} largest hold half of all images; the median has "
        f"{int(np.median(numbers))}, the smallest {numbers[-1]}. "
        f"{sum(p.positive == 0 for p in ordered)} have no positive image, "
        f"{sum(p.negative == 0 for p in ordered)} no negative one."
    )
    return [
        Section(f"{by.title()}s", [text, Plots([plot(figure, f"Images a {by}, and how many are positive.")])])
    ]


def _samples(exploration: Exploration) -> Section:
    listing, readable = exploration.listing, exploration.info.readable
    rng = np.random.default_rng(0)
    blocks: list[str | Sheet] = []
    for label, name in LABELS.items():
        images = rng.permutation(np.flatnonzero(readable & (listing.labels == label)))
        if len(images):
            # Of different patients, as far as there are so many.
            _, first = np.unique(listing.patients[images], return_index=True)
            spread = np.concatenate([images[np.sort(first)], np.delete(images, first)])[:SAMPLES]
            blocks += [f"{name}, {len(spread)} of {len(images):,}:", _sheet(exploration, spread.tolist())]
    return Section("Samples", blocks)


def _stains(exploration: Exploration) -> Section:
    listing, info, by = exploration.listing, exploration.info, exploration.listing.by
    pictures = [
        plot(_stain_figure(exploration), "Stain of every image, by class (shares of each class's images).")
    ]
    blocks: list[str | Plots | Sheet | Table] = [
        "Haematoxylin and eosin are mean optical densities, unmixed with the vectors of Ruifrok and Johnston; they "
        "compare images of a set, no more."
    ]
    if exploration.patients:
        pictures.append(
            plot(
                _patient_figure(exploration.patients, by), f"Each {by}'s mean. Named: stains that stand out."
            )
        )
    blocks.append(Plots(pictures))
    far = sorted((p for p in exploration.patients if p.is_far), key=lambda p: -(p.spreads or 0))[:4]
    for patient in far:
        images = np.flatnonzero(info.readable & (listing.patients == patient.name))
        chosen = np.random.default_rng(0).permutation(images)[:10].tolist()
        blocks += [
            f"{by.title()} {patient.name}, {patient.spreads:.1f} spreads off the others:",
            _sheet(exploration, chosen),
        ]
    return Section("Colours and stain", blocks)


def _stain_figure(exploration: Exploration) -> Figure:
    listing, info = exploration.listing, exploration.info
    amounts = stain_amounts(info.densities)
    figure = Figure((11, 3), layout="constrained")
    axes = figure.subplots(1, 5)
    names = ("red", "green", "blue", "haematoxylin", "eosin")
    for axis, name, values in zip(axes, names, np.hstack([info.densities, amounts]).T, strict=True):
        seen = values[info.readable]
        low, high = np.percentile(seen, [0.1, 99.9]) if len(seen) else (0, 1)
        # Few images fill few bins.
        bins = np.linspace(low, max(high, low + 1e-3), int(np.clip(np.sqrt(len(seen)), 8, 40)) + 1)
        for label in LABELS:
            here = info.readable & (listing.labels == label)
            if here.any():
                shares = np.full(int(here.sum()), 1 / here.sum())
                axis.hist(
                    values[here],
                    bins.tolist(),
                    weights=shares,
                    histtype="step",
                    color=COLOURS[label],
                    label=LABELS[label],
                )
        axis.set(xlabel=f"{name} density", yticks=[])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _patient_figure(patients: Sequence[PatientStats], by: str) -> Figure:
    figure = Figure((6.5, 4.6), layout="constrained")
    axis = figure.subplots()
    many = [p for p in patients if p.spreads is not None] or list(patients)
    densities = np.array([p.density for p in many])
    amounts = stain_amounts(densities)
    far = np.array([p.is_far for p in many])
    axis.scatter(amounts[~far, 0], amounts[~far, 1], s=14, color=COLOURS[0], alpha=0.6, linewidths=0)
    axis.scatter(amounts[far, 0], amounts[far, 1], s=26, color=COLOURS[1])
    for patient, (x, y) in zip(many, amounts, strict=True):
        if patient.is_far:
            axis.annotate(patient.name, (x, y), (4, 3), textcoords="offset points", fontsize=8)
    axis.set(
        xlabel="haematoxylin density", ylabel="eosin density", title=f"{by.title()}s of 10 images and more"
    )
    return figure


def _doubles(exploration: Exploration) -> Section:
    text = (
        "Near duplicates are images that look the same at 16 x 16 px, perhaps flipped or turned: re-encoded or resized "
        "copies. Look at them before removing any: patches that hold little but the edge of a section can be alike."
    )
    blocks: list[str | Table | Sheet] = [text]
    for name, doubles in (("Pixel for pixel", exploration.exact), ("Near", exploration.near)):
        if not doubles.groups:
            blocks.append(f"{name}: none.")
            continue
        listing, sides = exploration.listing, exploration.sides
        # Those that matter most first.
        groups = sorted(doubles.groups, key=lambda group: (-len(spans(listing, group, sides)), -len(group)))
        blocks.append(
            f"{name}: {counted(len(groups), 'group')}, {counted(doubles.surplus, 'image')} more than needed."
        )
        blocks += [
            _group_table(exploration, groups),
            _group_sheet(exploration, Duplicates(groups[:GROUPS_SHOWN])),
        ]
    return Section("Duplicates", blocks)


def _group_table(exploration: Exploration, groups: Sequence[NDArray[np.int64]]) -> Table:
    listing = exploration.listing
    rows = []
    for group in groups[:LISTED]:
        names = ", ".join(listing.names[index] for index in group[:4]) + (", ..." if len(group) > 4 else "")
        rows.append((", ".join(spans(listing, group, exploration.sides)) or "nothing", names, len(group)))
    caption = f"The first {LISTED} of {len(groups):,} groups." if len(groups) > LISTED else ""
    return Table(("differ in", "images", "how many"), rows, caption, text_columns=2)


def _group_sheet(exploration: Exploration, doubles: Duplicates) -> Sheet:
    pictures = []
    for number, group in enumerate(doubles.groups, 1):
        for index in group[:4].tolist():
            shown = _picture(exploration, index, f"group {number}")
            pictures.append(shown)
    return Sheet(pictures, CELL_PX)


def _damage(exploration: Exploration) -> list[Section]:
    problems = sorted(exploration.info.problems.items())
    if not problems:
        return []
    rows = [(exploration.listing.names[index], reason) for index, reason in problems[:LISTED]]
    caption = f"The first {LISTED} of {len(problems):,}." if len(problems) > LISTED else ""
    return [
        Section("Images that cannot be decoded", [Table(("image", "why"), rows, caption, text_columns=2)])
    ]


def _every_patient(exploration: Exploration) -> list[Section]:
    by, ordered = exploration.listing.by, sorted(exploration.patients, key=lambda p: -p.images)
    if not ordered:
        return []
    rows = [
        (p.name, p.images, p.positive, p.negative, *p.density, p.spreads, "stands out" if p.is_far else "")
        for p in ordered[:PATIENTS_SHOWN]
    ]
    columns = (by, "images", "positive", "negative", "density R", "G", "B", "spreads off", "stain")
    caption = (
        "Density: mean optical density. Spreads off: distance from the median, none of fewer than 10 images."
    )
    if len(ordered) > PATIENTS_SHOWN:
        caption += f" The {PATIENTS_SHOWN} largest of {len(ordered)}."
    return [Section(f"Every {by}", [Table(columns, rows, caption)])]


def _sheet(exploration: Exploration, indices: Sequence[int]) -> Sheet:
    return Sheet([_picture(exploration, index) for index in indices], CELL_PX)


def _picture(exploration: Exploration, index: int, caption: str = "") -> Picture:
    listing = exploration.listing
    pixels = listing.load(index)
    if max(pixels.shape) > SHOWN_PX:
        small = Image.fromarray(pixels)
        small.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.BOX)
        pixels = np.asarray(small)
    who = str(listing.patients[index]) if listing.by != "image" else listing.names[index].rsplit("/", 1)[-1]
    label = {1: "positive", 0: "negative"}.get(int(listing.labels[index]), "")
    return image(np.ascontiguousarray(pixels), "\n".join(filter(None, (caption, who, label))))
