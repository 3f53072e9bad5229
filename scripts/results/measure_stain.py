"""What each way of normalising a slide's stain does to the shipped network's answers.

    python -m scripts.results.measure_stain ../shared/data --into docs/results.md

The network scores validation patches of the IDC set as they are, and after the stain of each patient was changed by
chance; all labelled patches of those patients of whom most of a section is there; labelled patches of a slide of
another laboratory; and frozen sections, which have no labels. Each patient's, or slide's, stain is measured on 64 of
its patches, as infer-slide does. What Macenko's and Reinhard's methods bring it to is measured on patches of the
training patients.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from scripts.doc_sections import put_section
from wsi_pipeline.base.errors import DataError
from wsi_pipeline.inference.stain_check import sample_patches
from wsi_pipeline.learning.datasets import LabelledPatches, SplitOptions, load_split
from wsi_pipeline.learning.evaluation.metrics import auroc, crossfitted
from wsi_pipeline.learning.evaluation.patches import evaluate_patches
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.models.stain import (
    FULLY_COUNTED,
    normalise_stain,
    patch_densities,
    stain_tables,
    tables_of,
)
from wsi_pipeline.models.stain_methods import Found, PixelMethod, colour_table, find_stains
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.slides.annotations.cell_labels import drawn_on_slide
from wsi_pipeline.slides.resample import resample
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import make_overview
from wsi_pipeline.tiling.patch_labels import label_patches
from wsi_pipeline.tiling.patches import read_blocks

Pixels: TypeAlias = NDArray[np.uint8]
# A method: new pixels of one slide's patches, from them and from the sample of the slide.
Method: TypeAlias = Callable[[Pixels, Pixels], Pixels]

# Of each validation patient at most so many patches, of each training patient so many for the reference.
VALIDATION, REFERENCE = 100, 20
# Of a patient with so many patches most of a section is there.
MOST_OF_A_SECTION = 500
# Standard deviation of the logarithm of each channel's gain, where stains are changed by chance.
SPREADS = (0.0, 0.15, 0.3)
FROZEN_MPP = 0.687
# Patches of a picture whose mean optical density in green is lower are glass.
LEAST_DENSITY = 0.08


def main() -> int:
    """Print what was measured, and write it into a page; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with idc/, slides/ and frozen/")
    parser.add_argument("--model", default="idc_default", help="a shipped model, or a .safetensors file")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the table into this page")
    args = parser.parse_args()
    model = load_model(args.model)
    train, val = load_split(args.data / "idc", model.card.patch_px, SplitOptions())
    methods = methods_of(model, some_of_each(train, REFERENCE).pixels)
    sections = whole_sections(val)
    val = some_of_each(val, VALIDATION)
    rows: dict[str, list[str]] = {name: [] for name in methods}
    for spread in SPREADS:
        changed = with_other_stains(val, spread)
        for name, method in methods.items():
            rows[name].append(measured(model, by_patient(changed, method)))
            print(f"spread {spread:g}, {name}: {rows[name][-1]}", flush=True)
    for name, method in methods.items():
        rows[name].append(measured(model, by_patient(sections, method)))
        print(f"whole sections, {name}: {rows[name][-1]}", flush=True)
    core, sample = labelled_core(args.data / "slides", model)
    for name, method in methods.items():
        side = replace(core, pixels=method(core.pixels, sample))
        logits, idc = logits_of(model, side), model.card.classes.index("idc")
        rows[name].append(f"{auroc(logits[:, idc] - logits[:, 1 - idc], side.labels):.3f}")
        print(f"breast_40x, {name}: {rows[name][-1]}", flush=True)
    for picture in ("frozen_section.jpg", "frozen_tinted_glass.jpg"):
        patches = patches_of_picture(args.data / "frozen" / picture, model)
        for name, method in methods.items():
            share = share_of_idc(model, method(patches, spread_over(patches)))
            rows[name].append(f"{share:.0%}")
            print(f"{picture}, {len(patches)} patches, {name}: {share:.1%} IDC", flush=True)
    if args.into:
        put_section(args.into, "stains", page(rows, val, sections, len(core)))
    return 0


