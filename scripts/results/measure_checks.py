"""How far near duplicates of explore-patches, the stain warning and the stain normalisation of infer-slide reach.

    python -m scripts.results.measure_checks ../shared/data --slides runs/results/slides

Copies of patches of the IDC set, changed in several ways, are planted among their originals and looked for. The
stain of each patient of the set, of its whole mounts and of other slides is compared with the shipped model's card.
The network of `--model` scores the validation patients with their stain brought more or less near that of training,
and as it does after the stain of each patient has been changed.
"""

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from wsi_pipeline.inference.stain_check import HUE_PATCHES, StainCheck, check_stain, slide_densities
from wsi_pipeline.learning.datasets import LabelledPatches, SplitOptions, load_split
from wsi_pipeline.learning.datasets.duplicates import near_pairs
from wsi_pipeline.learning.datasets.image_stats import thumbnail
from wsi_pipeline.learning.evaluation.metrics import auroc, crossfitted
from wsi_pipeline.learning.evaluation.patches import evaluate_patches
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.models.stain import normalise_stain, patch_densities, tables_of
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import make_overview

PLANTED = 300
STRENGTHS = (0.0, 0.5, 0.7, 0.9)
# Standard deviation of the logarithm of each channel's gain.
SPREADS = (0.0, 0.15, 0.3)


def main() -> int:
    """Print what was measured; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with idc/ and slides/")
    parser.add_argument("--slides", type=Path, help="a folder of whole mounts, *.tiff")
    parser.add_argument("--model", default="idc_default", help="a shipped model, or a .safetensors file")
    args = parser.parse_args()
    train, val = load_split(args.data / "idc", 50, SplitOptions())
    measure_duplicates(val)
    model = load_model(args.model)
    card = model.card
    measure_normalisation(model, val)
    measure_other_stains(model, val)
    for name, side in (("training", train), ("validation", val)):
        densities = [patch_densities(side.pixels[side.patients == p]) for p in np.unique(side.patients)]
        patients = [check_stain(one, card.stain) for one in densities]
        print_stain(f"{len(patients)} {name} patients", patients)
        exchanged = [check_stain(one[:, ::-1], card.stain) for one in densities if len(one) >= HUE_PATCHES]
        print_swapped(f"{len(patients)} {name} patients", patients)
        print_swapped(f"{len(exchanged)} of them with red and blue exchanged", exchanged)
    if args.slides:
        checks = [stain_of(path, card) for path in sorted(args.slides.glob("*.tiff"))]
        print_stain(f"{len(checks)} whole mounts", checks)
    for path in sorted((args.data / "slides").glob("*.svs")):
        print_stain(path.name, [stain_of(path, card, 0.5 if "no_mpp" in path.name else None)])
    return 0


def measure_duplicates(side: LabelledPatches) -> None:
    """Print the share of planted copies that is found, for each way of changing them."""
    chosen = np.random.default_rng(0).choice(len(side), PLANTED, replace=False)
    originals = [Image.fromarray(side.pixels[i]) for i in chosen]
    thumbnails = np.stack([thumbnail(side.pixels[i]) for i in chosen])
    for name, change in CHANGES.items():
        copies = np.stack([thumbnail(np.asarray(change(image).convert("RGB"))) for image in originals])
        both = np.concatenate([thumbnails, copies])
        contrast = both.mean(axis=3).std(axis=(1, 2))
        first, second = near_pairs(both, contrast)
        found = int(((first < PLANTED) & (second == first + PLANTED)).sum())
        print(f"near duplicates, {name}: {found / PLANTED:.1%} of {PLANTED} found", flush=True)


def measure_normalisation(model: Model, val: LabelledPatches) -> None:
    """Print how good the network's scores of the patches are at each strength."""
    for strength in STRENGTHS:
        card = replace(model.card, stain_normalisation=strength)
        print_measures(f"stain normalised by {strength:g}", replace(model, card=card), val)


def measure_other_stains(model: Model, val: LabelledPatches) -> None:
    """Print how good the model's scores are of patients whose channels' densities are each multiplied by chance."""
    for spread in SPREADS:
        rng = np.random.default_rng(0)
        pixels = val.pixels.copy()
        for patient in np.unique(val.patients):
            gain = np.exp(spread * rng.standard_normal(3))
            rows = val.patients == patient
            pixels[rows] = normalise_stain(pixels[rows], tables_of(gain))
        print_measures(f"each patient's stain changed, spread {spread:g}", model, replace(val, pixels=pixels))


def print_measures(name: str, model: Model, side: LabelledPatches) -> None:
    """Print how good the model's scores of the patches are, calibrated on the other patients."""
    idc = model.card.classes.index("idc")
    logits = evaluate_patches(model, side, torch.device("cpu")).logits
    reached = crossfitted(logits, side.labels, side.patients, idc)
    area = auroc(logits[:, idc] - logits[:, 1 - idc], side.labels)
    print(
        f"{name}: AUROC {area:.4f}, cross-fitted F1 {reached['f1']:.3f}, "
        f"balanced accuracy {reached['balanced_accuracy']:.3f}, ECE {reached['ece']:.3f}",
        flush=True,
    )


def stain_of(path: Path, card: ModelCard, mpp: float | None = None) -> StainCheck | None:
    """A slide's stain against the card's, as infer-slide measures it."""
    config = InferConfig()
    config = replace(config, grid=grid_for_model(config.grid, card.patch_px, card.mpp))
    slide = open_slide(path, mpp)
    return check_stain(
        slide_densities(slide, make_overview(slide, config.overview, config.grid).plan), card.stain
    )


def print_stain(name: str, found: list[StainCheck | None]) -> None:
    """Print the furthest of them, and how many are flagged."""
    known = [stain_check for stain_check in found if stain_check]
    flagged = sum(stain_check.is_far for stain_check in known)
    spreads, fold = (
        max(stain_check.spreads for stain_check in known),
        max(stain_check.hue_fold or 1 for stain_check in known),
    )
    print(
        f"stain, {name}: {flagged} flagged; furthest {spreads:.1f} spreads, {fold:.1f}-fold hue", flush=True
    )


def print_swapped(name: str, found: list[StainCheck | None]) -> None:
    """Print of how many red and blue look swapped."""
    print(f"red and blue, {name}: {sum(bool(one and one.swapped) for one in found)} look swapped", flush=True)


def _as_jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return change


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "flipped": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "enlarged twofold": lambda image: image.resize((100, 100), Image.Resampling.BICUBIC),
    "reduced to half": lambda image: image.resize((25, 25)),
    "JPEG of quality 75": _as_jpeg(75),
    "JPEG of quality 40": _as_jpeg(40),
    "cropped by a pixel": lambda image: image.crop((1, 1, 50, 50)),
    "3 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.03),
}


if __name__ == "__main__":
    sys.exit(main())
