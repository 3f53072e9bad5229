"""tune-model: search the values that a training config marks as tunable."""

import argparse
import sys
from collections.abc import Sequence

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.cli.common import (
    ALL_DONE,
    add_training_arguments,
    command_parser,
    config_overrides,
    run_command,
)

EXAMPLE = """  tune-model --config my.yaml --data idc --out runs/tuned --trials 30 --epochs 8

my.yaml is a training config in which some values say what may stand in their place:
  learning_rate: {tune: {low: 1e-4, high: 1e-2, log: true}}
  batch_size: {tune: {choices: [64, 128, 256]}}
  augment:
    shift_px: {tune: {low: 0, high: 8}}

writes runs/tuned/best.yaml, ready for train-model; --epochs and --limit-patches are for the search alone.
study.db keeps all trials: stopped, the same command goes on; with more --trials, it searches further."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser(
        "tune-model", "Search the values that a training config marks as tunable.", EXAMPLE, device=True
    )
    add_training_arguments(parser)
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="default: %(default)s")
    after_stop = "the same command goes on from the last whole epoch"
    return run_command(parser, _run, argv, tells_steps=True, after_stop=after_stop)


def _run(args: argparse.Namespace) -> int:
    if args.trials < 1:
        raise UsageError(f"--trials: found {args.trials}, expected 1 or more")
    try:
        from wsi_pipeline.learning.training.search import Tried, tune
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UsageError("Optuna is not installed; pip install '.[tune]'") from error
    from wsi_pipeline.learning.training.device import training_device
    from wsi_pipeline.learning.training.options import read_train_config

    config = read_train_config(args.config, args.set)
    tried: list[Tried] = tune(
        config,
        config_overrides(args),
        args.data,
        args.out,
        training_device(args.device),
        args.trials,
        args.seed or 0,
    )
    names = list(tried[0].values)
    rows = [["trial", "", config.get("best_by", "auroc"), "epochs", "seconds", *names]]
    for trial in tried:
        values = [trial.values[name] for name in names]
        rows.append(
            [
                trial.name,
                trial.state,
                f"{trial.reached:.4f}",
                str(trial.epochs),
                f"{trial.seconds:.0f}",
            ]
            + [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    best = args.out / "best.yaml"
    print(f"\n{best}" if best.exists() else "\nno trial was trained to its end: no best.yaml")
    return ALL_DONE


if __name__ == "__main__":
    sys.exit(main())
