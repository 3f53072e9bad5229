"""Measure the shipped model and the tissue finder on the IDC set, and write docs/results.md.

    python -m scripts.results.results ../shared/data --work runs/results

The whole mounts are re-assembled by the data folder's make_idc.py into the work folder, mapped by infer-slide's
own code, and compared patch by patch with their labels. Maps of an earlier call are used again.
"""

import argparse
import csv
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.doc_sections import kept_sections
from wsi_pipeline.base.errors import RecipeError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.device import choose_device
from wsi_pipeline.learning.datasets.load import load_side
from wsi_pipeline.learning.evaluation.metrics import (
    Decisions,
    auroc,
    calibration_error,
    choose_threshold,
    decide,
)
from wsi_pipeline.learning.evaluation.patches import split_of
from wsi_pipeline.learning.evaluation.robustness import (
    MOST_PATCHES,
    RobustnessRow,
    measure_robustness,
    sampled,
)
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.context import neighbour_mean
from wsi_pipeline.models.model import load_model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.results.store import SlideStore
from wsi_pipeline.slides.annotations.cell_labels import UNLABELLED, labels_of_picture
from wsi_pipeline.slides.annotations.files import PICTURE_SUFFIX
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import make_overview

ALONE, GAUSSIAN, CONTEXT = "each patch alone", "Gaussian of one patch", "context step"
GAUSSIAN_SIGMA = 1.0  # patches
CELL_MM2 = 0.04
# Validation slides with little IDC: what is called there is mostly false.
LITTLE_IDC = ("9036", "9078", "8914")
COVERS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Mapped:
    """One whole mount: its map and its labels, cell by cell."""

    patient: str
    # Of the labelled cells [n], NaN where not scored, by kind of map: each patch alone, the plain mean of
    # neighbours, after the context step (if the model has one; it is the map shown).
    maps: dict[str, NDArray[np.float64]]
    labels: NDArray[np.int_]  # [n] 1 IDC, 0 not
    tissue: NDArray[np.float32]  # [n] share of the cell that is tissue
    regions_mm2: float


