"""What reading one level finer than the model's scale costs, and what it brings: the same slides mapped both ways.

    python -m scripts.bench.measure_read_level SLIDE... --docs docs/scale.md
    python -m scripts.bench.measure_read_level SLIDE... --model idc_default --model before/idc_default.safetensors

Each slide's ways are taken in turn in one process, the model loaded before the clock starts. Two generated slides are
mapped besides: one scene stored as JPEG at 0.250 um/px, where a level lies at the model's scale, and at 0.252, where
none does; a map of one should be a map of the other.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.doc_sections import put_section
from scripts.sample_slide.make_sample_slide import make_sample_slide
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.models.model import load_model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.results.opened import open_result
from wsi_pipeline.slides.slide import open_slide

Level = Literal["coarsest", "finer"]
LEVELS: tuple[Level, Level] = ("coarsest", "finer")
SECTION = "read level"
SCENE_MM = (6.0, 4.5)


def main() -> int:
    """Measure and print, and write the section where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", nargs="*", type=Path, help="other slides")
    parser.add_argument("--model", action="append", help="name or path (default: idc_default)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--docs", type=Path, help="the page whose section is written")
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        scenes = [place / "scene_0.250.tiff", place / "scene_0.252.tiff"]
        for path, mpp in zip(scenes, (0.250, 0.252), strict=True):
            make_sample_slide(path, *SCENE_MM, mpp, seed=3, compression="jpeg")
        for name in args.model or ["idc_default"]:
            model = load_model(name)
            classifier = Classifier([model], torch.device("cpu"), ClassifyOptions())
            label = f"{name}, {model.sha256[:12]}"
            for path in [*args.slides, scenes[0]]:
                lines.append(f"| {label} | {row_of_slide(path, classifier, place, args.repeats)} |")
                print(lines[-1], flush=True)
            for level in LEVELS:
                first, second = (mapped(path, classifier, level, place)[0] for path in scenes)
                change = difference(first, second, model.card.threshold)
                lines.append(f"| {label} | scene, 0.250 beside 0.252 um/px, {level} | | | {change} |")
                print(lines[-1], flush=True)
    text = "\n".join(
        [
            "## Levels compared",
            "",
            "Each slide mapped with `grid.read_level: coarsest` and `finer`: seconds of reading and classifying, "
            f"medians of {args.repeats} in turn; then one scene at two scales. *Changed*: the largest difference of a "
            "patch's probability, the mean one, and the share of patches on the other side of the threshold. Written "
            "by `python -m scripts.bench.measure_read_level --model MODEL... --docs docs/scale.md`; the first model is "
            "that [before](results.md#before-and-after) networks were used to JPEG.",
            "",
            "| model | slide | reading and classifying, s: coarsest | finer | changed: largest, mean, flipped |",
            "| --- | --- | ---: | ---: | --- |",
            *lines,
        ]
    )
    if args.docs:
        put_section(args.docs, SECTION, text)
    return 0


def row_of_slide(path: Path, classifier: Classifier, place: Path, repeats: int) -> str:
    """The cells of the slide's row, both ways mapped in turn."""
    seconds: dict[Level, list[float]] = {level: [] for level in LEVELS}
    maps = {level: mapped(path, classifier, level, place)[0] for level in LEVELS}  # once, to warm up
    for _ in range(repeats):
        for level in LEVELS:
            seconds[level].append(mapped(path, classifier, level, place)[1])
    change = difference(maps["coarsest"], maps["finer"], classifier.card.threshold)
    shown = [f"{statistics.median(seconds[level]):.2f}" for level in LEVELS]
    return f"{path.stem}, {open_slide(path).mpp[0]:.4g} um/px | {shown[0]} | {shown[1]} | {change}"


def mapped(
    path: Path, classifier: Classifier, level: Level, place: Path
) -> tuple[NDArray[np.float32], float]:
    """Each patch's probability [row, column], and the seconds of reading and classifying."""
    config = InferConfig()
    config = replace(config, grid=replace(config.grid, read_level=level))
    with tempfile.TemporaryDirectory(dir=place) as out:
        result = open_result(str(infer_slide(path, Path(out), config, classifier).folder))
        return result.patch_map, result.summary["seconds"]["classify"]


def difference(first: NDArray[np.float32], second: NDArray[np.float32], threshold: float) -> str:
    """How far two maps lie apart, where both are scored."""
    rows, columns = (min(a, b) for a, b in zip(first.shape, second.shape, strict=True))
    first, second = first[:rows, :columns], second[:rows, :columns]
    both = ~np.isnan(first) & ~np.isnan(second)
    apart = np.abs(first - second)[both]
    flipped = ((first >= threshold) != (second >= threshold))[both]
    return f"{apart.max():.3f}, {apart.mean():.4f}, {flipped.mean():.1%} of {both.sum():,}"


if __name__ == "__main__":
    sys.exit(main())
