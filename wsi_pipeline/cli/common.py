"""What the commands share: a parser, and how a command runs and ends.

Every command has --version and --verbose, those that compute --device, and all end alike:

    0    all is done
    1    something failed, or the command stopped half way
    2    nothing was run: arguments, config, model or data are not what they should be
    130  Ctrl-C

Nothing is imported here that takes time: --help and a wrong argument answer at once.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from wsi_pipeline.base.errors import UsageError, WsiError
from wsi_pipeline.base.text import on_one_line
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.cli.streams import WatchedStream

ALL_DONE, SOME_FAILED, NOTHING_RUN, INTERRUPTED = 0, 1, 2, 130

# Libraries whose debug lines would drown ours.
NOISY = ("PIL", "matplotlib", "asyncio", "fontTools", "botocore", "aiobotocore", "s3fs", "fsspec")

log = logging.getLogger(__name__)


def command_parser(
    name: str, description: str, example: str, device: bool = False
) -> argparse.ArgumentParser:
    """A parser with the options that every command has; `example` is shown at the end of --help.

    `device`: it computes, and takes --device.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more, with tracebacks of failures")
    if device:
        parser.add_argument(
            "--device", default="auto", metavar="D", help="auto (default), cpu, cuda or cuda:1"
        )
    return parser


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `train-model` and `tune-model` share."""
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
        required=True,
        metavar="DIR",
        help="labelled patches: exports of tile-slides, IDC folders, or another layout of docs/training.md",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the model and what led to it"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="instead of the config's")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the config's")
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


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """The option without which no model is loaded that can run any program then."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a --model file of torch.export (.pt2), which can run any program then: you trust who made it",
    )


def config_overrides(args: argparse.Namespace) -> dict[str, int | None]:
    """The training arguments that stand in the place of a config's values."""
    return {"epochs": args.epochs, "seed": args.seed, "limit_patches": args.limit_patches}


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
    tells_steps: bool = False,
    after_stop: str = "",
    process: int = 0,
) -> int:
    """Parse `argv` (None: this process's own arguments), work, and give the exit code.

    Errors of ours, and of the system where something is read or written, are a line on stderr. `tells_steps`: the
    log is what the command says (epochs of a training), and its plain lines are shown. `after_stop`: said at Ctrl-C,
    where the same command goes on. `process`: of those that torchrun started on this machine, the number of this one;
    the first, 0, speaks for all.
    """
    with _watched_streams():
        try:
            args = parser.parse_args(argv)
        except SystemExit as end:  # --help, --version, or a wrong argument
            raise SystemExit(_end(NOTHING_RUN if end.code else ALL_DONE)) from None
        _set_up_log(args.verbose, tells_steps, process)
        return _end(_exit_code(args, work, after_stop, process))


def _exit_code(
    args: argparse.Namespace, work: Callable[[argparse.Namespace], int], after_stop: str, process: int
) -> int:
    try:
        return work(args)
    except WsiError as error:
        log.debug("%s", error, exc_info=True)
        is_usage = isinstance(error, UsageError)
        _say(f"error: {error}", process, of_all=is_usage)
        return NOTHING_RUN if is_usage else SOME_FAILED
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more ends at once
        _say("; ".join(["interrupted", after_stop] if after_stop else ["interrupted"]), process, of_all=True)
        return INTERRUPTED
    except OSError as error:
        log.debug("%s", error, exc_info=True)
        if failure := stdout_failure():
            _say(f"stopped: what it says cannot be written to stdout: {failure.strerror}", process)
        else:
            _say(f"error: {error.filename or 'system'}: {error.strerror or error}", process)
        return SOME_FAILED


@contextmanager
def _watched_streams() -> Iterator[None]:
    """stdout watched; the null device for one that was closed when the command was started (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    before = sys.stdout
    sys.stdout = WatchedStream(before)
    try:
        yield
    finally:
        sys.stdout = before


def stdout_failure() -> OSError | None:
    """Why what was printed did not get out: a reader that has gone (`| head`), a full disk; None where it did."""
    with suppress(OSError):
        sys.stdout.flush()
    failure = sys.stdout.failure if isinstance(sys.stdout, WatchedStream) else None
    return failure if isinstance(failure, OSError) else None


def _end(code: int) -> int:
    """The exit code, once what was printed is out; 1 for 0 where it cannot be, unless its reader has gone."""
    if (failure := stdout_failure()) is None:
        return code
    WatchedStream(sys.stdout).discard()
    if code == ALL_DONE and not isinstance(failure, BrokenPipeError):
        print(f"error: what it says cannot be written to stdout: {failure.strerror}", file=sys.stderr)
        return SOME_FAILED
    return code


def _set_up_log(verbose: bool, tells_steps: bool, process: int) -> None:
    level, form = logging.WARNING, "%(levelname)s %(name)s: %(message)s"
    if verbose:
        level = logging.DEBUG
    elif process:
        level = logging.ERROR
    elif tells_steps:
        level, form = logging.INFO, "%(message)s"
    logging.basicConfig(level=level, format=form)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _say(text: str, process: int, of_all: bool = False) -> None:
    """A line on stderr; what all processes of torchrun meet alike is said by the first alone."""
    if process and of_all:
        return
    text = on_one_line(text)
    print(f"process {process}: {text}" if process else text, file=sys.stderr)
