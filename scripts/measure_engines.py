"""How fast and how true each way of computing a network is, and the whole against a plain loop.

    python scripts/measure_engines.py ../shared/data                      # prints
    python scripts/measure_engines.py ../shared/data --docs docs/performance.md

Truth: every validation patch of the IDC set, each patient like a slide of its own (64 of its patches tell its stain
and are what int8 is calibrated on), against eager float32. Speed: patches of one slide at its own scale, as if that
were the model's; rounds interleaved, so that what else the machine does slows all alike.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from doc_sections import put_section
from numpy.typing import NDArray
from plain_loop import SlidePatches, plain_loop

from wsi_pipeline.classify import Classifier, ClassifyOptions
from wsi_pipeline.config import InferConfig
from wsi_pipeline.data import LabelledPatches, SplitOptions, load_side
from wsi_pipeline.drift import SAMPLED_PATCHES, patch_densities, sample_patches
from wsi_pipeline.evaluate import auroc, decide
from wsi_pipeline.model import Model, load_model
from wsi_pipeline.patches import patch_positions, read_blocks
from wsi_pipeline.pipeline import grid_for_model, infer_slide
from wsi_pipeline.slide import Slide, open_slide
from wsi_pipeline.stain import stain_tables
from wsi_pipeline.store import SlideStore
from wsi_pipeline.survey import Survey, survey_slide

CPU = torch.device("cpu")
WAYS = {
    "torch fp32": ClassifyOptions(engine="torch", precision="fp32"),
    "torch bf16": ClassifyOptions(engine="torch", precision="bf16"),
    "OpenVINO fp32": ClassifyOptions(engine="openvino", precision="fp32"),
    "OpenVINO bf16": ClassifyOptions(engine="openvino", precision="bf16"),
    "OpenVINO int8": ClassifyOptions(engine="openvino", precision="int8"),
}
END_TO_END = ("OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8")
ALONE_PATCHES = 6400


def main() -> int:
    """Print what was measured, or write it into a page; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with idc/ and slides/")
    parser.add_argument("--model", default="idc_default", help="a shipped model, or a .safetensors file")
    parser.add_argument("--slide", default="breast_40x.svs", help="of slides/")
    parser.add_argument("--rounds", type=int, default=3, help="of speed; 0: truth alone")
    parser.add_argument("--skip-truth", action="store_true", help="speed alone")
    parser.add_argument("--docs", type=Path, help="a page to write the tables into")
    args = parser.parse_args()
    model = load_model(args.model)
    lines: list[str] = []
    if not args.skip_truth:
        val = load_side(args.data / "idc", model.card.patch_px, "val", SplitOptions())
        lines += truth_table(model, val)
    if args.rounds:
        lines += ["", *speed_table(model, args.data / "slides" / args.slide, args.rounds)]
    print("\n".join(lines))
    if args.docs:
        put_section(args.docs, "scripts/measure_engines.py", "\n".join(lines))
    return 0


