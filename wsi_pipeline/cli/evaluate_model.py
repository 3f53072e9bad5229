"""evaluate-model: how good a model is on labelled patches and whole slides."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.base.errors import WsiError
from wsi_pipeline.base.text import counted
from wsi_pipeline.cli.common import ALL_DONE, SOME_FAILED, add_trust_argument, command_parser, run_command

EXAMPLE = """  evaluate-model --model idc_default --data idc --out evaluation
  evaluate-model --model runs/mine/mine.safetensors --data patches --split all --out evaluation
  evaluate-model --model runs/mine/mine.safetensors --data tiles --patches-from slides --out evaluation
  evaluate-model --data idc --slides slides --out evaluation
  evaluate-model --data idc --robustness --out evaluation
  evaluate-model --model runs/new/new.safetensors --against idc_default --data idc --out evaluation

writes evaluation/index.html, a page to read, and evaluation/metrics.json, the same numbers."""

# Beside the page, where a model is compared with an older one.
COMPARISON = "comparison.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser(
        "evaluate-model", "Evaluate a model on labelled patches and on whole slides.", EXAMPLE, device=True
    )
    parser.add_argument(
        "--model",
        default="idc_default",
        metavar="NAME|FILE",
        help="a shipped model, or a .safetensors with its card (default: %(default)s)",
    )
    add_trust_argument(parser)
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="labelled patches")
    parser.add_argument(
        "--patches-from",
        choices=["files", "slides"],
        default="files",
        help="what --data is: files, images or arrays of patches; slides, what tile-slides --annotations left in its "
        "--out, whose patches are read from the slides (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        choices=["val", "train", "all"],
        default="val",
        help="side of the split that the model's card says, or all patches (default: %(default)s)",
    )
    parser.add_argument(
        "--slides",
        type=Path,
        metavar="FOLDER",
        help="slides, each with NAME_labels.png, NAME.geojson or NAME.xml beside it, to be mapped and compared",
    )
    parser.add_argument(
        "--against",
        metavar="NAME|FILE",
        help="an older model of the same patches: what got better and worse, with 95 %% intervals by patient, and "
        "which patches changed",
    )
    parser.add_argument(
        "--robustness",
        nargs="?",
        type=_patches,
        const=3000,
        metavar="N",
        help="also measure what JPEG, blur, noise, light, stain, turning and scaling cost, on N patches "
        "(default: 3,000; takes 26 evaluations of them)",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="index.html and metrics.json go here"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="NAME|FILE",
        help="options for the slides (those of infer, and annotations): a shipped config by its name, or a YAML file; "
        "default: as infer",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace maps of another model, slide, scale or options under DIR/maps",
    )
    return run_command(parser, _run, argv)


def _patches(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a number of patches, 1 or more")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    # Imported here: --help and a wrong argument should not wait for it.
    from wsi_pipeline.models.names import check_model_names

    check_model_names(filter(None, (args.model, args.against)))
    from wsi_pipeline.base.files import check_writable, remove, write_json
    from wsi_pipeline.cli.progress import SlideProgress
    from wsi_pipeline.inference.classifier import Classifier
    from wsi_pipeline.inference.device import choose_device  # torch: seconds, once it is needed
    from wsi_pipeline.learning.datasets import load_side
    from wsi_pipeline.learning.datasets.labelled_slides import find_labelled_slides
    from wsi_pipeline.learning.datasets.slide_epochs import load_tiled_side
    from wsi_pipeline.learning.evaluation.comparison import check_same_patches, comparison_of, in_words
    from wsi_pipeline.learning.evaluation.page import write_evaluation
    from wsi_pipeline.learning.evaluation.patches import evaluate_patches, plain, reading_of, split_of
    from wsi_pipeline.learning.evaluation.robustness import measure_robustness, robustness_metrics, sampled
    from wsi_pipeline.learning.evaluation.slides import EvaluateConfig, evaluate_slide
    from wsi_pipeline.models.model import load_model
    from wsi_pipeline.pipeline.config import load_config
    from wsi_pipeline.pipeline.run import RunOptions
    from wsi_pipeline.slides.names import slide_name

    config = load_config(EvaluateConfig, args.config) if args.config else EvaluateConfig()
    model, device = load_model(args.model, args.trust), choose_device(args.device)
    pairs = find_labelled_slides(args.slides) if args.slides else []
    card, old = model.card, load_model(args.against, args.trust) if args.against else None
    if old:
        check_same_patches(card, old.card)
    if args.patches_from == "slides":
        reading, seed = reading_of(card)
        side = load_tiled_side(args.data, card.patch_px, args.split, split_of(card), reading, card.mpp, seed)
    else:
        side = load_side(args.data, card.patch_px, args.split, split_of(card), mpp=card.mpp)
    check_writable(args.out)
    evaluated = evaluate_patches(model, side, device)
    comparison = comparison_of(evaluated, evaluate_patches(old, side, device)) if old else None
    classifier, slides, failed = Classifier([model], device, config.classify), [], {}
    for number, (path, known) in enumerate(pairs, 1):
        name, maps = slide_name(path), args.out / "maps"
        try:
            with SlideProgress(name) as progress:
                as_asked = RunOptions(args.overwrite, progress)
                slide = evaluate_slide(path, known, maps, config, classifier, as_asked)
        except WsiError as error:  # the others go on, and what was evaluated is written
            failed[name] = " ".join(str(error).split())
            print(f"[{number}/{len(pairs)}] {name}: failed: {failed[name]}", flush=True)
            continue
        slides.append(slide)
        print(
            f"[{number}/{len(pairs)}] {name}: Dice {slide.decisions.f1:.3f} ({slide.counts_in_words})",
            flush=True,
        )
    robustness = None
    if args.robustness:
        some = sampled(side, args.robustness, seed=0)
        print(f"robustness: {len(some):,} of {counted(len(side), 'patch')}", flush=True)
        with SlideProgress("robustness") as progress:
            robustness = robustness_metrics(
                measure_robustness(model, some, device, len(some), progress=progress), len(some)
            )
    metrics = write_evaluation(args.out, evaluated, args.split, args.data, slides, failed, robustness)
    values = {name: metrics["patches"][name]["value"] for name in ("auroc", "f1", "balanced_accuracy", "ece")}
    print(", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items()))
    if comparison:
        print(f"against {comparison['old']['name']}: " + "\n  ".join(in_words(comparison)))
        write_json(args.out / COMPARISON, plain(comparison))
        print(args.out / COMPARISON)
    else:
        remove(args.out / COMPARISON)  # of an earlier evaluation, of other models or patches
    print(args.out / "index.html")
    if failed:
        print(f"{len(failed)} of {counted(len(pairs), 'slide')} failed; reasons on the page", file=sys.stderr)
    return SOME_FAILED if failed else ALL_DONE


if __name__ == "__main__":
    sys.exit(main())