def main() -> int:
    """Run the measurements; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with idc/ and make_idc.py")
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="slides and maps go here")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="idc_default", help="a shipped model, or a .safetensors file")
    args = parser.parse_args()

    slides = args.work / "slides"
    if not slides.is_dir():
        subprocess.run([sys.executable, args.data / "make_idc.py", "slides", slides], check=True)
    with (args.data / "idc/manifest.csv").open(newline="") as file:
        val = {row["patient"] for row in csv.DictReader(file) if row["split"] == "val"}
    config = InferConfig()
    classifier = Classifier([load_model(args.model)], choose_device(args.device), config.classify)
    mapped = []
    for path in sorted(slides.glob("*.tiff")):
        mapped.append(map_mount(path, args.work / "maps", config, classifier))
        print(f"{path.stem}: {len(mapped[-1].labels)} labelled patches", flush=True)
    model = classifier.models[0]
    side = load_side(args.data / "idc", model.card.patch_px, "val", split_of(model.card), mpp=model.card.mpp)
    some = sampled(side, MOST_PATCHES, seed=0)
    rows = measure_robustness(model, some, classifier.device, len(some))
    text = page([m for m in mapped if m.patient in val], mapped, classifier, rows, len(some))
    others = kept_sections(args.out)  # what other scripts wrote, in the meantime too, stays
    args.out.write_text("\n".join([text, *others]), encoding="utf-8")
    print(f"written: {args.out}")
    return 0


def map_mount(path: Path, out: Path, config: InferConfig, classifier: Classifier) -> Mapped:
    """The map of one whole mount beside its labels."""
    card = classifier.card
    try:
        result = infer_slide(path, out, config, classifier)
    except RecipeError:  # a map of another model or other options
        result = infer_slide(path, out, config, classifier, RunOptions(overwrite=True))
    store = SlideStore(result.folder / "slide.zarr")
    alone = store.array(f"{store.scores}/0").astype(np.float64)
    scored = ~np.isnan(alone)
    smoothed = neighbour_mean(np.nan_to_num(alone), scored, GAUSSIAN_SIGMA)
    maps = {ALONE: alone, GAUSSIAN: np.where(scored, smoothed, np.nan)}
    if classifier.models[0].context:
        maps[CONTEXT] = store.array("heatmap/0").astype(np.float64)
    grid = grid_for_model(config.grid, card.patch_px, card.mpp)
    slide = open_slide(path)
    plan = make_overview(slide, config.overview, grid).plan
    picture = path.with_name(f"{path.stem}{PICTURE_SUFFIX}")
    labels = labels_of_picture(picture, slide.size0, plan.grid.map_plane, alone.shape)
    known = labels != UNLABELLED
    return Mapped(
        path.stem,
        {kind: values[known] for kind, values in maps.items()},
        labels[known].astype(int),
        plan.tissue[known],
        result.idc_mm2 or 0.0,
    )


def last_epoch(card: ModelCard) -> bool:
    """Whether the network is that of its last epoch, which nobody chose."""
    return bool(card.training["config"].get("best_by") == "epoch")


def robustness_part(rows: list[RobustnessRow], patches: int) -> list[str]:
    """The lines on what changes of the patches cost."""
    return [
        "## What scanners, encoders and laboratories cost",
        "",
        f"{patches:,} of the validation patches, changed as `evaluate-model --robustness` changes them; at the card's "
        "threshold. Flipped: on the other side of it than the patch as it is.",
        "",
        "| patches changed | AUROC | change | F1 | balanced accuracy | flipped |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *[
            f"| {row.name} | {row.auroc:.3f} | {row.auroc_change:+.3f} | {row.f1:.3f} | {row.balanced_accuracy:.3f} | "
            f"{row.flipped:.1%} |"
            for row in rows
        ],
        "",
    ]


def page(
    val: list[Mapped],
    every: list[Mapped],
    classifier: Classifier,
    robustness: list[RobustnessRow],
    patches: int,
) -> str:
    """The text of docs/results.md."""
    card = classifier.card
    numbers, honest = card.metrics["val"], card.metrics["crossfitted"]
    patients = card.metrics["patients"]
    thresholds = map_thresholds(card)
    shown = CONTEXT if CONTEXT in thresholds else ALONE
    lines = [
        "# Results",
        "",
        "Written by `make results`, on the part of the public IDC set that docs/training.md describes. Nothing here "
        "was measured on the published test patients, nor on slides of another scanner.",
        "",
        f"Model `{card.name}`, {classifier.models[0].sha256[:12]}, {card.training['train']['patches']:,} training "
        f"patches of {card.training['train']['patients']} patients. {platform.machine()}, "
        f"{classifier.device}, {classifier.precision}.",
        "",
        "## Patches of the validation patients",
        "",
        f"{int(numbers['patches']):,} patches of {card.training['val']['patients']} patients, "
        f"{numbers['idc_share']:.1%} of them IDC. "
        f"{'Temperature' if last_epoch(card) else 'The best epoch, temperature'} and threshold were chosen on "
        "these same patients, which flatters; in the second row each patient's temperature and threshold come from "
        "the other patients. Since choices are made by cross-validation, four trainings were measured on them, at "
        "nine epochs in all, and twelve ways of the context step ([which](history.md#the-shipped-model)).",
        "",
        "| | AUROC | F1 | balanced accuracy | ECE |",
        "| --- | --- | --- | --- | --- |",
        f"| threshold {card.threshold:.3f} | {numbers['auroc']:.3f} | {numbers['f1']:.3f} | "
        f"{numbers['balanced_accuracy']:.3f} | {numbers['ece']:.3f} |",
        f"| cross-fitted by patient | {numbers['auroc']:.3f} | {honest['f1']:.3f} | "
        f"{honest['balanced_accuracy']:.3f} | {honest['ece']:.3f} |",
        "",
        "Between patients (median, lowest, highest): "
        + "; ".join(
            f"{name.replace('_', ' ')} {v['median']:.2f} ({v['lowest']:.2f} to {v['highest']:.2f})"
            for name, v in patients.items()
        )
        + ".",
        "",
        "Published, on the official test patients: F1 0.718 and balanced accuracy 0.842 (Cruz-Roa 2014); 0.765 and "
        "0.847 (Janowczyk and Madabhushi 2016). Those are other patients: the rows cannot be compared one to one.",
        "",
        *robustness_part(robustness, patches),
        "## Maps of the validation patients' whole mounts",
        "",
        f"`infer-slide` as shipped; the map shown: {shown}. Every labelled patch of the set counts; an IDC patch that "
        "the map does not score counts as missed. Dice is over patches.",
        "",
        "| slide | patches | IDC | Dice | sensitivity | specificity | AUROC | IDC mm2, labelled | IDC mm2, regions | "
        "not scored (of them IDC) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *[slide_row(m, shown, thresholds[shown]) for m in val],
        slide_row(together(val), shown, thresholds[shown]),
        "",
        "Regions are those of regions.geojson: connected cells above the threshold, of 0.1 mm2 or more.",
        "",
        *context_part(card, val, thresholds),
        "## Tissue",
        "",
        f"On all {len(every)} whole mounts ({sum(len(m.labels) for m in every):,} labelled patches, "
        f"{sum(int(m.labels.sum()) for m in every):,} of them IDC), labelled patches kept when tissue must cover at "
        "least this much of them:",
        "",
        "| least cover | labelled patches kept | IDC patches lost |",
        "| --- | --- | --- |",
        *[cover_row(every, cover) for cover in COVERS],
        "",
    ]
    return "\n".join(lines)


def map_thresholds(card: ModelCard) -> dict[str, float]:
    """The threshold of each kind of map, none of them chosen on the slides evaluated here."""
    if card.context is None:
        return {ALONE: card.threshold}
    chosen = card.context.metrics["thresholds"]
    return {ALONE: card.threshold, GAUSSIAN: chosen["gaussian"], CONTEXT: card.context.threshold}


def context_part(card: ModelCard, val: list[Mapped], thresholds: dict[str, float]) -> list[str]:
    """The lines on what the context step does; none where the model has none."""
    if card.context is None:
        return []
    trained, everything = card.context.training["train"], together(val)
    return [
        "## What the context step does",
        "",
        f"The same slides: each patch alone; the plain mean of its neighbours' probabilities (Gaussian of one patch, "
        f"over scored cells); the context step (`{card.context.kind}`), made on {len(trained['slides'])} other whole "
        f"mounts ({trained['patches']:,} patches, {trained['idc']:,} IDC). The thresholds of the Gaussian and of the "
        "step, and the step's calibration, were chosen on those other slides; that of each patch "
        "alone is the model's, chosen on the validation patients. The two columns at the right take, for each map, "
        "the threshold that is best on these very slides (highest mean of F1 and balanced accuracy): they flatter "
        "all three alike.",
        "",
        "| map | threshold | F1 (Dice) | balanced accuracy | AUROC | ECE | F1, best threshold | balanced accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *[map_row(everything, kind, threshold) for kind, threshold in thresholds.items()],
        "",
        "Dice by slide:",
        "",
        "| map | " + " | ".join(m.patient for m in val) + " |",
        "| --- |" + " --- |" * len(val),
        *[
            f"| {kind} | " + " | ".join(f"{decisions_of(m, kind, t).f1:.3f}" for m in val) + " |"
            for kind, t in thresholds.items()
        ],
        "",
        "False alarms on the sections with little IDC, mm2 of labelled patches called IDC that are not (and IDC "
        "missed, mm2):",
        "",
        "| map | " + " | ".join(LITTLE_IDC) + " |",
        "| --- |" + " --- |" * len(LITTLE_IDC),
        *[false_alarm_row(val, kind, threshold) for kind, threshold in thresholds.items()],
        "",
    ]


def map_row(mapped: Mapped, kind: str, threshold: float) -> str:
    """One kind of map, all slides' patches together."""
    values = mapped.maps[kind]
    scored = ~np.isnan(values)
    best = choose_threshold(values[scored], mapped.labels[scored])
    own, top = decisions_of(mapped, kind, threshold), decisions_of(mapped, kind, best)
    return (
        f"| {kind} | {threshold:.3f} | {own.f1:.3f} | {own.balanced_accuracy:.3f} | "
        f"{auroc(values[scored], mapped.labels[scored]):.3f} | "
        f"{calibration_error(values[scored], mapped.labels[scored]):.3f} | "
        f"{top.f1:.3f} | {top.balanced_accuracy:.3f} |"
    )