def truth_table(model: Model, val: LabelledPatches) -> list[str]:
    """How far each way moves the validation patches."""
    scored = {name: by_patient(model, val, options) for name, options in WAYS.items()}
    eager, threshold = scored["torch fp32"], model.card.threshold
    lines = [
        f"Model `{model.card.name}`, {model.sha256[:12]}; {len(val):,} validation patches of "
        f"{len(np.unique(val.patients))} patients, threshold {threshold:.3f}; {platform.machine()}.",
        "",
        "| | moved, furthest | moved, mean | patches crossing the threshold | AUROC | F1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, scores in scored.items():
        moved = np.abs(scores - eager)
        crossing = ((scores >= threshold) != (eager >= threshold)).mean()
        f1 = decide(scores, val.labels, threshold).f1
        lines.append(
            f"| {name} | {moved.max():.2g} | {moved.mean():.2g} | {crossing:.2%} | "
            f"{auroc(scores, val.labels):.4f} | {f1:.4f} |"
        )
    return lines


def by_patient(model: Model, val: LabelledPatches, options: ClassifyOptions) -> NDArray[np.float32]:
    """Probabilities, float32 [n], each patient as if it were a slide."""
    classifier, scores = Classifier(model, CPU, options), np.empty(len(val), np.float32)
    for patient in np.unique(val.patients):
        rows = np.flatnonzero(val.patients == patient)
        sample = val.pixels[rows[np.linspace(0, len(rows) - 1, min(SAMPLED_PATCHES, len(rows))).astype(int)]]
        adapted = classifier.adapted(patch_densities(sample), sample)
        _check_way(adapted, options)
        scores[rows] = adapted.scores(val.pixels[rows])
    return scores


def speed_table(model: Model, path: Path, rounds: int) -> list[str]:
    """Patches a second: decoding alone, each network alone, the whole, and the plain loop."""
    slide = open_slide(path)
    model = replace(model, card=replace(model.card, mpp=slide.mpp[0]), context=None)
    config = InferConfig()
    config = replace(config, grid=grid_for_model(config.grid, model.card.patch_px, model.card.mpp))
    survey = survey_slide(slide, config, config.grid)
    x0, y0, _ = (values[survey.plan.scored[survey.plan.kept]] for values in patch_positions(survey.plan))
    sample = sample_patches(slide, survey.plan)
    densities = patch_densities(sample)
    tables = stain_tables(densities, model.card.stain, model.card.stain_normalisation)
    loop = SlidePatches(path, x0, y0, model.card.patch_px, tables)
    many = np.resize(sample, (ALONE_PATCHES, *sample.shape[1:]))
    classifiers = {name: Classifier(model, CPU, options) for name, options in WAYS.items()}
    alone = {name: classifier.adapted(densities, sample) for name, classifier in classifiers.items()}
    maps: dict[str, NDArray[np.float32]] = {}

    def run_loop() -> int:
        maps["plain loop"] = plain_loop(model, loop)
        return len(loop)

    jobs: dict[str, Callable[[], int | tuple[int, float]]] = {
        "plain loop": run_loop,
        "decoding alone": lambda: decode(slide, survey),
    }
    for name, classifier in alone.items():
        _check_way(classifier, WAYS[name])
        jobs[f"network alone, {name}"] = lambda c=classifier: len(c.scores(many))  # type: ignore[misc]
    for name in END_TO_END:
        jobs[f"slide, {name}"] = lambda n=name: whole(path, config, classifiers[n], WAYS[n], n, maps)  # type: ignore[misc]
    return _speed_lines(_interleaved(jobs, rounds), maps, survey, model, path, rounds)


def whole(
    path: Path,
    config: InferConfig,
    classifier: Classifier,
    options: ClassifyOptions,
    name: str,
    maps: dict[str, NDArray[np.float32]],
) -> tuple[int, float]:
    """Patches, and seconds that reading, classifying and keeping the slide's blocks took; the map goes to `maps`."""
    with tempfile.TemporaryDirectory() as out:
        result = infer_slide(path, Path(out), replace(config, classify=options, context=False), classifier)
        heatmap = SlideStore(result.folder / "slide.zarr").array("heatmap/0")
        maps[name] = heatmap[np.isfinite(heatmap)]
        summary = (result.folder / "summary.json").read_text()
    return result.patches, json.loads(summary)["seconds"]["classify"]


def decode(slide: Slide, survey: Survey) -> int:
    """Read and cut every block; gives the patches."""
    grid = survey.plan.grid
    cuts = read_blocks(
        survey.plan.blocks(), grid, lambda box: slide.read_readable(box, grid.plane), threads=2
    )
    return sum(len(cut.rgb) for _, cut in cuts)


def _interleaved(
    jobs: dict[str, Callable[[], int | tuple[int, float]]], rounds: int
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds):
        for name, job in jobs.items():
            began = time.perf_counter()
            done = job()
            count, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - began)
            found[name].append(count / seconds)
            print(f"round {round_ + 1}, {name}: {count / seconds:,.0f}/s", file=sys.stderr, flush=True)
    return found


def _speed_lines(
    found: dict[str, list[float]],
    maps: dict[str, NDArray[np.float32]],
    survey: Survey,
    model: Model,
    path: Path,
    rounds: int,
) -> list[str]:
    threads, loop = torch.get_num_threads(), maps["plain loop"]
    lines = [
        f"{path.name}, {int(survey.plan.scored.sum()):,} patches; {platform.machine()}, {threads} cores; median of "
        f"{rounds} interleaved rounds, in brackets the lowest and the highest.",
        "",
        "| | patches/s | times the plain loop | map moved, furthest | patches crossing the threshold |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, speeds in found.items():
        ratios = np.array(speeds) / np.array(found["plain loop"])
        moved = crossing = ""
        if name.startswith("slide, "):
            scores = maps[name.removeprefix("slide, ")]
            moved = f"{np.abs(scores - loop).max():.2g}"
            crossing = f"{((scores >= model.card.threshold) != (loop >= model.card.threshold)).mean():.2%}"
        lines.append(
            f"| {name} | {np.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) | "
            f"{np.median(ratios):.2f} | {moved} | {crossing} |"
        )
    return lines


def _check_way(classifier: Classifier, options: ClassifyOptions) -> None:
    facts = classifier.engine_facts[0]
    if (facts["engine"], facts["precision"]) != (options.engine, options.precision):
        print(
            f"computed by {facts['engine']} {facts['precision']}: {'; '.join(facts['refused'])}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