def methods_of(model: Model, reference: Pixels) -> dict[str, Method]:
    """The ways of normalising that are compared, by what the table calls them."""

    def gain(strength: float) -> Method:
        def apply(patches: Pixels, sample: Pixels) -> Pixels:
            return normalise_stain(patches, stain_tables(patch_densities(sample), model.card.stain, strength))

        return apply

    def by_pixels(method: PixelMethod, strength: float) -> Method:
        aim: Found = find_stains(method, reference)

        def apply(patches: Pixels, sample: Pixels) -> Pixels:
            try:
                return colour_table(find_stains(method, sample), aim, strength).applied(patches)
            except DataError as error:
                print(f"{method}: left as it is: {error}", flush=True)
                return patches

        return apply

    return {
        "none": lambda patches, _: patches,
        "gain, 0.7 of the way (as shipped)": gain(0.7),
        "gain, all the way": gain(1.0),
        "Macenko, half of the way": by_pixels("macenko", 0.5),
        "Macenko, all the way": by_pixels("macenko", 1.0),
        "Reinhard, half of the way": by_pixels("reinhard", 0.5),
        "Reinhard, all the way": by_pixels("reinhard", 1.0),
    }


def spread_over(patches: Pixels) -> Pixels:
    """As many of them as a slide is sampled at, evenly taken."""
    count = min(FULLY_COUNTED, len(patches))
    return patches[np.linspace(0, len(patches) - 1, count).astype(int)]


def some_of_each(side: LabelledPatches, most: int) -> LabelledPatches:
    """At most so many patches of each patient, drawn by chance, always the same."""
    rng, rows = np.random.default_rng(0), []
    for patient in np.unique(side.patients):
        own = np.flatnonzero(side.patients == patient)
        rows.append(rng.permutation(own)[:most])
    return side.taken(np.sort(np.concatenate(rows)))


def whole_sections(side: LabelledPatches) -> LabelledPatches:
    """All patches of the patients of whom most of a section is there."""
    patients, counts = np.unique(side.patients, return_counts=True)
    return side.taken(np.flatnonzero(np.isin(side.patients, patients[counts >= MOST_OF_A_SECTION])))


def with_other_stains(side: LabelledPatches, spread: float) -> LabelledPatches:
    """The patches, each patient's channels multiplied in density by a factor of its own."""
    rng, pixels = np.random.default_rng(0), side.pixels.copy()
    for patient in np.unique(side.patients):
        gain, rows = np.exp(spread * rng.standard_normal(3)), side.patients == patient
        if spread:
            pixels[rows] = normalise_stain(pixels[rows], tables_of(gain))
    return replace(side, pixels=pixels)


def by_patient(side: LabelledPatches, method: Method) -> LabelledPatches:
    """The patches, each patient's normalised by the method."""
    pixels = np.empty_like(side.pixels)
    for patient in np.unique(side.patients):
        rows = side.patients == patient
        own = side.pixels[rows]
        pixels[rows] = method(own, spread_over(own))
    return replace(side, pixels=pixels)


def logits_of(model: Model, side: LabelledPatches) -> NDArray[np.float32]:
    """The network's answers to pixels that are normalised already."""
    card = replace(model.card, stain_normalisation=0.0)
    return evaluate_patches(replace(model, card=card), side, torch.device("cpu")).logits


def measured(model: Model, side: LabelledPatches) -> str:
    """AUROC and F1, the latter calibrated on the other patients."""
    idc, logits = model.card.classes.index("idc"), logits_of(model, side)
    reached = crossfitted(logits, side.labels, side.patients, idc)
    return f"{auroc(logits[:, idc] - logits[:, 1 - idc], side.labels):.3f}, {reached['f1']:.3f}"


