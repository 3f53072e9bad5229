"""train-model: labelled patches in, weights and their card out."""

import argparse
import os
import sys
from collections.abc import Sequence

from wsi_pipeline.cli.common import (
    ALL_DONE,
    add_training_arguments,
    command_parser,
    config_overrides,
    run_command,
)

EXAMPLE = """  train-model --config train/idc_default --data idc --out runs/idc_default

writes runs/idc_default/NAME.safetensors and NAME.json (the best epoch), epochs.csv and curves.png, and last.pt,
from which the same command goes on when it was stopped. Then:
  infer-slide SLIDE --out maps --model runs/idc_default/NAME.safetensors

try a config out on few patches, or with another value:
  train-model --config train/resnet18 --data idc --out runs/try --limit-patches 500 --epochs 2
  train-model --config train/resnet18 --data idc --out runs/other --set learning_rate=0.0005

on four GPUs of one machine (batch_size is over all of them):
  torchrun --nproc-per-node 4 -m wsi_pipeline.cli.train_model --config ... --data ... --out ..."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("train-model", "Train a network on labelled patches.", EXAMPLE, device=True)
    add_training_arguments(parser)
    parser.add_argument(
        "--from",
        dest="from_model",
        metavar="NAME|FILE",
        help="a model to go on from, with new labels: its weights, network, scale and normalisation stand in the "
        "place of the config's, and its lineage on the card",
    )
    parser.add_argument("--tensorboard", action="store_true", help="log to OUT/tensorboard as well")
    return run_command(
        parser,
        _run,
        argv,
        tells_steps=True,
        after_stop="the same command goes on from the last whole epoch",
        process=int(os.environ.get("LOCAL_RANK", "0")),
    )


def _run(args: argparse.Namespace) -> int:
    # Imported here: torch takes seconds, and --help or a wrong argument should not wait for it.
    from wsi_pipeline.models.names import check_model_names, refuse_package

    if args.from_model:
        check_model_names([args.from_model])
        refuse_package(args.from_model, "--from")
    from wsi_pipeline.learning.training.device import training_device
    from wsi_pipeline.learning.training.distributed import torchrun_group
    from wsi_pipeline.learning.training.pretrained import start_from
    from wsi_pipeline.learning.training.train import load_train_options, train

    with torchrun_group(training_device(args.device)) as (group, device):
        given = config_overrides(args) | (start_from(args.from_model) if args.from_model else {})
        options = load_train_options(args.config, args.set, **given)
        weights = train(options, args.data, args.out, device, group, args.tensorboard)
        if group.is_first:
            print(weights)
    return ALL_DONE


if __name__ == "__main__":
    sys.exit(main())
