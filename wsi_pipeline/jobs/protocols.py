"""What a batch is made of: a job that each worker opens once, items, and what became of each."""

import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from wsi_pipeline.base.errors import SlideTimeoutError, WsiError
from wsi_pipeline.base.types import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")
ItemIn = TypeVar("ItemIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)

# An item whose worker died is given to another one; after so many deaths it is taken to be the cause.
ATTEMPTS = 3
# So many items a worker may prefetch.
PREFETCHED = 4
# An item that another process works on is asked for again this often.
BUSY_POLL_S = 2.0


class Busy(Exception):
    """Raised by work on an item that another process works on; its text says which. It is tried again later."""


class Work(Protocol[ItemIn, ResultOut]):
    """A job opened in a worker: what it takes minutes to load is in memory."""

    def __call__(self, item: ItemIn, report: Progress, /) -> ResultOut:
        """The item's result; what it raises is the item's failure, but for Busy, and for JobError.

        A JobError says that this process can do no more items (its GPU is lost). It ends the process: the item is
        given to another one, as after a worker's death; where this process is the only one, the batch ends with it.
        """

    def prefetch(self, items: Sequence[ItemIn], /) -> None:
        """Begin to read what is needed next: `items` are the one that is worked on now, and those that follow it."""

    def close(self) -> None:
        """No more items."""


class Job(Protocol[ItemIn, ResultOut]):
    """What is done with every item: a small value that can be pickled and sent to workers."""

    def open(self, worker: int, /) -> Work[ItemIn, ResultOut]:
        """Load what every item needs, in the worker; `worker` counts the workers of a machine from 0.

        A UsageError raised here ends the batch before it begins.
        """


class Listener(Protocol[ItemIn]):
    """Hears what happens between outcomes."""

    def started(self, item: ItemIn, attempt: int, worker: str, /) -> None:
        """A worker has begun with the item."""

    def progressed(self, item: ItemIn, done: int, total: int, /) -> None:
        """So much of the item is done."""

    def lost(self, item: ItemIn, attempt: int, reason: str, /) -> None:
        """The item's worker is gone; the item is tried again."""

    def waits(self, item: ItemIn, reason: str, /) -> None:
        """The item is worked on by another process, and put off."""

    def stands(self, reason: str, /) -> None:
        """Why no item can be begun now, though some wait; empty once one can."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: its result, or the error that ended it; which attempt, and on which worker."""

    item: Item
    result: Result | None
    error: Exception | None
    attempt: int = 1
    worker: str = ""

    @property
    def reason(self) -> str:
        """One line for people: why it failed."""
        if self.error is None:
            return ""
        text = " ".join(str(self.error).split())
        if isinstance(self.error, WsiError):
            return text
        if isinstance(self.error, OSError):
            return f"{self.error.filename or self.item}: {self.error.strerror or text}"
        return f"{self.item}: unexpected {type(self.error).__name__}: {text} (-v shows where)"


def took_too_long(item: object, seconds: float) -> SlideTimeoutError:
    """The failure of an item that was given so many seconds."""
    return SlideTimeoutError(
        f"{item}: not done after {seconds:,.0f} s (--slide-timeout), and its worker was ended; what was mapped is "
        f"kept, and the same command goes on with it"
    )


def portable(error: Exception) -> Exception:
    """The error if it survives the way to another process, else one that says the same."""
    with suppress(Exception):  # pickling raises whatever it likes
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")
