"""evaluate-model: how good a model is on labelled patches and whole sections."""

import sys
from pathlib import Path

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.cli.common import command_parser, run_command
from wsi_pipeline.cli.progress import SlideProgress
from wsi_pipeline.pipeline.config import InferConfig, load_config

EXAMPLE = """  evaluate-model --model idc_default --data ../shared/data/idc --out judged
  evaluate-model --model runs/mine/mine.safetensors --data patches --split all --out judged
  evaluate-model --data ../shared/data/idc --slides sections --out judged

writes judged/index.html, a page to read, and judged/metrics.json, the same numbers."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("Judge a model on labelled patches and on whole sections.", EXAMPLE)
    parser.add_argument(
        "--model",
        default="idc_default",
        metavar="NAME|FILE",
        help="a shipped model, or a .safetensors with its card (default: %(default)s)",
    )
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="labelled patches")
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
        help="slides, each with NAME_labels.png or NAME.geojson beside it, to be mapped and compared",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="index.html and metrics.json go here"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="NAME|FILE",
        help="options for the slides: a shipped config by its name, or a YAML file; default: as infer",
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda or cuda:1")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace maps of another model, slide, scale or options under DIR/maps",
    )
    args = parser.parse_args(argv)

    def run() -> int:
        config = load_config(InferConfig, args.config) if args.config else InferConfig()
        from wsi_pipeline.inference.classifier import Classifier
        from wsi_pipeline.inference.device import choose_device  # torch: seconds, once it is needed
        from wsi_pipeline.learning.datasets import load_side
        from wsi_pipeline.learning.evaluation.page import write_evaluation
        from wsi_pipeline.learning.evaluation.patches import evaluate_patches, split_of
        from wsi_pipeline.learning.evaluation.slides import evaluate_slide, find_labelled_slides
        from wsi_pipeline.models.model import load_model
        from wsi_pipeline.pipeline.run import RunOptions

        model, device = load_model(args.model), choose_device(args.device)
        pairs = find_labelled_slides(args.slides) if args.slides else []
        side = load_side(args.data, model.card.patch_px, args.split, split_of(model.card))
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {args.out}: cannot be made: {error.strerror}") from error
        evaluated = evaluate_patches(model, side, device)
        classifier, slides = Classifier([model], device, config.classify), []
        for number, (path, known) in enumerate(pairs, 1):
            with SlideProgress(path.stem) as progress:
                as_asked = RunOptions(args.overwrite, progress)
                slides.append(evaluate_slide(path, known, args.out / "maps", config, classifier, as_asked))
            print(f"[{number}/{len(pairs)}] {path.stem}: Dice {slides[-1].decisions.f1:.3f}", flush=True)
        metrics = write_evaluation(args.out, evaluated, args.split, args.data, slides)
        values = {
            name: metrics["patches"][name]["value"] for name in ("auroc", "f1", "balanced_accuracy", "ece")
        }
        print(", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items()))
        print(args.out / "index.html")
        return 0

    return run_command(run, args.verbose)


if __name__ == "__main__":
    sys.exit(main())
