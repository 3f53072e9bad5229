"""A network on a GPU: folded, cast once, captured as one CUDA graph of one fixed number of patches.

One size, filled up: so a patch's bits depend on the patch alone, not on how many came along, nor on its place among
them; that is proved for each network when it is made ready. A graph is one launch: of a network layer by layer there
would be forty, each of which waits for Python's lock while threads decode.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.inference.engines.accelerator import device_errors, is_out_of_memory
from wsi_pipeline.inference.engines.batching import Precision
from wsi_pipeline.inference.engines.patch_kernels import cut_normalised
from wsi_pipeline.inference.engines.pixel_ring import SPARE_BYTES, PixelRing
from wsi_pipeline.inference.engines.torch_engine import input_table
from wsi_pipeline.inference.engines.wide_network import MULTIPLE, device_networks
from wsi_pipeline.models.architectures.slide_condition import head_inputs
from wsi_pipeline.models.model import Model, calibrated
from wsi_pipeline.models.slide_input import SlideInput

log = logging.getLogger(__name__)

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
# Patches a batch of a light network: more gain nothing. A heavier one takes fewer, by its arithmetic: a batch then
# takes some milliseconds, and its activations a few gigabytes.
MOST_PATCHES, LEAST_PATCHES = 4096, 16
BATCH_MFLOP = 2.0**21
# On so many different patches it is proved that their places do not matter.
_PROVED_ON = 97


@dataclass
class _Memory:
    """What a graph reads and writes, on the device."""

    table: torch.Tensor
    """float32 [768], what each value of R, then G, then B becomes."""

    places: torch.Tensor
    """int64 [2, B]: upper left corners and pitches, in bytes of the ring's pixels."""

    patches: torch.Tensor
    """[B, S, S, C], what the network sees."""

    scores: torch.Tensor
    """float32 [B]."""

    head: list[torch.Tensor]
    """Of a network that hears of its slide, its last layer: float32 weight [classes, C] and bias [classes]."""


