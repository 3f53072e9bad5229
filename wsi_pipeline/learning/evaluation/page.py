"""The page and the JSON of `evaluate-model`: everything measured, laid out for people."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_pipeline.base.files import write_json
from wsi_pipeline.base.text import counted
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.learning.evaluation import plots as plots
from wsi_pipeline.learning.evaluation.patches import (
    MISTAKES_A_PATIENT,
    EvaluatedPatches,
    metrics_of,
    mistakes,
    name_of,
    plain,
)
from wsi_pipeline.learning.evaluation.slides import EvaluatedSlide, all_slides_metrics, slide_metrics
from wsi_pipeline.pipeline.maps import PATCH_BY_PATCH
from wsi_pipeline.results.figures.html import Block, Page, Plots, Section, Sheet, Table, image, write_page

SCHEMA = 1
NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "ece": "ECE (calibration error)",
}
CALIBRATION_NAMES = {
    "raw": "raw softmax",
    "temperature": "temperature alone, fitted on these patches",
    "card": "the card's: temperature and shift",
}


def write_evaluation(
    out: Path,
    evaluated: EvaluatedPatches,
    side: str,
    folder: Path,
    slides: Sequence[EvaluatedSlide],
    failed: Mapping[str, str] | None = None,
    robustness: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `out`/metrics.json and `out`/index.html; gives the metrics back.

    `side` of the split of `folder` is what was evaluated, `slides` are those evaluated beside (may be none),
    `failed` says of each slide that could not be, why; `robustness` is as `robustness_metrics` gives it.
    """
    metrics = {"schema": SCHEMA, "version": VERSION, **metrics_of(evaluated)}
    metrics["data"] = {"folder": str(folder), "side": side, **metrics["data"]}
    metrics["slides"] = [slide_metrics(slide) for slide in slides]
    metrics["all_slides"] = all_slides_metrics(slides) if slides else None
    metrics["robustness"] = robustness
    metrics["failed_slides"] = [{"slide": name, "reason": reason} for name, reason in (failed or {}).items()]
    out.mkdir(parents=True, exist_ok=True)
    write_page(out / "index.html", page(evaluated, metrics, slides))
    write_json(out / "metrics.json", plain(metrics))
    return metrics


def page(evaluated: EvaluatedPatches, metrics: dict[str, Any], slides: Sequence[EvaluatedSlide]) -> Page:
    """The page of what was measured."""
    data, patches = metrics["data"], metrics["patches"]
    of = "" if data["by"] == "image" else f" of {counted(data['patients'], data['by'])}"
    lead = [
        f"{counted(data['patches'], 'patch')}{of}, {data['idc_patches'] / data['patches']:.1%} of them IDC: "
        f"AUROC {_with_interval(patches['auroc'])}, F1 {_with_interval(patches['f1'])}, "
        f"balanced accuracy {_with_interval(patches['balanced_accuracy'])}.",
        f"Scale of the patches: {data['scale']}.",
        _caveat(data, crossfitted=not metrics["not_crossfitted"]),
    ]
    sections = [
        _measures_section(metrics),
        Section(
            "Curves",
            [
                Plots(
                    [
                        plots.roc_plot(evaluated, patients=data["by"] != "image"),
                        plots.precision_recall_plot(evaluated),
                    ]
                )
            ],
        ),
        _calibration_section(evaluated, metrics),
        _threshold_section(evaluated, metrics),
    ]
    if metrics["patients"]:
        sections.append(_patients_section(metrics))
    if slides:
        sections.append(_slides_section(metrics, slides))
    if metrics["robustness"]:
        sections.append(_robustness_section(metrics["robustness"], data["patches"]))
    if metrics["failed_slides"]:
        rows = [[row["slide"], row["reason"]] for row in metrics["failed_slides"]]
        sections.append(Section("Slides that failed", [Table(["slide", "reason"], rows, text_columns=2)]))
    sections.append(_mistakes_section(evaluated))
    model = metrics["model"]
    footer = (
        f"Model {model['name']} ({model['sha256'][:12]}), {model['architecture']}, {model['patch_px']} px at "
        f"{model['mpp']:g} um/px. wsi_pipeline {metrics['version']}. All numbers: metrics.json beside this page."
    )
    return Page(f"How good is {model['name']}?", lead, sections, footer)


def _caveat(data: dict[str, Any], crossfitted: bool) -> str:
    by_image = (
        " The set names no patients: its numbers are by image, and if one patient's images stand on both sides "
        "of the split they are too good; intervals are too narrow as well."
        if data["by"] == "image"
        else ""
    )
    caveats = {
        "val": "These are the validation patches: the epoch, the calibration and the threshold were chosen on "
        "them, which flatters"
        + (" a little. The cross-fitted row says how much the last two do." if crossfitted else "."),
        "train": "These patches were trained on: the numbers say how well the network remembers, not how well it "
        "judges others.",
        "all": "These are all patches of the folder: if the model was trained on some, the numbers are too good.",
    }
    return caveats[data["side"]] + by_image


