"""train-model: labelled patches in, weights and their card out."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from wsi_pipeline.base.errors import UsageError, WsiError

_EXAMPLE = """example:
  train-model --config train/idc_default --data ../shared/data/idc --out runs/idc_default

writes runs/idc_default/NAME.safetensors and NAME.json (the best epoch), epochs.csv and curves.png, and last.pt,
from which the same command goes on when it was stopped. Then:
  infer-slide SLIDE --out maps --model runs/idc_default/NAME.safetensors

try a config out on few patches, or with another value:
  train-model --config train/resnet18 --limit-patches 500 --epochs 2 --out runs/try
  train-model --config train/resnet18 --set learning_rate=0.0005 --set patch_px=96 --out runs/other

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
    from wsi_pipeline.learning.training.device import training_device
    from wsi_pipeline.learning.training.distributed import torchrun_group
    from wsi_pipeline.learning.training.train import load_train_options, train

    with torchrun_group(training_device(args.device)) as (group, device):
        # One process of several speaks.
        logging.basicConfig(level=logging.INFO if group.is_first else logging.ERROR, format="%(message)s")
        options = load_train_options(args.config, args.set, **config_overrides(args))
        weights = train(options, args.data, args.out, device, group, args.tensorboard)
        if group.is_first:
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
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="NAME|FILE",
        help="a shipped config by its name, as train/resnet18, or a YAML file of training options",
    )
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
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda or cuda:1")
    return parser


def config_overrides(args: argparse.Namespace) -> dict[str, int | None]:
    """The flags that stand in the place of a config's values."""
    return {"epochs": args.epochs, "seed": args.seed, "limit_patches": args.limit_patches}


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
