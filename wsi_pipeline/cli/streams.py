"""stdout and stderr that outlast their reader: a command is not stopped by where its lines go."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from wsi_pipeline.base.text import without_surrogates


class LastingStream:
    """A stream of text that never fails: what it cannot write any more is dropped, what it cannot spell is escaped."""

    def __init__(self, stream: TextIO | None):
        """`stream` is None where the command was started with it closed."""
        self._stream = stream
        self._lost = stream is None

    def write(self, text: str) -> int:
        """Write the text, if anybody reads it."""
        text = without_surrogates(text)
        if self._stream is not None and not self._lost:
            try:
                self._write(self._stream, text)
            except (OSError, ValueError):  # full, closed, or its reader is gone
                self._give_up(self._stream)
        return len(text)

    def flush(self) -> None:
        """Let it be read now."""
        if self._stream is not None and not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up(self._stream)

    def isatty(self) -> bool:
        """Whether it is a terminal that is still there."""
        return self._stream is not None and not self._lost and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))

    def _give_up(self, stream: TextIO) -> None:
        self._lost = True
        # What it still holds goes nowhere, or Python would complain of it at the end and change the exit code.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """stdout and stderr as such streams while the block runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (LastingStream(stream) for stream in before)
    try:
        yield
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = before