def _robustness_section(robustness: Mapping[str, Any], of: int) -> Section:
    rows = [
        [
            row["name"],
            row["auroc"],
            f"{row['auroc_change']:+.3f}",
            row["f1"],
            row["balanced_accuracy"],
            f"{row['flipped']:.1%}",
        ]
        for row in robustness["rows"]
    ]
    return Section(
        "What scanners, encoders and laboratories cost",
        [
            Table(
                ["patches changed", "AUROC", "change", "F1", "balanced accuracy", "flipped"],
                rows,
                f"{robustness['patches']:,} of {counted(of, 'patch')}, of each patient the same share, drawn by seed "
                f"{robustness['seed']}; each patient's patches are changed alike, before the stain is normalised. "
                "Flipped: on the other side of the threshold than the patch as it is. Pixels from beyond a patch are "
                "mirrored where it is turned, scaled or shifted, so that a slide would show less there.",
            )
        ],
    )


def _measures_section(metrics: dict[str, Any]) -> Section:
    patches, crossfitted, confusion = metrics["patches"], metrics["crossfitted"], metrics["confusion"]
    rows = [
        [
            name,
            patches[key]["value"],
            _interval(patches[key]) or None,
            crossfitted.get(key),
        ]
        for key, name in NAMES.items()
    ]
    tp, fp, tn, fn = (
        confusion[key] for key in ("true_positive", "false_positive", "true_negative", "false_negative")
    )
    return Section(
        "Measures",
        [
            Table(
                ["measure", "value", "95 % interval", "cross-fitted"],
                rows,
                f"At the card's threshold, {metrics['threshold']:.3f}. {_about_intervals(metrics)} "
                f"{_about_crossfitting(metrics)}",
            ),
            Table(
                ["confusion matrix", "called IDC", "not called", "in all"],
                [
                    ["labelled IDC", tp, fn, tp + fn],
                    ["labelled not IDC", fp, tn, fp + tn],
                    ["in all", tp + fp, fn + tn, tp + fp + fn + tn],
                ],
            ),
        ],
    )


def _about_intervals(metrics: dict[str, Any]) -> str:
    drawn = metrics["bootstrap"]
    if drawn["patients"] < drawn["least_patients"]:
        some = f"{drawn['patients']} {drawn['of']}{'s' if drawn['patients'] > 1 else ''}"
        return f"No intervals: {some} to draw from, where {drawn['least_patients']} are the least that say something."
    return f"Intervals: {drawn['draws']:,} bootstrap draws of {drawn['of']}s, each with all patches or none."


def _about_crossfitting(metrics: dict[str, Any]) -> str:
    if metrics["not_crossfitted"]:
        return f"Not cross-fitted: {metrics['not_crossfitted']}."
    of = metrics["bootstrap"]["of"]
    return f"Cross-fitted: calibration and threshold of each {of} fitted on others."


def _calibration_section(evaluated: EvaluatedPatches, metrics: dict[str, Any]) -> Section:
    share = metrics["data"]["idc_patches"] / metrics["data"]["patches"]
    rows = [
        [
            CALIBRATION_NAMES[row["name"]],
            row["temperature"],
            row["log_odds_shift"],
            row["ece"],
            f"{row['mean_probability']:.1%}",
        ]
        for row in metrics["calibration"]
    ]
    return Section(
        "Calibration",
        [
            Table(
                ["probabilities", "temperature", "shift of log odds", "ECE", "mean probability"],
                rows,
                f"The mean probability should be the share of IDC, {share:.1%}.",
            ),
            Plots([plots.reliability_plot(evaluated), plots.distribution_plot(evaluated)]),
        ],
    )


def _threshold_section(evaluated: EvaluatedPatches, metrics: dict[str, Any]) -> Section:
    keys = ("threshold", "precision", "recall", "specificity", "f1", "balanced_accuracy")
    rows = [[row["name"], *(row[key] for key in keys)] for row in metrics["threshold_choices"]]
    return Section(
        "Threshold",
        [
            Table(
                ["choice", "threshold", "precision", "recall", "specificity", "F1", "balanced accuracy"],
                rows,
                "All but the card's are chosen on these very patches.",
            ),
            Plots([plots.threshold_plot(evaluated)]),
        ],
    )


