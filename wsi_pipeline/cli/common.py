"""What the commands share: a parser, and how a command ends."""

import argparse
import logging
import sys
from collections.abc import Callable

import wsi_pipeline
from wsi_pipeline.base.errors import UsageError, WsiError
from wsi_pipeline.base.text import on_one_line
from wsi_pipeline.cli.streams import lasting_streams

ALL_DONE, SOME_FAILED, NOTHING_RUN, INTERRUPTED = 0, 1, 2, 130


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


def run_command(main: Callable[[], int], verbose: bool) -> int:
    """The exit code of `main`; errors of ours are a line on stderr, Ctrl-C ends with a word and 130.

    Where stdout or stderr is full or closed, or its reader is gone (`... | head`), the command goes on without it.
    """
    with lasting_streams():
        return _run(main, verbose)


def _run(main: Callable[[], int], verbose: bool) -> int:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("PIL", "matplotlib", "asyncio", "fontTools", "botocore", "aiobotocore", "s3fs", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return main()
    except UsageError as error:
        print(f"error: {on_one_line(str(error))}", file=sys.stderr)
        return NOTHING_RUN
    except WsiError as error:
        print(f"error: {on_one_line(str(error))}", file=sys.stderr)
        return SOME_FAILED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
