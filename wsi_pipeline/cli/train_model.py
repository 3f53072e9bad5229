"""train-model: labelled patches in, weights and their card out."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_pipeline.errors import UsageError, WsiError

if TYPE_CHECKING:
    import torch

_EXAMPLE = """example:
  train-model --config configs/train/idc_default.yaml --data ../shared/data/idc --out runs/idc_default

writes runs/idc_default/NAME.safetensors and NAME.json (the best epoch), epochs.csv and curves.png, and last.pt,
from which the same command goes on when it was stopped. Then:
  infer-slide SLIDE --out maps --model runs/idc_default/NAME.safetensors

try a config out on few patches, or with another value:
  train-model --config configs/train/resnet18.yaml --limit-patches 500 --epochs 2 --out runs/try
  train-model --config configs/train/resnet18.yaml --set learning_rate=0.0005 --set patch_px=96 --out runs/other

on four GPUs of one machine (batch_size is over all of them):
  torchrun --nproc-per-node 4 -m wsi_pipeline.cli.train_model --config ... --out ..."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained, 1 stopped half way, 2 nothing was run."""
    parser = training_parser("train-model", "Train a network on labelled patches.", _EXAMPLE)
    parser.add_argument("--tensorboard", action="store_true", help="log to OUT/tensorboard as well")
    args = parser.parse_args(arguments)
    return run_training_command("train-model", lambda: _train(args))


def _train(args: argparse.Namespace) -> int:
    # Imported here: torch takes seconds, and --help or a wrong flag should not wait for it.
    from wsi_pipeline.train import load_train_options, train
    from wsi_pipeline.training.ranks import torchrun_ranks

    with torchrun_ranks(training_device(args.device)) as (ranks, device):
        # One process of several speaks.
        logging.basicConfig(level=logging.INFO if ranks.is_first else logging.ERROR, format="%(message)s")
        options = load_train_options(args.config, args.set, **config_overrides(args))
        weights = train(options, args.data, args.out, device, ranks, args.tensorboard)
        if ranks.is_first:
            print(weights)
    return 0


def training_parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the arguments that `train-model` and `tune-model` share."""
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=example,
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
        "--limit-patches", type=int, metavar="N", help="of each side of the split, to try a config out"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value for a key of the config, dotted: augment.shift_px=2 (may be repeated)",
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s"
    )
    return parser


def config_overrides(args: argparse.Namespace) -> dict[str, int | None]:
    """The flags that stand in the place of a config's values."""
    return {"epochs": args.epochs, "seed": args.seed, "limit_patches": args.limit_patches}


def training_device(name: str) -> "torch.device":
    """The device of that name, set to give the same numbers for the same seed."""
    # Read by cuBLAS when it starts: without it, its sums may differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UsageError("--device cuda: found no CUDA device; use --device cpu or auto")
    device = torch.device("cuda" if has_cuda and name != "cpu" else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        # Warns where an operation has no such form (pooling to a fixed size, backwards, as in VGG16).
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def run_training_command(name: str, work: Callable[[], int]) -> int:
    """The exit code of `work`; what goes wrong is one line on stderr."""
    try:
        return work()
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except WsiError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, OSError) as error:
        reason = str(error) or "interrupted"
        print(f"{name}: {reason}; the same command goes on from the last whole epoch", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