def _patients_section(metrics: dict[str, Any]) -> Section:
    rows = sorted(
        metrics["patients"], key=lambda row: (row["idc_patches"] == 0, row["f1"] if row["idc_patches"] else 0)
    )
    spread = metrics["spread"]
    keys = (
        "patches",
        "idc_patches",
        "auroc",
        "f1",
        "recall",
        "precision",
        "balanced_accuracy",
        "false_positive",
        "false_negative",
    )
    return Section(
        "Patients" if metrics["data"]["by"] == "patient" else "Slides",
        [
            Table(
                ["measure", "median", "lowest", "highest", "of"],
                [
                    [NAMES[key], v["median"], v["lowest"], v["highest"], v["patients"]]
                    for key, v in spread.items()
                ],
                f"Between {metrics['data']['by']}s, each on its own patches; those where the measure has no "
                "meaning are left out.",
            ),
            Plots([plots.patients_plot(rows)]),
            Table(
                [
                    metrics["data"]["by"],
                    "patches",
                    "IDC",
                    "AUROC",
                    "F1",
                    "recall",
                    "precision",
                    "balanced accuracy",
                    "wrongly called",
                    "missed",
                ],
                [[row["patient"], *(row[key] for key in keys)] for row in rows],
                "Lowest F1 first; last, those without IDC.",
            ),
        ],
    )


def _slides_section(metrics: dict[str, Any], slides: Sequence[EvaluatedSlide]) -> Section:
    # Where the map shown is that of each patch alone, a column of the same numbers says nothing.
    in_context = any(slide.kind != PATCH_BY_PATCH for slide in slides)
    dices = ("dice", "dice_patch_alone") if in_context else ("dice",)

    def row(name: str, values: dict[str, Any]) -> list[Any]:
        areas = [f"{values[key]:.2f}" for key in ("labelled_mm2", "called_mm2")]
        return [
            name,
            *(values[key] for key in ("cells", "idc_cells", *dices, "recall", "specificity", "auroc")),
            *areas,
            f"{values['area_error_mm2']:+.2f}",
            f"{values['regions_mm2']:.2f}",
            f"{values['not_scored']:,} ({values['idc_not_scored']:,})",
        ]

    together = metrics["all_slides"]
    rows = [row(values["slide"], values) for values in metrics["slides"]]
    return Section(
        "Whole sections",
        [
            f"The same model through infer-slide, {slides[0].kind}, threshold {slides[0].threshold:.3f}, each "
            "cell of the map beside its label. Every labelled cell counts; "
            "one of IDC that the map does not score counts as missed.",
            Table(
                [
                    "slide",
                    "cells",
                    "IDC",
                    "Dice",
                    *(["Dice, patch alone"] if in_context else []),
                    "recall",
                    "specificity",
                    "AUROC",
                    "IDC mm2, labelled",
                    "IDC mm2, called",
                    "area error mm2",
                    "regions mm2",
                    "not scored (IDC)",
                ],
                [*rows, row("all", together)],
                "Dice is over cells. Area error: called less labelled, over labelled cells; on average "
                f"{together['mean_absolute_area_error_mm2']:.2f} mm2 a slide, either way. Regions are those of "
                "regions.geojson, without the smallest, wherever they lie.",
            ),
            plots.slide_picture_key(),
            Sheet([plots.slide_picture(slide) for slide in slides], cell_px=250),
        ],
    )


def _mistakes_section(evaluated: EvaluatedPatches) -> Section:
    blocks: list[Block] = [
        "The most confident first, of one patient no more than "
        f"{MISTAKES_A_PATIENT}: some are the network's mistakes, some are outlines drawn coarsely."
        if evaluated.side.by != "image"
        else "The most confident first.",
    ]
    for called, title in ((True, "Called IDC, labelled not:"), (False, "Labelled IDC, not called:")):
        indices = mistakes(evaluated, called_idc=called)
        blocks += (
            [title, Sheet([_mistake(evaluated, i) for i in indices], cell_px=125)]
            if indices
            else [f"{title} none."]
        )
    return Section("Mistakes", blocks)


def _mistake(evaluated: EvaluatedPatches, index: int) -> Any:
    side = evaluated.side
    return image(
        side.pixels[index],
        "\n".join(
            [
                *([] if side.by == "image" else [f"{side.by} {side.patients[index]}"]),
                _place(name_of(side, index)),
                f"probability {evaluated.probability[index]:.3f}",
            ]
        ),
    )


def _place(name: str) -> str:
    """Where the patch lies, if its name says so in the public set's way; else its name."""
    found = re.search(r"_x(\d+)_y(\d+)", name)
    return f"x {found[1]}, y {found[2]}" if found else name


def _with_interval(measure: dict[str, float]) -> str:
    interval = _interval(measure)
    return f"{measure['value']:.3f} ({interval})" if interval else f"{measure['value']:.3f}"


def _interval(measure: dict[str, float]) -> str:
    """Empty where there is none, of too few patients for one."""
    return "" if math.isnan(measure["low"]) else f"{measure['low']:.3f} to {measure['high']:.3f}"
