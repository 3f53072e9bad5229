"""The engine for GPUs on the CPU, in a GPU's place: all of it but the device itself."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.engines.accelerator import Event, HostAccelerator
from wsi_pipeline.inference.engines.batching import BatchRunner, Precision
from wsi_pipeline.inference.engines.choice import Chosen
from wsi_pipeline.inference.engines.cuda_engine import CudaEngine
from wsi_pipeline.inference.engines.pixel_ring import PixelRing


def on_stand_in(
    classifier: Classifier,
    batch_size: int = 32,
    precision: Precision = "fp32",
    ring: PixelRing | None = None,
) -> Classifier:
    """The classifier, each of its members computed by the engine for GPUs."""
    ring = ring or PixelRing(HostAccelerator())
    for member in classifier.members:
        engine = CudaEngine(member.model, ring, precision, batch_size)
        member._chosen = Chosen(BatchRunner(engine), 0.0, 0)
    return classifier


class LazyAccelerator(HostAccelerator):
    """Two streams that do nothing before they have to: when somebody waits for an event, or asks for it thrice.

    What is launched in a block of a stream's is kept there: copies from and to memory that was made in such a block,
    the device's, and recorded work. So what forgets to wait for the other stream, or takes memory back too soon,
    computes on what is not there yet, or no more.
    """

    def __init__(self) -> None:
        self.copies, self.work = LazyStream(), LazyStream()
        self._own: dict[
            int, torch.UntypedStorage
        ] = {}  # kept, lest a host's tensor come to lie at the same address
        self._stream, self._is_running = self.work, False
        self.pinned_bytes: list[int] = []

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        if dtype == torch.uint8:
            self.pinned_bytes.append(count)
        return super().pinned(count, dtype)

    def copying(self) -> AbstractContextManager[object]:
        return self._launching(self.copies)

    def computing(self) -> AbstractContextManager[object]:
        return self._launching(self.work)

    def mark(self) -> Event:
        return _LazyEvent(self, self._stream, self._stream.launched)

    def wait_for(self, event: Event) -> None:
        self._stream.launch(event.synchronize)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        self.release()
        self.run(lambda: work())
        return lambda: self.work.launch(work)

    def release(self) -> None:
        for stream in (self.copies, self.work):
            self.run(lambda stream=stream: stream.run_to(stream.launched))  # type: ignore[misc]

    def run(self, what: Callable[[], None]) -> None:
        """Do it now: what it calls is not launched again."""
        before, self._is_running = self._is_running, True
        try:
            with torch.inference_mode():
                what()
        finally:
            self._is_running = before

    @contextmanager
    def _launching(self, stream: "LazyStream") -> Iterator[None]:
        before, self._stream = self._stream, stream
        try:
            with _Launches(self, stream):
                yield
        finally:
            self._stream = before

    def is_launched(self, function: Any, args: Any) -> bool:
        """Whether the device does it, later; what makes memory is done now, and the memory is the device's."""
        if self._is_running:
            return False
        return function in (torch.ops.aten.copy_.default, torch.ops.aten.zero_.default) and any(
            isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() in self._own
            for value in args
        )

    def owns(self, made: torch.Tensor) -> None:
        """The tensor lies in the device's memory from here on."""
        storage = made.untyped_storage()
        self._own[storage.data_ptr()] = storage


class LazyStream:
    """Work in its order, and how much of it is done."""

    def __init__(self) -> None:
        self._todo: deque[Callable[[], object]] = deque()
        self.launched = self.done = 0

    def launch(self, work: Callable[[], object]) -> None:
        self._todo.append(work)
        self.launched += 1

    def run_to(self, count: int) -> None:
        while self.done < count:
            work = self._todo.popleft()
            self.done += 1
            work()


class _LazyEvent:
    def __init__(self, accelerator: LazyAccelerator, stream: LazyStream, count: int):
        self._accelerator, self._stream, self._count, self._asked = accelerator, stream, count, 0

    def query(self) -> bool:
        self._asked += 1
        if self._asked > 2:
            self.synchronize()
        return self._stream.done >= self._count

    def synchronize(self) -> None:
        self._accelerator.run(lambda: self._stream.run_to(self._count))


class _Launches(TorchDispatchMode):
    def __init__(self, accelerator: LazyAccelerator, stream: LazyStream):
        super().__init__()
        self._accelerator, self._stream = accelerator, stream

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._accelerator.is_launched(function, args):
            self._stream.launch(lambda: function(*args, **kwargs))
            return args[0]
        result = function(*args, **kwargs)
        if function in (torch.ops.aten.empty.memory_format, torch.ops.aten.zeros.default):
            self._accelerator.owns(result)
        return result


class FullAccelerator(HostAccelerator):
    """A device whose memory holds a graph of `most` patches and no more."""

    def __init__(self, most: int):
        self.most = most
        self.released = 0

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        memory = work.__closure__
        assert memory
        places = next(c.cell_contents.places for c in memory if hasattr(c.cell_contents, "places"))
        if places.shape[1] > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().captured(work)

    def release(self) -> None:
        self.released += 1


class LostAccelerator(HostAccelerator):
    """A device that is lost after so many launches."""

    def __init__(self, after: int):
        self.left = after

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        work()

        def replay() -> None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            work()

        return replay

    def is_lost(self, error: Exception) -> bool:
        return "illegal memory access" in str(error)
