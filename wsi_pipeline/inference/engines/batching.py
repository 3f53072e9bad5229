"""Batches side by side: every thread puts one batch after another through an engine.

What a batch gives depends on that batch alone, so how many run at once changes no bit.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.base.text import counted

if TYPE_CHECKING:  # it takes torch along
    from wsi_pipeline.models.slide_input import SlideInput

Precision = Literal["fp32", "fp16", "bf16", "int8"]


class Engine(Protocol):
    """A network made ready on a device."""

    @property
    def name(self) -> str:
        """What people call it: 'torch', 'openvino', 'cuda graph', 'onnx by openvino'."""

    @property
    def precision(self) -> Precision:
        """What most of it is computed in."""

    @property
    def parallel_batches(self) -> int:
        """Batches that it works on at once, each called from a thread of its own."""

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Patches a batch, falling: full batches are of the first, what is left goes in batches of the last."""

    def probabilities(self, batch: NDArray[np.uint8], slide: "SlideInput") -> NDArray[np.float32]:
        """float32 [n], 0 to 1, of uint8 patches [n, S, S, 3] of that slide, at most a full batch.

        Of an engine made for all classes, [n, classes], in the card's order.
        """


class Pending:
    """Probabilities that are being computed."""

    def __init__(self, parts: Sequence["Future[NDArray[np.float32]]"]):
        self._parts = parts

    def result(self) -> NDArray[np.float32]:
        """As the engine gives them, [n] or [n, classes], once all are there; [0] of no patches.

        Raises what the engine raised, and as `all_numbers`.
        """
        found = [part.result() for part in self._parts]
        return all_numbers(np.concatenate(found)) if found else np.empty(0, np.float32)

    @property
    def unfinished(self) -> "list[Future[NDArray[np.float32]]]":
        """Its batches that are still to be computed."""
        return [part for part in self._parts if not part.done()]

    @property
    def batches(self) -> int:
        """How many it is made of."""
        return len(self._parts)

    def cancel(self) -> None:
        """Leave what has not begun."""
        for part in self._parts:
            part.cancel()


def all_numbers(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The very same scores of readable patches. Raises ModelError where any is no number: it would pass for damage."""
    broken = ~np.isfinite(scores)
    if lost := int((broken if broken.ndim == 1 else broken.any(axis=1)).sum()):
        raise ModelError(
            f"the network gives no numbers (NaN) for {lost:,} of {counted(len(scores), 'patch')} to be read; expected "
            "probabilities: take other weights, or precision: fp32 if they are known to be good"
        )
    return scores


class BatchRunner:
    """An engine and its threads."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._threads = ThreadPoolExecutor(engine.parallel_batches, thread_name_prefix="network")

    @property
    def max_in_flight(self) -> int:
        """Batches that keep every thread at work while the next ones are brought."""
        return 2 * self.engine.parallel_batches

    def start(self, patches: NDArray[np.uint8], slide: "SlideInput") -> Pending:
        """Begin on uint8 patches [n, S, S, 3] of that slide; they must not change until they are scored."""
        cuts = batch_slices(len(patches), self.engine.batch_sizes)
        run = self.engine.probabilities
        return Pending([self._threads.submit(run, patches[cut], slide) for cut in cuts])


def batch_slices(count: int, sizes: Sequence[int]) -> list[slice]:
    """So many patches in full batches, and what is left in small ones, of which the last may be short.

    >>> batch_slices(100, [64, 16])
    [slice(0, 64, None), slice(64, 80, None), slice(80, 96, None), slice(96, 100, None)]
    """
    full = count - count % sizes[0]
    starts = [*range(0, full, sizes[0]), *range(full, count, sizes[-1])]
    return [slice(a, b) for a, b in pairwise([*starts, count])]
