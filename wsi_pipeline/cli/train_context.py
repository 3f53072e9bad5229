"""train-context: labelled slides in, the model with a context step out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.cli.common import ALL_DONE, command_parser, run_command

EXAMPLE = """  train-context --model idc_default --slides slides --manifest idc/manifest.csv --out runs/idc_context

writes runs/idc_context/NAME.safetensors and NAME.json: the same network, with a step that scores each patch
among its neighbours. Then: infer-slide --model runs/idc_context/NAME.safetensors. A step that the model had
before is replaced. Slides are named by their patient, and NAME_labels.png lies beside each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser(
        "train-context", "Teach a model to score each patch among its neighbours.", EXAMPLE, device=True
    )
    parser.add_argument(
        "--model", required=True, metavar="NAME|FILE", help="a shipped model, or a .safetensors"
    )
    parser.add_argument(
        "--slides", type=Path, required=True, metavar="DIR", help="slides with NAME_labels.png"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the model")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="CSV that says the patients' split")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="NAME|FILE",
        help="a shipped config by its name, or a YAML file of options; default: the mean of the neighbours",
    )
    parser.add_argument(
        "--unseen",
        type=Path,
        metavar="DIR",
        help="scores of the slides by networks that had not seen them (NAME.npz): calibration and threshold are "
        "chosen on them, not on scores that this network has learned by heart",
    )
    return run_command(parser, _run, argv, tells_steps=True)


def _run(args: argparse.Namespace) -> int:
    # Imported here: torch takes seconds, and --help or a wrong argument should not wait for it.
    from wsi_pipeline.models.names import check_model_names, refuse_package

    check_model_names([args.model])
    refuse_package(args.model, "--model")
    from wsi_pipeline.inference.classifier import Classifier
    from wsi_pipeline.inference.classify import ClassifyOptions
    from wsi_pipeline.inference.device import choose_device
    from wsi_pipeline.learning.training.context import ContextTrainOptions, train_context
    from wsi_pipeline.models.model import load_model
    from wsi_pipeline.pipeline.config import load_config

    options = load_config(ContextTrainOptions, args.config) if args.config else ContextTrainOptions()
    classifier = Classifier([load_model(args.model)], choose_device(args.device), ClassifyOptions())
    print(train_context(options, classifier, args.slides, args.manifest, args.out, args.unseen))
    return ALL_DONE


if __name__ == "__main__":
    sys.exit(main())