def false_alarm_row(mapped: list[Mapped], kind: str, threshold: float) -> str:
    """What one kind of map calls falsely, and misses, on the sections with little IDC."""
    cells = []
    for m in (m for name in LITTLE_IDC for m in mapped if m.patient == name):
        d = decisions_of(m, kind, threshold)
        cells.append(f"{d.false_positive * CELL_MM2:.2f} ({d.false_negative * CELL_MM2:.2f})")
    return f"| {kind} | " + " | ".join(cells) + " |"


def decisions_of(mapped: Mapped, kind: str, threshold: float) -> Decisions:
    """What the threshold makes of a map; not scored is not IDC."""
    return decide(np.nan_to_num(mapped.maps[kind], nan=-1), mapped.labels, threshold)


def slide_row(mapped: Mapped, kind: str, threshold: float) -> str:
    """One slide's row of the table."""
    values = mapped.maps[kind]
    d, scored = decisions_of(mapped, kind, threshold), ~np.isnan(values)
    lost = mapped.labels[~scored]
    return (
        f"| {mapped.patient} | {len(mapped.labels):,} | {mapped.labels.sum():,} | {d.f1:.3f} | {d.recall:.3f} | "
        f"{d.specificity:.3f} | {auroc(values[scored], mapped.labels[scored]):.3f} | "
        f"{mapped.labels.sum() * CELL_MM2:.2f} | {mapped.regions_mm2:.2f} | {len(lost):,} ({lost.sum()}) |"
    )


def together(mapped: list[Mapped]) -> Mapped:
    """All slides' patches as of one."""
    return Mapped(
        "**all**",
        {kind: np.concatenate([m.maps[kind] for m in mapped]) for kind in mapped[0].maps},
        np.concatenate([m.labels for m in mapped]),
        np.concatenate([m.tissue for m in mapped]),
        sum(m.regions_mm2 for m in mapped),
    )


def cover_row(mapped: list[Mapped], cover: float) -> str:
    """How much a least cover keeps and loses."""
    kept = np.concatenate([m.tissue >= cover for m in mapped])
    labels = np.concatenate([m.labels for m in mapped])
    return f"| {cover:g} | {kept.mean():.1%} | {int((~kept & (labels == 1)).sum())} |"


if __name__ == "__main__":
    sys.exit(main())
