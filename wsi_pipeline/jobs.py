"""Many pieces of work, one after another, where one that fails does not stop the rest. Knows no slides."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from wsi_pipeline.errors import WsiError

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: its result, or the error that ended it."""

    item: Item
    result: Result | None
    error: Exception | None

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


def run_each(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Outcome[Item, Result]]:
    """The outcome of each item in turn. Only what is no `Exception` (Ctrl-C) ends the whole."""
    for item in items:
        try:
            yield Outcome(item, work(item), None)
        except Exception as error:
            log.debug("failed: %s", item, exc_info=error)
            yield Outcome(item, None, error)
