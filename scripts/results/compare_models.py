"""Models beside each other as they ship, at their own calibration and thresholds: what changed from one to the next.

On the published validation patients: patches, the same stored as JPEG, and whole mounts, each patch alone, as the plain
mean of its neighbours and after the context step. Then slides from elsewhere. Each model as it ships, and where its
network hears of its slide, also without.

python -m scripts.results.compare_models before=runs/before/idc_before.safetensors shipped=idc_default \\
    --data ../shared/data --slides runs/results/slides --out docs/results.md
"""

import argparse
import csv
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.doc_sections import put_section
from scripts.results.measure_stain import labelled_core, patches_of_picture
from scripts.results.paired_rows import Measured, cells, heading, measured
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.labelled_slides import find_labelled_slides, score_slide
from wsi_pipeline.learning.datasets.load import load_side
from wsi_pipeline.learning.datasets.scanner_effects import as_jpeg
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import draw_patients
from wsi_pipeline.learning.evaluation.patches import split_of
from wsi_pipeline.learning.evaluation.robustness import MOST_PATCHES, Change, sampled
from wsi_pipeline.models.context import apply_context, neighbour_mean
from wsi_pipeline.models.logits import evaluate, evaluate_by_slide
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.models.stain import as_the_card_wants, normalise_stain, tables_of
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.names import slide_name

Floats = NDArray[np.floating]
CPU = torch.device("cpu")
QUALITY = 80
FROZEN = {"frozen section": "frozen_section.jpg", "the same on tinted glass": "frozen_tinted_glass.jpg"}
ABOUT = (
    "Each model at its own calibration and thresholds, in float32, on the published validation patients (on whose "
    "patches both were chosen for each patch alone; for the Gaussian and the step on others' mounts); in brackets 95"
    " % intervals over patients, after the semicolon the difference to the first model, draw by draw. *before* is "
    "the model that was shipped before networks heard of their slide (`git show "
    "773f767:wsi_pipeline/models/weights/idc_default.safetensors`, and its .json). *Unheard*: the network is told "
    "nothing of the slide. *Elsewhere*: AUROC on {core} patches of a core biopsy of another laboratory (outlines "
    "drawn by eye; one slide decides nothing), and the share of patches called IDC in two frozen sections, which "
    "have no labels. Then the last model on some of the validation patches, changed patient by patient. Written by "
    "`python -m scripts.results.compare_models NAME=MODEL... --data ../shared/data --slides runs/results/slides "
    "--out docs/results.md`."
)

log = logging.getLogger("compare_models")


