"""Pictures of how good a model is: curves, reliability, patients, and where a map is right and wrong."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.patches import EvaluatedPatches
from wsi_pipeline.learning.evaluation.slides import EvaluatedSlide
from wsi_pipeline.results.figures.html import Picture, image, plot
from wsi_pipeline.slides.annotations.cell_labels import IDC, NOT_IDC, UNLABELLED

# Of the palette of Okabe and Ito (2008), made to be distinguished with any colour vision.
BLUE, ORANGE, VERMILION, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#999999"
# What a cell of a slide's picture is: right IDC, called and not labelled, missed, right not IDC.
RIGHT, CALLED, MISSED, REST, NOTHING = BLUE, ORANGE, "#CC3311", "#D9D9D9", "#FFFFFF"
SIZE_IN = (4.6, 3.9)
SLIDE_PX = 300
# Points of a curve kept: more than a screen shows, few enough for a light page.
CURVE_POINTS = 400


def roc_plot(evaluated: EvaluatedPatches, patients: bool) -> Picture:
    """ROC curve with the card's threshold on it, each patient's own behind where `patients`."""
    labels, probability = evaluated.side.labels, evaluated.probability
    figure, axes = _axes("1 - specificity (false positive rate)", "recall (true positive rate)")
    if patients:
        for patient in np.unique(evaluated.side.patients):
            own = evaluated.side.patients == patient
            if len(set(labels[own].tolist())) == 2:
                miss, hit, _ = _curve(probability[own], labels[own])
                axes.plot(miss, hit, color=GREY, linewidth=0.5, alpha=0.6)
        axes.plot([], [], color=GREY, linewidth=0.5, label="each patient")
    miss, hit, _ = _curve(probability, labels)
    axes.plot(
        miss, hit, color=BLUE, linewidth=2, label=f"all, AUROC {metrics.auroc(probability, labels):.3f}"
    )
    d = metrics.decide(probability, labels, evaluated.card.threshold)
    axes.plot(
        1 - d.specificity, d.recall, "o", color=VERMILION, label=f"threshold {evaluated.card.threshold:.3f}"
    )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.legend(loc="lower right", frameon=False)
    return plot(figure, "ROC: what is found of the IDC patches for what is called wrongly of the others.")


def precision_recall_plot(evaluated: EvaluatedPatches) -> Picture:
    """Precision over recall, with the card's threshold on it and the share of IDC as the floor."""
    labels, probability = evaluated.side.labels, evaluated.probability
    figure, axes = _axes("recall", "precision")
    _, hit, precision = _curve(probability, labels)
    hit, precision = hit[hit > 0], precision[hit > 0]  # before the first right one there is nothing to see
    axes.plot(
        hit, precision, color=BLUE, linewidth=2, label=f"AUPRC {metrics.auprc(probability, labels):.3f}"
    )
    d = metrics.decide(probability, labels, evaluated.card.threshold)
    axes.plot(d.recall, d.precision, "o", color=VERMILION, label=f"threshold {evaluated.card.threshold:.3f}")
    share = float((labels == 1).mean())
    axes.axhline(share, color=GREY, linestyle=":", linewidth=1, label=f"share of IDC, {share:.1%}")
    axes.legend(loc="center left", frameon=False)
    return plot(figure, "Precision and recall: how much of what is called IDC is, for how much is found.")


