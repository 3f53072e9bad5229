"""stdout and stderr that outlast their reader: a command is not stopped by where its lines go."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from wsi_pipeline.base.text import without_surrogates


def write_spelt(stream: TextIO, text: str) -> int:
    """Write the text; what the stream's encoding has no characters for is escaped. Gives its length."""
    text = without_surrogates(text)
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
    return len(text)


class LastingStream:
    """A stream of text that never fails: what it cannot write any more is dropped, what it cannot spell is escaped."""

    def __init__(self, stream: TextIO | None):
        """`stream` is None where the command was started with it closed; one that is watched is taken from within."""
        self._stream: TextIO | None = getattr(stream, "stream", stream)
        self._lost = stream is None
        self.failure: Exception | None = None  # why it cannot be written any more

    def write(self, text: str) -> int:
        """Write the text, if anybody reads it."""
        if self._stream is not None and not self._lost:
            try:
                write_spelt(self._stream, text)
            except (OSError, ValueError) as error:  # full, closed, or its reader is gone
                self._give_up(self._stream, error)
        return len(text)

    def flush(self) -> None:
        """Let it be read now."""
        if self._stream is not None and not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(self._stream, error)

    def isatty(self) -> bool:
        """Whether it is a terminal that is still there."""
        return self._stream is not None and not self._lost and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, stream: TextIO, error: Exception) -> None:
        self._lost, self.failure = True, error
        # What it still holds goes nowhere, or Python would complain of it at the end and change the exit code.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """stdout and stderr as such streams while the block runs; a line on stderr says where stdout got full."""
    before = sys.stdout, sys.stderr
    out, err = (LastingStream(stream) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield
        out.flush()
        if out.failure and not isinstance(out.failure, BrokenPipeError):
            err.write(
                f"stdout could not be written ({out.failure}): the batch went on, manifest.csv has it all\n"
            )
        err.flush()
    finally:
        sys.stdout, sys.stderr = before
