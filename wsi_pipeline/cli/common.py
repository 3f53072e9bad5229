"""What the commands share: arguments, progress, how a batch of slides is run and told."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

import wsi_pipeline
from wsi_pipeline.errors import RecipeError, ScaleError, SlideError, UsageError, WsiError
from wsi_pipeline.files import OutPath, check_writable
from wsi_pipeline.jobs import Outcome, run_each
from wsi_pipeline.manifest import Manifest, ManifestRow
from wsi_pipeline.pipeline import Progress
from wsi_pipeline.run_folder import SlideResult, is_finished
from wsi_pipeline.slide import slide_name
from wsi_pipeline.staging import Stager

ALL_DONE, SOME_FAILED, NOTHING_RUN, INTERRUPTED = 0, 1, 2, 130
# A log gets a line of progress this often.
LOG_EVERY_S = 30.0

CopyOf = Callable[[Path], AbstractContextManager[Path | None]]


def command_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the options that every command has; `example` is shown at the end of --help."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {wsi_pipeline.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more, with tracebacks of failures")
    return parser


def add_slide_arguments(parser: argparse.ArgumentParser, config: str) -> None:
    """The arguments that `tile-slides` and `infer-slide` share."""
    parser.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="slide files, or DICOM folders")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="a folder a slide goes here; or s3://bucket/prefix"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"YAML of options; default: {config}")
    parser.add_argument(
        "--mpp", type=float, metavar="M", help="um per level-0 pixel, where a slide does not say or lies"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results of another recipe (model, options, slide)"
    )
    parser.add_argument(
        "--stage-to", type=Path, metavar="DIR", help="copy slides here ahead of use, and remove them after it"
    )
    parser.add_argument(
        "--stage-limit-gb",
        type=float,
        default=100.0,
        metavar="G",
        help="of copies at once (default: %(default)g)",
    )


def run_command(main: Callable[[], int], verbose: bool) -> int:
    """The exit code of `main`; errors of ours are a line on stderr, Ctrl-C ends with a word and 130."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("PIL", "matplotlib", "asyncio", "fontTools", "botocore", "aiobotocore", "s3fs", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return main()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOTHING_RUN
    except WsiError as error:
        print(f"error: {error}", file=sys.stderr)
        return SOME_FAILED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        return ALL_DONE


@contextmanager
def local_copies(args: argparse.Namespace, out: OutPath) -> Iterator[CopyOf]:
    """What gives a slide's copy in --stage-to while it is worked on; without that flag, no copy."""
    if args.stage_to is None:
        yield lambda path: nullcontext()
        return
    with Stager(args.stage_to, int(args.stage_limit_gb * 1e9)) as stager:
        done = set() if args.overwrite else {p for p in args.slides if is_finished(out / slide_name(p))}
        for path in args.slides:
            if path not in done:
                stager.begin(path)
        # What an earlier run finished is looked at in place: it is skipped, unless its recipe is another.
        yield lambda path: nullcontext() if path in done else stager.copy_of(path)


def run_slides(slides: list[Path], out: OutPath, work: Callable[[Path, Progress], SlideResult]) -> int:
    """Work on each slide in turn, tell and record what became of it; the command's exit code.

    Slides that cannot be worked on do not stop the others. A slide whose name an earlier one of the same
    call has is refused: both would write to one run folder.
    """
    check_writable(out)
    manifest = Manifest(out)
    seen: dict[str, Path] = {}

    def one(path: Path) -> SlideResult:
        name = slide_name(path)
        if name in seen:
            raise SlideError(
                f"{path}: has the same name as {seen[name]}, and would write to the same folder; rename one, "
                f"or give it another --out"
            )
        seen[name] = path
        with SlideProgress(name) as progress:
            return work(path, progress)

    failures: list[Exception] = []
    for number, outcome in enumerate(run_each(one, slides), 1):
        manifest.record(_row(outcome))
        print(f"[{number}/{len(slides)}] {_line(outcome)}", flush=True)
        if outcome.error:
            failures.append(outcome.error)
        elif outcome.result:
            for warning in outcome.result.warnings:
                print(f"    {warning}")
    if failures:
        print(
            f"{len(failures)} of {len(slides)} slides failed; reasons in {out / 'manifest.csv'}",
            file=sys.stderr,
        )
    refused = [error for error in failures if isinstance(error, ScaleError | RecipeError)]
    if len(refused) == len(slides):
        return NOTHING_RUN
    return SOME_FAILED if failures else ALL_DONE


class SlideProgress:
    """Progress through one slide: a bar on a terminal, a line now and then in a log."""

    def __init__(self, name: str):
        self._name = name
        self._bar: tqdm[NoReturn] | None = None
        self._start = self._told = time.monotonic()

    def __enter__(self) -> "SlideProgress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` patches."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=total, desc=self._name, unit=" patches", leave=False, initial=done)
            self._bar.update(done - self._bar.n)
        elif (now := time.monotonic()) - self._told > LOG_EVERY_S:
            self._told = now
            print(f"{self._name}: {done:,} of {total:,} patches, {now - self._start:.0f} s", flush=True)


def _row(outcome: Outcome[Path, SlideResult]) -> ManifestRow:
    result, path = outcome.result, str(outcome.item)
    name, version = slide_name(outcome.item), wsi_pipeline.__version__
    if result is None:
        return ManifestRow(name, path, "failed", outcome.reason, version=version)
    return ManifestRow(
        name,
        path,
        "skipped" if result.skipped else "done",
        "already done by the same recipe" if result.skipped else "",
        result.patches,
        "" if result.idc_mm2 is None else result.idc_mm2,
        result.seconds,
        version,
    )


def _line(outcome: Outcome[Path, SlideResult]) -> str:
    name, result = slide_name(outcome.item), outcome.result
    if result is None:
        return f"{name}: failed: {outcome.reason}"
    if result.skipped:
        return f"{name}: skipped, already done by the same recipe: {result.folder}"
    found = "" if result.idc_mm2 is None else f", {result.idc_mm2:.2f} mm2 IDC"
    return f"{name}: {result.patches:,} patches{found} in {result.seconds:.1f} s: {result.folder}"