def main() -> None:
    """Ask all models, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL", help="the first is compared with")
    parser.add_argument("--data", type=Path, required=True, help="the folder with idc/, slides/ and frozen/")
    parser.add_argument("--slides", type=Path, required=True, help="whole mounts, labels beside them")
    parser.add_argument("--out", type=Path, help="a page whose section is written anew")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    models = {name: load_model(path) for name, _, path in (given.partition("=") for given in options.models)}
    rows: dict[str, list[str]] = {}
    first: dict[str, Measured] = {}
    for name, model in models.items():
        log.info("%s: %s", name, model.sha256[:12])
        for what, found in measured_rows(model, options.data, options.slides):
            row = cells(found, first.get(what), intervals=True)
            first.setdefault(what, found)
            rows.setdefault(what, []).append(f"| {what}: {name} | {' | '.join(row)} |")
    elsewhere, core = rows_elsewhere(models, options.data)
    last = list(models.values())[-1]
    if hears(last):
        side = load_side(
            options.data / "idc", last.card.patch_px, "val", split_of(last.card), mpp=last.card.mpp
        )
        elsewhere += ["", *rows_of_strange_slides(last, sampled(side, MOST_PATCHES, seed=0))]
    names = "; ".join(f"*{name}* {model.sha256[:12]}" for name, model in models.items())
    lines = [line for group in rows.values() for line in group]
    text = "\n".join([f"{names}.", "", *heading("what: model"), *lines, "", *elsewhere])
    print(text)
    if options.out:
        about = ABOUT.format(core=core)
        put_section(options.out, "before", f"## Before and after\n\n{about}\n\n{text}")


def measured_rows(model: Model, data: Path, slides: Path) -> Iterator[tuple[str, Measured]]:
    """What the model reaches on each kind of input."""
    side = load_side(data / "idc", model.card.patch_px, "val", split_of(model.card), mpp=model.card.mpp)
    resampled = draw_patients(side.patients)
    stored = replace(side, pixels=as_jpeg(side.pixels, QUALITY))
    for what, patches, heard in (
        ("patches", side, True),
        ("patches, unheard", side, False),
        (f"patches as JPEG 4:2:0, quality {QUALITY}", stored, True),
    ):
        probability = probability_of(model, patches, heard)
        yield what, measured(probability, probability >= model.card.threshold, side.labels, resampled)
    yield from _of_mounts(model, data, slides)


def probability_of(model: Model, side: LabelledPatches, heard: bool = True) -> Floats:
    """Calibrated probabilities [N] of patches, the network hearing of each patient or not."""
    card = model.card
    pixels = as_the_card_wants(side.pixels, side.patients, card)
    if heard:
        logits = evaluate_by_slide(model.network, card, pixels, side.patients, CPU)
    else:
        logits = evaluate(model.network, card, pixels, CPU)
    calibration = metrics.Calibration(card.temperature, card.log_odds_shift)
    return metrics.calibrated(logits, calibration, card.classes.index("idc"))


def _of_mounts(model: Model, data: Path, folder: Path) -> Iterator[tuple[str, Measured]]:
    with (data / "idc/manifest.csv").open(newline="") as file:
        val = {row["patient"] for row in csv.DictReader(file) if row["split"] == "val"}
    classifier = Classifier([model], CPU, ClassifyOptions(precision="fp32"))
    slides = [
        score_slide(path, known, classifier, InferConfig(), AnnotationOptions(), views=1)
        for path, known in find_labelled_slides(folder)
        if slide_name(path) in val
    ]
    labels = np.concatenate([slide.labels[slide.evaluated] == 1 for slide in slides]).astype(int)
    patients = np.repeat([slide.patient for slide in slides], [slide.evaluated.sum() for slide in slides])
    resampled = draw_patients(patients)

    def of_each(kind: str) -> Floats:
        parts = []
        for slide in slides:
            alone = slide.patch_probability[0]
            if kind == "Gaussian":
                filled = np.nan_to_num(alone).astype(np.float64)
                parts.append(neighbour_mean(filled, ~np.isnan(alone), 1.0)[slide.evaluated])
            elif kind == "context step" and model.context:
                parts.append(apply_context(alone, model.context)[slide.evaluated])
            else:
                parts.append(alone[slide.evaluated])
        return np.concatenate(parts)

    thresholds = {"alone": model.card.threshold}
    if model.context:
        thresholds["Gaussian"] = model.context.card.metrics["thresholds"]["gaussian"]
        thresholds["context step"] = model.context.card.threshold
    for kind, threshold in thresholds.items():
        probability = of_each(kind)
        yield f"whole mounts, {kind}", measured(probability, probability >= threshold, labels, resampled)


def rows_elsewhere(models: dict[str, Model], data: Path) -> tuple[list[str], int]:
    """A table of slides from elsewhere, and how many labelled patches one of them has."""
    lines = [
        "| elsewhere | core biopsy, AUROC | " + " | ".join(FROZEN) + " |",
        "| --- | ---: | " + " | ".join("---:" for _ in FROZEN) + " |",
    ]
    for name, model in models.items():
        core, _ = labelled_core(data / "slides", model)
        pictures = []
        for picture in FROZEN.values():
            patches = patches_of_picture(data / "frozen" / picture, model)
            nobody = np.zeros(len(patches), np.uint8)
            pictures.append(LabelledPatches(patches, nobody, np.full(len(patches), "a"), "slide"))
        for heard in (True, False):
            if not heard and not hears(model):
                continue
            shown = [f"{metrics.auroc(probability_of(model, core, heard), core.labels):.3f}"]
            for side in pictures:
                called = probability_of(model, side, heard) >= model.card.threshold
                shown.append(f"{called.mean():.0%}")
            lines.append(f"| {name}{'' if heard else ', unheard'} | {' | '.join(shown)} |")
    return lines, len(core)


def rows_of_strange_slides(model: Model, side: LabelledPatches) -> list[str]:
    """A table of patches changed far beyond what the network was trained on: hearing of their slide, and not."""
    lines = [
        "| patients changed, all patches alike | heard: AUROC, F1 | unheard | patients farther than training slides |",
        "| --- | --- | --- | ---: |",
    ]
    names = np.unique(side.patients)
    for what, change in STRANGE.items():
        pixels = np.empty_like(side.pixels)
        for number, name in enumerate(names):
            rows = np.flatnonzero(side.patients == name)
            pixels[rows] = change(side.pixels[rows], np.random.default_rng(number))
        changed = replace(side, pixels=pixels)
        shown = []
        for heard in (True, False):
            probability = probability_of(model, changed, heard)
            decisions = metrics.decide(probability, side.labels, model.card.threshold)
            shown.append(f"{metrics.auroc(probability, side.labels):.3f}, {decisions.f1:.3f}")
        pixels = as_the_card_wants(pixels, side.patients, model.card)
        features = evaluate(model.network, model.card, pixels, CPU, features=True)
        distances = [model.network.distance_of(features[side.patients == name]) for name in names]  # type: ignore[operator]
        known = np.array([distance for distance in distances if distance is not None])
        lines.append(f"| {what} | {' | '.join(shown)} | {(known > 1).sum()} of {len(known)} |")
    return lines


def by_stain(spread: float) -> Change:
    """Each of a patient's channels multiplied in density by a factor whose logarithm has this spread."""
    return lambda pixels, random: normalise_stain(
        pixels, tables_of(np.exp(spread * random.standard_normal(3)))
    )


def by_light(power: float, factor: float = 1.0) -> Change:
    """Grey values of 0 to 1 to this power, times this factor."""
    values = (255 * factor * (np.arange(256) / 255) ** power).round().clip(0, 255).astype(np.uint8)
    return lambda pixels, random: values[pixels]


STRANGE = {
    "as they are": by_stain(0.0),
    "stains, spread 0.3": by_stain(0.3),
    "stains, spread 0.5": by_stain(0.5),
    "stains, spread 0.8": by_stain(0.8),
    "gamma 0.6": by_light(0.6),
    "gamma 1.6": by_light(1.6),
    "darker by a quarter": by_light(1.0, 0.75),
}


def hears(model: Model) -> bool:
    """Whether its network hears of its slide."""
    return bool(model.card.architecture_options.get("slide_condition"))


if __name__ == "__main__":
    main()
