"""What an engine needs of a device beside arithmetic: streams, events, graphs, pinned memory, and what its errors mean.

`CudaAccelerator` is a GPU. `HostAccelerator` is its stand-in on the CPU: everything happens at once and in order, so
that the engine and its queues run, and are tested, where there is no GPU.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch

from wsi_pipeline.base.errors import DeviceLostError
from wsi_pipeline.inference.engines.batching import Precision

log = logging.getLogger(__name__)

# Tensor cores compute float16 from Volta on, bfloat16 from Ampere on; older ones emulate it, slower than float32.
FLOAT16_FROM, BFLOAT16_FROM = 7, 8
# Before a graph is recorded, its work runs so often: libraries choose their ways, and take their memory.
WARM_UPS = 3
# Of CUDA's errors those that say that the process's whole context is gone, or may be.
LOST = (
    "CUDA error",
    "device-side assert",
    "illegal memory access",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS",
)


class Event(Protocol):
    """A point in a stream's work."""

    def query(self) -> bool:
        """Whether the device is past it."""

    def synchronize(self) -> None:
        """Wait until it is."""


class Accelerator(Protocol):
    """A device with a stream to copy and one to compute; used from one thread at a time."""

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""

    @property
    def halves(self) -> tuple[Precision, ...]:
        """The 16-bit precisions that it computes natively, the better one first."""

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host's, [count], from which the device copies by itself."""

    def copying(self) -> AbstractContextManager[object]:
        """What is launched in this block goes to the copy stream."""

    def computing(self) -> AbstractContextManager[object]:
        """What is launched in this block goes to the compute stream."""

    def mark(self) -> Event:
        """The point that the stream of the block around has come to."""

    def wait_for(self, event: Event) -> None:
        """The stream of the block around goes on once the event is over; the host does not wait."""

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work as one launch: recorded once, its memory fixed, and played whenever what comes back is called."""

    def is_lost(self, error: Exception) -> bool:
        """Whether the device does no more work for this process, whatever it is asked for."""

    def release(self) -> None:
        """Give memory that nobody uses back to the device."""


class HostAccelerator:
    """The CPU in a GPU's place: what is launched is done when the launch returns."""

    device = torch.device("cpu")
    halves: tuple[Precision, ...] = ()

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Plain memory."""
        return torch.empty(count, dtype=dtype)

    def copying(self) -> AbstractContextManager[object]:
        """Nothing to choose."""
        return nullcontext()

    def computing(self) -> AbstractContextManager[object]:
        """Nothing to choose."""
        return nullcontext()

    def mark(self) -> Event:
        """A point that is passed already."""
        return _Over()

    def wait_for(self, event: Event) -> None:
        """Nothing to wait for."""

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work itself, done once as a recording does it."""
        work()
        return work

    def is_lost(self, error: Exception) -> bool:
        """Never."""
        return False

    def release(self) -> None:
        """Nothing to give."""


class _Over:
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return


class CudaAccelerator:
    """One GPU, float32 meaning float32: TF32 is off in this process from here on."""

    def __init__(self, device: torch.device):
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        exact_float32()
        self.halves = native_halves(torch.cuda.get_device_capability(self.device)[0])
        with torch.cuda.device(self.device):
            self._copies, self._work = torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory; plain memory, and a warning, where the system gives none."""
        try:
            return torch.empty(count, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            log.warning("no page-locked memory (%s): copies to the GPU will be slower", _line(error))
            return torch.empty(count, dtype=dtype)

    def copying(self) -> AbstractContextManager[object]:
        """A stream of its own, beside which the network is computed."""
        return torch.cuda.stream(self._copies)

    def computing(self) -> AbstractContextManager[object]:
        """The stream that all networks of the process share."""
        return torch.cuda.stream(self._work)

    def mark(self) -> Event:
        """An event in the current stream, whose waiting takes no core."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def wait_for(self, event: Event) -> None:
        """The current stream waits, the host does not."""
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream().wait_event(event)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph, of kernels that give the same bits each time."""
        with (
            torch.cuda.device(self.device),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            self._work.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._work):
                for _ in range(WARM_UPS):
                    work()
            self.release()  # what the runs took: the graph's memory is its own
            graph = torch.cuda.CUDAGraph()
            # Other threads may call CUDA meanwhile: only what this one does is recorded.
            with torch.cuda.graph(graph, stream=self._work, capture_error_mode="thread_local"):
                work()
            torch.cuda.synchronize()
        return graph.replay

    def is_lost(self, error: Exception) -> bool:
        """After an error of CUDA's, whether the simplest work still goes."""
        if is_out_of_memory(error) or not any(word in str(error) for word in LOST):
            return False
        try:
            with torch.cuda.device(self.device):
                torch.cuda.synchronize()
                return int(torch.ones(1, device=self.device).sum()) != 1
        except RuntimeError:
            return True

    def release(self) -> None:
        """What torch keeps for later."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()


def native_halves(major: int) -> tuple[Precision, ...]:
    """The 16-bit precisions that the tensor cores of a GPU of this compute capability have, the better one first.

    >>> native_halves(7), native_halves(9)
    (('fp16',), ('fp16', 'bf16'))
    """
    since: tuple[tuple[Precision, int], ...] = (("fp16", FLOAT16_FROM), ("bf16", BFLOAT16_FROM))
    return tuple(half for half, first in since if major >= first)


def accelerator_of(device: torch.device) -> Accelerator:
    """The accelerator of a device."""
    return CudaAccelerator(device) if device.type == "cuda" else HostAccelerator()


def exact_float32() -> None:
    """Compute float32 as float32: by default torch takes TF32, three digits, for cuDNN's convolutions."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def device_errors(accelerator: Accelerator) -> Iterator[None]:
    """Raises DeviceLostError when what the block raises means that the device is lost to this process."""
    try:
        yield
    except Exception as error:
        if accelerator.is_lost(error):
            raise DeviceLostError(
                f"{accelerator.device} does no more work for this process: {_line(error)}; what was mapped until then "
                "is kept, and the same command goes on; if it comes again, look at the driver's log (dmesg, nvidia-smi)"
            ) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at once may do; what breaks a recording off is named after the recording, its cause is within."""
    seen: BaseException | None = error
    while seen:
        if isinstance(seen, torch.cuda.OutOfMemoryError) or "ALLOC_FAILED" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
