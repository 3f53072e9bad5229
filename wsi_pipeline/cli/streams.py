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


class WatchedStream:
    """A stream of text that remembers why it could not be written, and escapes what it cannot spell."""

    def __init__(self, stream: "TextIO | WatchedStream"):
        """`stream`: one that is watched already is taken from within."""
        self.stream: TextIO = stream.stream if isinstance(stream, WatchedStream) else stream
        self.failure: OSError | ValueError | None = None  # full, closed, or its reader is gone

    def write(self, text: str) -> int:
        """Write the text; raises what the stream raises."""
        try:
            return write_spelt(self.stream, text)
        except (OSError, ValueError) as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Let it be read now; raises what the stream raises."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.failure = error
            raise

    def discard(self) -> None:
        """Send what the stream still holds nowhere: Python would fail on it at the end and change the exit code."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class LastingStream(WatchedStream):
    """A watched stream that never fails: what it cannot write any more is dropped."""

    def write(self, text: str) -> int:
        """Write the text, if anybody reads it."""
        if not self.failure:
            with self._going_on():
                super().write(text)
        return len(text)

    def flush(self) -> None:
        """Let it be read now."""
        if not self.failure:
            with self._going_on():
                super().flush()

    def isatty(self) -> bool:
        """Whether it is a terminal that is still there."""
        return self.failure is None and self.stream.isatty()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                self.discard()


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