class CudaEngine:
    """A model on a device, in one precision; `batch_size` is halved until the device's memory holds it.

    Raises ValueError where a patch's score would depend on its place in the batch, and what torch raises.
    """

    name = "cuda graph"
    parallel_batches = 1

    def __init__(self, model: Model, ring: PixelRing, precision: Precision, batch_size: int):
        self.precision: Precision = precision
        self.accelerator, self.ring, self.batch_size = ring.accelerator, ring, batch_size
        self._card = model.card
        self._memory: _Memory | None = None
        self._network_as_trained = model.network
        self._slide: SlideInput | None = None
        self._replay: Callable[[], None] | None = None
        self._bound: torch.Tensor | None = None
        self._proved_size = 0
        refused: list[str] = []
        with ring.lock, device_errors(self.accelerator), torch.inference_mode():
            ring.take_over()
            for network, self._channels in device_networks(model, DTYPES[precision]):
                self._network = network.to(self.accelerator.device)
                self._make_ready(0, 0)
                if not (reason := self._problem()):
                    self._proved_size = self.batch_size
                    return
                refused.append(reason)
                self._forget()
        raise ValueError("; ".join(dict.fromkeys(refused)))

    @property
    def batch_sizes(self) -> Sequence[int]:
        """The one size of all batches."""
        return (self.batch_size,)

    def probabilities(self, batch: NDArray[np.uint8], slide: SlideInput) -> NDArray[np.float32]:
        """float32 [n], 0 to 1, of uint8 patches [n, S, S, 3] of that slide, at most a full batch."""
        side, ring = self._card.patch_px, self.ring
        if batch.shape[1:] != (side, side, 3):
            raise ValueError(f"patches have shape {batch.shape[1:]}, expected {(side, side, 3)}")
        with ring.lock, device_errors(self.accelerator), torch.inference_mode():
            ring.take_over()
            self.make_room(0, 0)
            self.set_slide(slide)
            source, target = ring.host.take(batch.size), ring.device.take(batch.size)
            assert source
            assert target
            ring.host_bytes(source)[: batch.size] = batch.reshape(-1)
            with self.accelerator.copying():
                ring.upload(source, target, batch.size)
                copied = self.accelerator.mark()
            places = torch.zeros(2, self.batch_size, dtype=torch.int64)
            places[0, : len(batch)] = target.start + torch.arange(len(batch)) * (side * side * 3)
            places[1, : len(batch)] = side * 3
            scores = torch.empty(self.batch_size)
            with self.accelerator.computing():
                self.accelerator.wait_for(copied)
                self.launch(places, scores)
                self.accelerator.mark().synchronize()
            return scores.numpy()[: len(batch)]

    @torch.inference_mode()
    def make_room(self, host: int, device: int) -> None:
        """See that the ring holds so many bytes on each side, a batch's at least, and that the graph reads there.

        Where the device's memory does not hold them beside the graph, batches are halved, as when it was made ready.
        Raises ModelError where that would change a patch's score with its place in the batch, and what torch raises.
        """
        self._make_ready(host, device)
        if self.batch_size == self._proved_size:
            return
        if reason := self._problem():
            raise ModelError(
                f"model '{self._card.name}' in {self.precision}: {self.accelerator.device} holds batches of "
                f"{self.batch_size} patches, not of {self._proved_size}, and in those {reason}; expected none that "
                "does: free memory of the GPU, by fewer --workers for one, or set classify.precision to fp32"
            )
        self._proved_size = self.batch_size

    @torch.inference_mode()
    def set_slide(self, slide: SlideInput) -> None:
        """The slide that batches from now on are of."""
        assert self._memory
        if self._slide is not slide:
            head = head_inputs(self._network_as_trained, slide.head)
            with self.accelerator.computing():
                self._memory.table.copy_(torch.from_numpy(input_table(self._card, slide.tables)))
                for held, values in zip(self._memory.head, head, strict=True):
                    # A network made wider has features that stay zero.
                    held[tuple(slice(length) for length in values.shape)] = torch.from_numpy(values).to(
                        held.device
                    )
            self._slide = slide

    @torch.inference_mode()
    def launch(self, places: torch.Tensor, scores: torch.Tensor) -> None:
        """Begin on a batch, on the compute stream.

        `places`, int64 [2, B], are the patches' upper left corners in bytes of the ring's pixels, and the bytes from
        one row of pixels to the next; `scores`, float32 [B], is filled once the stream has come to its end.
        """
        assert self._replay
        assert self._memory
        self._memory.places.copy_(places, non_blocking=True)
        self._replay()
        scores.copy_(self._memory.scores, non_blocking=True)

    def _make_ready(self, host: int, device: int) -> None:
        """Allocate and record what is missing, for half as many patches where the device has too little memory."""
        while not self._is_ready(host, device):
            self.batch_size //= 2
            log.warning(
                "%s: the memory of %s does not hold a batch of %d patches: %d are tried",
                self._card.name,
                self.accelerator.device,
                2 * self.batch_size,
                self.batch_size,
            )

    def _is_ready(self, host: int, device: int) -> bool:
        """Whether the device's memory holds it, the ring of so many bytes included; else nothing is held."""
        own = self.batch_size * self._card.patch_px**2 * 3 + SPARE_BYTES
        try:
            if self._memory is None:
                self._memory = self._new_memory()
                self._slide = None
            self.ring.require(max(host, own), max(device, own))
            if self._bound is not self.ring.pixels:
                self._record()
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.batch_size <= LEAST_PATCHES:
                raise
        self._forget()  # not in the handler: the error holds what was allocated
        return False

    def _new_memory(self) -> _Memory:
        device, side, b = self.accelerator.device, self._card.patch_px, self.batch_size
        with self.accelerator.computing():
            return _Memory(
                torch.from_numpy(input_table(self._card, None)).to(device),
                torch.zeros(2, b, dtype=torch.int64, device=device),
                torch.zeros((b, side, side, self._channels), dtype=DTYPES[self.precision], device=device),
                torch.zeros(b, device=device),
                self._empty_head(device),
            )

    def _empty_head(self, device: torch.device) -> list[torch.Tensor]:
        """Room for a slide's last layer, as many features wide as the network is on the device."""
        own = head_inputs(self._network_as_trained, None)
        if not own:
            return []
        weight, bias = own
        wide = -(-weight.shape[1] // MULTIPLE) * MULTIPLE if self._channels == MULTIPLE else weight.shape[1]
        return [torch.zeros(len(weight), wide, device=device), torch.zeros(bias.shape, device=device)]

    def _forget(self) -> None:
        self._memory = self._replay = self._bound = None
        self.accelerator.release()

    def _record(self) -> None:
        """The graph, on the ring's pixels of now."""
        assert self._memory
        pixels, memory = self.ring.pixels, self._memory

        def work() -> None:
            cut_normalised(pixels, memory.places[0], memory.places[1], memory.table, memory.patches)
            logits = self._network(
                memory.patches.permute(0, 3, 1, 2), *memory.head
            )  # of [B, C, S, S], channels_last
            memory.scores.copy_(calibrated(logits.float(), self._card))

        self._replay = None
        with self.accelerator.computing():
            memory.places.zero_()
        self._replay = self.accelerator.captured(work)
        self._bound = pixels

    def _problem(self) -> str:
        """Why it cannot be trusted: empty if patches have the same bits wherever in a batch they stand."""
        side, b = self._card.patch_px, self.batch_size
        n = min(b, _PROVED_ON)
        noise = np.random.default_rng(0).integers(0, 256, n * side * side * 3, np.uint8)
        which = torch.arange(b) % n
        found = torch.empty(3, b)
        with self.accelerator.computing():
            self.ring.pixels[: len(noise)].copy_(torch.from_numpy(noise))
            for i, moved in enumerate((0, 1, b // 2 + 3)):
                places = torch.stack([which.roll(moved) * (side * side * 3), torch.full((b,), side * 3)])
                self.launch(places, found[i])
                self.accelerator.mark().synchronize()
                found[i] = found[i].roll(-moved)
        if found.isnan().any():
            return "it gives no numbers (NaN) for some patches"
        if not (found == found[0, :n][which]).all():
            return "a patch's score depends on its place in the batch"
        return ""


def batch_size_of(mflop: float) -> int:
    """Patches a batch for a network of so much arithmetic a patch: a power of two."""
    most = BATCH_MFLOP / max(mflop, 1e-6)
    return int(min(MOST_PATCHES, max(LEAST_PATCHES, 2.0 ** math.floor(math.log2(most)))))
