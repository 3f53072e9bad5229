"""Batches brought to the device that computes, the next one while it still works on this one.

The CPU needs no copy: there a batch is made when it is asked for, and nothing runs beside it. Before a GPU, one
thread makes the next batch in page-locked memory and copies it on a stream of its own, so that neither the
host nor the GPU waits for the copy.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

# A NamedTuple of tensors, of plain values (they stay on the host), or of such tuples.
B = TypeVar("B", bound=tuple[Any, ...])


class Copies(Protocol):
    """How batches get to a device."""

    # How many batches are made and copied before they are asked for.
    ahead: int

    def start(self, batch: B) -> tuple[B, Any]:
        """Begin the copy: the batch on the device, and what `finish` wants."""

    def finish(self, batch: tuple[Any, ...], started: Any) -> None:
        """Let what computes from here on wait for the copy."""


class NoCopies:
    """The CPU, where batches lie already; other devices are copied to at once."""

    def __init__(self, device: torch.device, ahead: int = 0):
        self.ahead = ahead
        self._device = device

    def start(self, batch: B) -> tuple[B, None]:
        """The batch on the device, there already."""
        return map_tensors(batch, lambda tensor: tensor.to(self._device)), None

    def finish(self, batch: tuple[Any, ...], started: Any) -> None:
        """Nothing to wait for."""


class StreamCopies:
    """A CUDA device: copies from page-locked memory on a stream beside the one that computes."""

    ahead = 1

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, batch: B) -> tuple[B, torch.cuda.Event]:
        """The batch as it will be on the device, and the event of its arrival."""
        # torch keeps page-locked blocks and gives one out again once the copy from it has ended.
        pinned = map_tensors(batch, torch.Tensor.pin_memory)
        with torch.cuda.stream(self._stream):
            there = map_tensors(pinned, lambda tensor: tensor.to(self._device, non_blocking=True))
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        return there, copied

    def finish(self, batch: tuple[Any, ...], started: Any) -> None:
        """Let the stream that computes wait for the event; the host goes on."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(started)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(computing)  # its memory is not given out before the computation is done
            return tensor

        map_tensors(batch, keep)


def copies_to(device: torch.device) -> Copies:
    """How batches get to that device."""
    return StreamCopies(device) if device.type == "cuda" else NoCopies(device)


def feed(batches: Iterable[B], copies: Copies) -> Iterator[B]:
    """The batches on the device, in their order; `copies.ahead` of them are made before they are asked for.

    With `ahead`, `batches` is iterated in one thread, one step at a time. What it raises is raised here.
    """
    source = iter(batches)

    def start() -> tuple[B, Any] | None:
        batch = next(source, None)
        return None if batch is None else copies.start(batch)

    if not copies.ahead:
        while begun := start():
            copies.finish(*begun)
            yield begun[0]
        return
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        waiting = [thread.submit(start) for _ in range(copies.ahead)]
        while begun := waiting.pop(0).result():
            waiting.append(thread.submit(start))
            copies.finish(*begun)
            yield begun[0]


def map_tensors(batch: B, change: Callable[[torch.Tensor], torch.Tensor]) -> B:
    """The same NamedTuple with each of its tensors changed, those of NamedTuples inside as well."""

    def changed(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return change(value)
        return map_tensors(value, change) if hasattr(value, "_fields") else value

    return type(batch)._make(changed(value) for value in batch)  # type: ignore[attr-defined, no-any-return]


def rows_of(array: torch.Tensor, rows: torch.Tensor, pinned: bool = False) -> torch.Tensor:
    """The rows, int64 [n], of a tensor of the CPU, in page-locked memory at once where `pinned`."""
    into = torch.empty((len(rows), *array.shape[1:]), dtype=array.dtype, pin_memory=pinned)
    return torch.index_select(array, 0, rows, out=into)


class Pixels(NamedTuple):
    """Patches alone, uint8 [N, S, S, 3]."""

    patches: torch.Tensor
