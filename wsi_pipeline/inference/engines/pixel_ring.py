"""Memory through which pixels go to the device: one buffer on the host, one on the device, each used round and round.

Both are allocated once and kept: page-locked memory takes a millisecond a megabyte to get. What is taken first is given
back first.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.inference.engines.accelerator import Accelerator, accelerator_of
from wsi_pipeline.inference.engines.patch_kernels import Resampling, resample_bytes

# A piece is a whole number of these, so that each begins where rows are read fast.
_ALIGNED = 512
# To be added for each piece that is to fit.
SPARE_BYTES = _ALIGNED


@dataclass(frozen=True)
class Piece:
    """Bytes of a ring: from where, and how many."""

    start: int
    count: int


class Ring:
    """A buffer of bytes of which pieces are taken and, in the same order, given back."""

    def __init__(self, count: int):
        self.count = count
        self._taken: deque[Piece] = deque()
        self._next = 0

    def take(self, count: int) -> Piece | None:
        """The next so many bytes, in one piece; None where they are not free."""
        count = -(-max(1, count) // _ALIGNED) * _ALIGNED
        if not self._taken:
            self._next = 0
        first = self._taken[0].start if self._taken else self.count
        behind = not self._taken or self._next > first  # free: from here to the end, and from 0 to the first
        if behind and self._next + count <= self.count:
            start = self._next
        elif behind and self._taken and count <= first:
            start = 0
        elif not behind and self._next + count <= first:
            start = self._next
        else:
            return None
        piece = Piece(start, count)
        self._taken.append(piece)
        self._next = start + count
        return piece

    def give_back(self, piece: Piece) -> None:
        """The piece that was taken first is free again."""
        assert self._taken[0] is piece, "pieces of a ring are given back in the order they were taken"
        self._taken.popleft()

    def clear(self) -> None:
        """All is free again."""
        self._taken.clear()


class PixelRing:
    """The two buffers of one device.

    Who uses them for a while takes them over, and holds `lock` only while it sets them up: a run over blocks that was
    left half way, by an error that somebody keeps, must not keep the next slide waiting for ever.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.lock = threading.Lock()
        self._end_last: Callable[[], None] | None = None
        self._host: torch.Tensor | None = None
        self._device: torch.Tensor | None = None
        self.host, self.device = Ring(0), Ring(0)

    @property
    def pixels(self) -> torch.Tensor:
        """The device's buffer, uint8 [bytes]; another tensor once a larger one was required."""
        assert self._device is not None, "nothing was required of the ring yet"
        return self._device

    def take_over(self, end: Callable[[], None] | None = None) -> None:
        """End the run that has the buffers, if any; `end` ends the one that has them now. The lock is held."""
        last, self._end_last = self._end_last, end
        if last:
            last()

    @torch.inference_mode()
    def require(self, host: int, device: int) -> None:
        """Make room for so many bytes on each side where there is less; all that was taken is free again.

        Raises torch's OutOfMemoryError.
        """
        host, device = (-(-count // _ALIGNED) * _ALIGNED for count in (host, device))
        self.host.clear()
        self.device.clear()
        if self.host.count < host:
            self._host = None  # first given back
            self._host = self.accelerator.pinned(host, torch.uint8)
            self.host = Ring(host)
        if self.device.count < device:
            self._device, self.device = None, Ring(0)
            self.accelerator.release()
            with self.accelerator.computing():
                self._device = torch.empty(device, dtype=torch.uint8, device=self.accelerator.device)
            self.device = Ring(device)

    def host_bytes(self, piece: Piece) -> NDArray[np.uint8]:
        """A view of the host's bytes, uint8 [count]."""
        assert self._host is not None
        view: NDArray[np.uint8] = self._host[piece.start : piece.start + piece.count].numpy()
        return view

    @torch.inference_mode()
    def upload(self, source: Piece, target: Piece, count: int) -> None:
        """Begin to copy the first so many bytes, on the stream of the block around."""
        assert self._host is not None
        here = self._host[source.start : source.start + count]
        self.pixels[target.start : target.start + count].copy_(here, non_blocking=True)

    @torch.inference_mode()
    def resample(self, work: Resampling) -> None:
        """Begin to make an image of another that was copied, on the stream of the block around."""
        resample_bytes(self.pixels, work)


@cache
def ring_of(device: torch.device) -> PixelRing:
    """The ring of a device: one a process, whatever models and slides come."""
    return PixelRing(accelerator_of(device))