def reliability_plot(evaluated: EvaluatedPatches) -> Picture:
    """What probabilities say against what is, raw and calibrated, and below how many patches say it."""
    figure = Figure(SIZE_IN, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    labels = evaluated.side.labels
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for name, probability, colour, marker in (
        ("raw softmax", evaluated.raw, ORANGE, "s"),
        ("calibrated", evaluated.probability, BLUE, "o"),
    ):
        rows = metrics.reliability(probability, labels)
        error = metrics.calibration_error(probability, labels)
        upper.plot(
            [row["probability"] for row in rows],
            [row["idc_share"] for row in rows],
            marker=marker,
            markersize=4,
            color=colour,
            label=f"{name}, ECE {error:.3f}",
        )
    upper.set(ylabel="share of IDC", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left", frameon=False)
    edges = np.linspace(0, 1, metrics.CALIBRATION_BINS + 1).tolist()
    lower.hist(evaluated.probability, edges, color=BLUE)
    lower.set(xlabel="probability of IDC", ylabel="patches", yscale="log", ylim=(0.8, None))
    lower.yaxis.set_minor_locator(NullLocator())
    lower.yaxis.set_major_locator(LogLocator(numticks=4))
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _tidy(upper)
    _tidy(lower)
    return plot(
        figure,
        "Reliability: on the dotted line, of patches said to be IDC with 30 % three in ten are. Below: how many "
        "patches say so (calibrated, logarithmic).",
    )


def threshold_plot(evaluated: EvaluatedPatches) -> Picture:
    """Precision, recall, F1 and balanced accuracy over the threshold."""
    figure, axes = _axes("threshold on the calibrated probability", "")
    thresholds = np.linspace(0.01, 0.99, 99)
    decisions = [metrics.decide(evaluated.probability, evaluated.side.labels, t) for t in thresholds]
    for name, measure, colour, style in (
        ("F1", "f1", BLUE, "-"),
        ("balanced accuracy", "balanced_accuracy", GREEN, "-"),
        ("precision", "precision", ORANGE, "--"),
        ("recall", "recall", VERMILION, "--"),
    ):
        axes.plot(thresholds, [getattr(d, measure) for d in decisions], style, color=colour, label=name)
    axes.axvline(evaluated.card.threshold, color="black", linewidth=1)
    axes.legend(loc="lower center", frameon=False, fontsize="small")
    return plot(
        figure, f"What another threshold would make; the line is the card's, {evaluated.card.threshold:.3f}."
    )


def distribution_plot(evaluated: EvaluatedPatches) -> Picture:
    """How probabilities spread among IDC patches and the others."""
    figure, axes = _axes("probability of IDC", "share of the patches of the class")
    edges = np.linspace(0, 1, 41).tolist()
    highest = 0.0
    for label, name, colour in ((0, "not IDC", GREY), (1, "IDC", BLUE)):
        own = evaluated.probability[evaluated.side.labels == label]
        weights = np.full(len(own), 1 / max(len(own), 1))
        shares, _, _ = axes.hist(own, edges, weights=weights.tolist(), color=colour, alpha=0.6, label=name)
        highest = max(highest, float(np.max(shares)))
    axes.axvline(evaluated.card.threshold, color="black", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.05 * highest))
    axes.legend(frameon=False)
    return plot(figure, "How the probabilities of both classes spread; the line is the card's threshold.")


def patients_plot(rows: list[dict[str, float]]) -> Picture:
    """Each patient a dot: F1 over the patient's share of IDC, its size the number of patches."""
    figure, axes = _axes("share of the patient's patches that are IDC", "F1")
    meant = [row for row in rows if not np.isnan(row["f1"]) and row["idc_patches"]]
    sizes = [8 + 60 * row["patches"] / max(r["patches"] for r in rows) for row in meant]
    axes.scatter(
        [row["idc_share"] for row in meant],
        [row["f1"] for row in meant],
        s=sizes,
        color=BLUE,
        alpha=0.6,
        edgecolor="white",
    )
    axes.set(ylim=(-0.03, 1.03), xlim=(0, 1.02))
    return plot(
        figure,
        f"F1 of each of {counted(len(meant), 'patient')} with IDC; larger dots have more patches. Little IDC "
        "makes a few mistakes weigh much.",
    )


def slide_picture(slide: EvaluatedSlide) -> Picture:
    """The slide's cells in colour: rightly IDC, wrongly called, missed, rightly not, not labelled."""
    colours = np.array([_rgb(c) for c in (REST, RIGHT, CALLED, MISSED, NOTHING)], np.uint8)
    kind = np.zeros(slide.labels.shape, np.uint8)
    called, idc = slide.called, slide.labels == IDC
    kind[idc & called] = 1
    kind[(slide.labels == NOT_IDC) & called] = 2
    kind[idc & ~called] = 3
    kind[slide.labels == UNLABELLED] = 4
    factor = max(1, round(SLIDE_PX / max(kind.shape)))
    enlarged = np.kron(kind, np.ones((factor, factor), np.uint8))
    d = slide.decisions
    found = f"Dice {d.f1:.2f}" if d.true_positive + d.false_negative else "no IDC labelled"
    return image(
        colours[enlarged], f"{slide.name}: {found}\n{d.false_positive} called, {d.false_negative} missed"
    )


def slide_picture_key() -> str:
    """What the colours of `slide_picture` mean, in words."""
    return (
        "Blue: IDC, found. Orange: called IDC, labelled otherwise. Red: IDC, missed. Grey: rightly not called. "
        "White: not labelled. A square is a cell of the map."
    )


def _curve(
    probability: NDArray[np.floating[Any]], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.floating[Any]], ...]:
    """False positive rate, recall and precision as the threshold falls, thinned evenly along the patches."""
    _, hit, called = metrics.sweep(probability, labels)
    keep = np.unique(np.linspace(0, len(hit) - 1, CURVE_POINTS).astype(int))
    hit, called = hit[keep], called[keep]
    positive = max(int((labels == 1).sum()), 1)
    negative = max(len(labels) - positive, 1)
    rates = (called - hit) / negative, hit / positive, hit / called
    return tuple(np.insert(rate, 0, 0.0) for rate in rates)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(SIZE_IN, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.01))
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