def labelled_core(folder: Path, model: Model) -> tuple[LabelledPatches, Pixels]:
    """The labelled patches of breast_40x.svs at the model's scale, and the sample of it that infer-slide would take."""
    config = InferConfig()
    grid = grid_for_model(config.grid, model.card.patch_px, model.card.mpp)
    with open_slide(folder / "breast_40x.svs") as slide:
        plan = make_overview(slide, config.overview, grid).plan
        drawn = drawn_on_slide(folder / "breast_40x.geojson", slide, config.annotations)
        labels = np.full(plan.kept.shape, -1, np.int8)
        labels[plan.kept] = label_patches(plan, drawn, config.annotations)
        found = {}
        for block, cut in read_blocks(plan.blocks(), plan.grid, plan.grid.reader(slide), 1):
            for (column, row), rgb in zip(block.patches.tolist(), cut.rgb, strict=True):
                if labels[row, column] >= 0:
                    found[row, column] = rgb
        sample = sample_patches(slide, plan)
    known = np.array([labels[cell] for cell in found], np.uint8)
    side = LabelledPatches(np.stack(list(found.values())), known, np.full(len(known), "breast_40x"), "slide")
    return side, sample


def patches_of_picture(path: Path, model: Model) -> Pixels:
    """Patches of tissue of a photograph, cut side by side at the model's scale."""
    Image.MAX_IMAGE_PIXELS = None
    rgb, size = np.asarray(Image.open(path).convert("RGB")), model.card.patch_px
    step = model.card.mpp / FROZEN_MPP
    columns, rows = (int(length / (step * size)) for length in (rgb.shape[1], rgb.shape[0]))
    plane = resample(rgb, columns * size, rows * size, (0, 0), (step, step))
    patches = plane.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    return np.ascontiguousarray(patches[patch_densities(patches)[:, 1] >= LEAST_DENSITY])


def share_of_idc(model: Model, patches: Pixels) -> float:
    """The share of patches, all of one slide, whose calibrated probability reaches the card's threshold."""
    nobody = np.zeros(len(patches), np.uint8)
    side = LabelledPatches(patches, nobody, np.full(len(patches), "a"), "slide")
    card = replace(model.card, stain_normalisation=0.0)
    found = evaluate_patches(replace(model, card=card), side, torch.device("cpu"))
    return float((found.probability >= card.threshold).mean())


def page(rows: dict[str, list[str]], val: LabelledPatches, sections: LabelledPatches, core: int) -> str:
    """The section of the page."""
    columns = (
        "stain normalised by",
        *("as scanned", "spread 0.15", "spread 0.3", "whole sections", "core biopsy"),
        *("frozen", "frozen, tinted glass"),
    )
    lines = [
        "## Stain normalisation",
        "",
        f"The shipped network, trained with the gain at 0.7, on {len(val):,} patches of the "
        f"{len(set(val.patients))} validation patients "
        f"({VALIDATION} of each at most): AUROC and cross-fitted F1, as scanned, and after the density of each of a "
        "patient's channels was multiplied by a factor whose logarithm has this spread. The same on all "
        f"{len(sections):,} patches of those {len(set(sections.patients))} of them of whom most of a section is there "
        f"({MOST_OF_A_SECTION} patches or more), each patch by itself. Then AUROC on {core} patches of a core biopsy "
        "of another laboratory (outlines drawn by eye); and the share of patches called IDC in two frozen sections, "
        "which have no labels: what is right there is not known. Written by "
        "`python -m scripts.results.measure_stain ../shared/data --into docs/results.md`. The fields of nuclei at hand "
        "are smaller than one patch of this network.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |",
        *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items()),
        "",
        "The network was trained with the gain: another method may do better for a network trained with that one "
        "(`stain_method`), which was not measured. One slide of another laboratory decides nothing.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
