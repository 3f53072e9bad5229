"""Measure the shipped model and the tissue finder on the IDC set, and write docs/results.md.

    python scripts/results.py ../shared/data --work runs/results

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
import zarr
from doc_sections import kept_section
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.classify import Classifier, choose_device
from wsi_pipeline.config import InferConfig
from wsi_pipeline.errors import RecipeError
from wsi_pipeline.evaluate import Decisions, auroc, decide
from wsi_pipeline.model import load_model
from wsi_pipeline.pipeline import grid_for_model, infer_slide
from wsi_pipeline.slide import open_slide
from wsi_pipeline.survey import survey_slide

NO_LABEL = 255
COVERS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Mapped:
    """One whole mount: its map and its labels, cell by cell."""

    patient: str
    probability: NDArray[np.float32]  # [n] of the labelled cells, NaN where not scored
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
    args = parser.parse_args()

    slides = args.work / "slides"
    if not slides.is_dir():
        subprocess.run([sys.executable, args.data / "make_idc.py", "slides", slides], check=True)
    with (args.data / "idc/manifest.csv").open(newline="") as file:
        val = {row["patient"] for row in csv.DictReader(file) if row["split"] == "val"}
    config = InferConfig()
    classifier = Classifier(load_model("idc_default"), choose_device(args.device), config.classify)
    mapped = []
    for path in sorted(slides.glob("*.tiff")):
        mapped.append(map_mount(path, args.work / "maps", config, classifier))
        print(f"{path.stem}: {len(mapped[-1].labels)} labelled patches", flush=True)
    compared = [kept_section(args.out, name) for name in ("comparison", "splits")]
    text = page([m for m in mapped if m.patient in val], mapped, classifier)
    args.out.write_text("\n".join([text, *filter(None, compared)]), encoding="utf-8")
    print(f"written: {args.out}")
    return 0


def map_mount(path: Path, out: Path, config: InferConfig, classifier: Classifier) -> Mapped:
    """The map of one whole mount beside its labels."""
    card = classifier.model.card
    try:
        result = infer_slide(path, out, config, classifier)
    except RecipeError:  # a map of another model or other options
        result = infer_slide(path, out, config, classifier, overwrite=True)
    heatmap = np.asarray(zarr.open_array(result.folder / "slide.zarr/heatmap/0", mode="r")[...])
    grid = grid_for_model(config.grid, card.patch_px, card.mpp)
    share = survey_slide(open_slide(path), config, grid).plan.tissue
    labels = cell_labels(path.with_name(f"{path.stem}_labels.png"), heatmap.shape, card.patch_px)
    known = labels != NO_LABEL
    return Mapped(path.stem, heatmap[known], labels[known].astype(int), share[known], result.idc_mm2 or 0.0)


def cell_labels(path: Path, shape: tuple[int, ...], patch_px: int) -> NDArray[np.uint8]:
    """uint8 [row, column]: the label of each cell's patch, 255 where the set has none."""
    labels = np.asarray(Image.open(path))
    height, width = shape[0] * patch_px, shape[1] * patch_px
    padded = np.full((height, width), NO_LABEL, np.uint8)
    padded[: labels.shape[0], : labels.shape[1]] = labels[:height, :width]
    # Patches are labelled whole, and start where cells start: any of their pixels says it.
    return padded[::patch_px, ::patch_px]


def page(val: list[Mapped], every: list[Mapped], classifier: Classifier) -> str:
    """The text of docs/results.md."""
    card = classifier.model.card
    numbers, honest = card.metrics["val"], card.metrics["crossfitted"]
    patients = card.metrics["patients"]
    lines = [
        "# Results",
        "",
        "Written by `make results`, on the part of the public IDC set that docs/training.md describes. Nothing here "
        "was measured on the published test patients, nor on slides of another scanner.",
        "",
        f"Model `{card.name}`, {classifier.model.sha256[:12]}, {card.training['train']['patches']:,} training "
        f"patches of {card.training['train']['patients']} patients. {platform.machine()}, "
        f"{classifier.device}, {classifier.precision}.",
        "",
        "## Patches of the validation patients",
        "",
        f"{int(numbers['patches']):,} patches of {card.training['val']['patients']} patients, "
        f"{numbers['idc_share']:.1%} of them IDC. The best epoch, the temperature and the threshold were chosen on "
        "these same patients, which flatters; in the second row each patient's temperature and threshold come from "
        "the other patients.",
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
        "## Maps of the validation patients' whole mounts",
        "",
        "`infer-slide` as shipped, each patch alone. Every labelled patch of the set counts; an IDC patch that the map "
        "does not score counts as missed. Dice is over patches.",
        "",
        "| slide | patches | IDC | Dice | sensitivity | specificity | AUROC | IDC mm2, labelled | IDC mm2, regions | "
        "not scored (of them IDC) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *[slide_row(m, card.threshold) for m in val],
        total_row(val, card.threshold),
        "",
        "Regions are those of regions.geojson: connected cells above the threshold, of 0.1 mm2 or more.",
        "",
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


def decisions_of(mapped: Mapped, threshold: float) -> Decisions:
    """What the threshold makes of the map; not scored is not IDC."""
    return decide(np.nan_to_num(mapped.probability, nan=-1), mapped.labels, threshold)


def slide_row(mapped: Mapped, threshold: float) -> str:
    """One slide's row of the table."""
    d, scored = decisions_of(mapped, threshold), ~np.isnan(mapped.probability)
    lost = mapped.labels[~scored]
    return (
        f"| {mapped.patient} | {len(mapped.labels):,} | {mapped.labels.sum():,} | {d.f1:.3f} | {d.recall:.3f} | "
        f"{d.specificity:.3f} | {auroc(mapped.probability[scored], mapped.labels[scored]):.3f} | "
        f"{mapped.labels.sum() * 0.04:.2f} | {mapped.regions_mm2:.2f} | {len(lost):,} ({lost.sum()}) |"
    )


def total_row(mapped: list[Mapped], threshold: float) -> str:
    """All slides' patches together."""
    probability = np.concatenate([m.probability for m in mapped])
    labels = np.concatenate([m.labels for m in mapped])
    everything = Mapped("**all**", probability, labels, probability, sum(m.regions_mm2 for m in mapped))
    return slide_row(everything, threshold)


def cover_row(mapped: list[Mapped], cover: float) -> str:
    """How much a least cover keeps and loses."""
    kept = np.concatenate([m.tissue >= cover for m in mapped])
    labels = np.concatenate([m.labels for m in mapped])
    return f"| {cover:g} | {kept.mean():.1%} | {int((~kept & (labels == 1)).sum())} |"


if __name__ == "__main__":
    sys.exit(main())
