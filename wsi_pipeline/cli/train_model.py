"""train-model: labelled patches in, weights and their card out."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.errors import UsageError

_EXAMPLE = """example:
  train-model --config configs/train/idc_default.yaml --data ../shared/data/idc --out runs/idc_default

writes runs/idc_default/NAME.safetensors and NAME.json (the best epoch), epochs.csv, and last.pt, from which
the same command goes on when it was stopped. Then: infer-slide --model runs/idc_default/NAME.safetensors."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained, 1 stopped half way, 2 nothing was run."""
    parser = argparse.ArgumentParser(
        prog="train-model",
        description="Train a network on labelled patches.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of training options")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data/idc"),
        help="manifest.csv with sheets, or <patient>/<0|1>/*.png (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and what led to it")
    parser.add_argument("--epochs", type=int, help="instead of the config's")
    parser.add_argument("--seed", type=int, help="instead of the config's")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        # Imported here: torch takes seconds, and --help or a wrong flag should not wait for it.
        import torch

        from wsi_pipeline.train import load_train_options, train

        options = load_train_options(args.config, epochs=args.epochs, seed=args.seed)
        has_cuda = torch.cuda.is_available()
        if args.device == "cuda" and not has_cuda:
            raise UsageError("--device cuda: found no CUDA device; use --device cpu or auto")
        device = torch.device("cuda" if has_cuda and args.device != "cpu" else "cpu")
        weights = train(options, args.data, args.out, device)
    except UsageError as error:
        print(f"train-model: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, OSError) as error:
        reason = str(error) or "interrupted"
        print(f"train-model: {reason}; the same command goes on from the last whole epoch", file=sys.stderr)
        return 1
    print(weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
