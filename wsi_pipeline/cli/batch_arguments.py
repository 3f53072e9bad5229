"""The arguments that `tile-slides` and `infer-slide` share; cli/batch.py does what they ask for."""

import argparse
import math
import re
from pathlib import Path


def add_batch_arguments(parser: argparse.ArgumentParser, config: str) -> None:
    """The arguments that `tile-slides` and `infer-slide` share."""
    parser.add_argument(
        "slides",
        nargs="+",
        metavar="SLIDE",
        help="slide files, folders of slides, folders of one slide's DICOM files, quoted patterns ('scans/**/*.svs'), "
        "or a CSV with the columns slide, name, mpp, patient",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="a folder a slide goes here; or s3://bucket/prefix"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="NAME|FILE",
        help=f"a shipped config by its name, or a YAML file of options; default: {config}",
    )
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument(
        "--mpp", type=float, metavar="M", help="um per level-0 pixel, whatever the slides say of themselves"
    )
    scale.add_argument(
        "--mpp-if-missing",
        type=float,
        metavar="M",
        help="um per level-0 pixel of slides that do not say theirs",
    )
    parser.add_argument(
        "--patient-pattern",
        type=_pattern,
        metavar="REGEX",
        help="what in a slide's name says the patient, where no CSV does: '^[^_]+', or with a group, 'case-(\\d+)'",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results of another model, slide, scale or options"
    )
    parser.add_argument(
        "--stage-to", type=Path, metavar="DIR", help="copy slides here ahead of use, and remove them after it"
    )
    parser.add_argument(
        "--stage-limit-gb",
        type=float,
        default=100.0,
        metavar="G",
        help="of copies at once, shared by the workers of this machine (default: %(default)g)",
    )
    _add_worker_arguments(parser)


def _add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Who works on the slides, and on which of them."""
    workers = parser.add_mutually_exclusive_group()
    workers.add_argument(
        "--workers", type=_count, metavar="N", help="processes on this machine (default: this one alone)"
    )
    workers.add_argument(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="the workers of a dask.distributed cluster: tcp://host:8786, or its scheduler file",
    )
    parser.add_argument(
        "--worker-resources",
        type=_resources,
        metavar="NAME=N",
        help="with --scheduler: what a worker must have free for a slide, as GPU=1",
    )
    parser.add_argument(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="work on slides in a process of its own, so that a file at which it breaks does not end the batch "
        "(default: with more than one slide)",
    )
    parser.add_argument(
        "--slide-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="a slide that takes longer fails, and its worker is replaced (implies --isolate); "
        "default: none, but a batch in which nothing moves for a minute says what it waits for",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="look at every slide and print patches, time (from a short probe) and disk; write nothing",
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="only the I-th of N equal shares of the slides, for array jobs"
    )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: no regular expression: {error}") from None
    if pattern.groups > 1:
        raise argparse.ArgumentTypeError(
            f"{text}: found {pattern.groups} groups, expected one at most: write the others as (?:...)"
        )
    return pattern


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, found {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


def _resources(text: str) -> dict[str, float]:
    try:
        return {name: float(amount) for name, amount in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=N, as GPU=1, found {text}") from None
