"""train-context: whole mounts with labels in, the model with a context step out."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.base.errors import UsageError, WsiError

_EXAMPLE = """example:
  train-context --model idc_default --slides runs/results/slides --manifest ../shared/data/idc/manifest.csv \\
      --out runs/idc_context

writes runs/idc_context/NAME.safetensors and NAME.json: the same network, with a step that judges each patch
among its neighbours. Then: infer-slide --model runs/idc_context/NAME.safetensors. A step that the model had
before is replaced. Slides are named by their patient, and NAME_labels.png lies beside each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained, 1 stopped half way or a slide cannot be read, 2 nothing was run."""
    parser = argparse.ArgumentParser(
        prog="train-context",
        description="Teach a model to judge each patch among its neighbours.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        help="a shipped config by its name, or a YAML file of options; default: as default_model/context",
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda or cuda:1")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        # Imported here: torch takes seconds, and --help or a wrong flag should not wait for it.
        from wsi_pipeline.inference.classifier import Classifier
        from wsi_pipeline.inference.classify import ClassifyOptions
        from wsi_pipeline.inference.device import choose_device
        from wsi_pipeline.learning.training.context import ContextTrainOptions, train_context
        from wsi_pipeline.models.model import load_model
        from wsi_pipeline.pipeline.config import load_config

        options = load_config(ContextTrainOptions, args.config) if args.config else ContextTrainOptions()
        classifier = Classifier([load_model(args.model)], choose_device(args.device), ClassifyOptions())
        weights = train_context(options, classifier, args.slides, args.manifest, args.out)
    except UsageError as error:
        print(f"train-context: {error}", file=sys.stderr)
        return 2
    except (WsiError, KeyboardInterrupt, OSError) as error:
        print(f"train-context: {str(error) or 'interrupted'}", file=sys.stderr)
        return 1
    print(weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
