"""The engine for GPUs on the CPU, in a GPU's place: all of it but the device itself."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

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


class LateAccelerator(HostAccelerator):
    """What is launched is done when somebody waits for it, or asks for it the third time; not before."""

    def __init__(self) -> None:
        self._work: list[tuple[str, Callable[[], None]]] = []
        self._stream = ""
        self.launched = 0

    def copying(self) -> AbstractContextManager[object]:
        return nullcontext()

    def computing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def mark(self) -> Event:
        self.launched += 1
        return _Late()


class _Late:
    def __init__(self) -> None:
        self._asked = 0

    def query(self) -> bool:
        self._asked += 1
        return self._asked > 2

    def synchronize(self) -> None:
        self._asked = 3


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
