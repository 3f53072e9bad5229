"""Blocks in, probabilities out: reader threads decode ahead while the device computes.

A batch never crosses a block, so that the same block gives the same bits whatever was done before it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.dense import DenseScorer, dense_scorer
from wsi_pipeline.errors import ModelError, UsageError
from wsi_pipeline.geometry import Box
from wsi_pipeline.grid import Block, Grid
from wsi_pipeline.options import Field, options
from wsi_pipeline.patches import load_blocks, read_blocks
from wsi_pipeline.slide import Pixels
from wsi_pipeline.stain import Tables, stain_tables

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    import torch

    from wsi_pipeline.model import Model

log = logging.getLogger(__name__)

# Activations of this many patches stay in a CPU's cache; a GPU wants to be filled.
CPU_BATCH = 128
GPU_BATCH = 2048


@options
class ClassifyOptions:
    """How patches are put through the network; changes the map by less than 1e-3, bf16 by less than 1e-2."""

    batch_size: Annotated[int, Field(gt=0)] | None = None
    """Patches a forward pass; none: 128 on a CPU, 2048 on a GPU."""

    reader_threads: Annotated[int, Field(gt=0)] = 2
    """Threads that decode blocks ahead of the network."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the model card allows it and the device computes it natively, else fp32."""

    dense: Literal["auto", "off", "require"] = "auto"
    """Overlapping patches by one run over the whole block. auto: where the network's own scores come out, else one by
    one; require: an error where they do not."""


class Classifier:
    """A model on a device: uint8 patches in, probabilities of IDC out."""

    def __init__(self, model: "Model", device: "torch.device", options: ClassifyOptions):
        self.model = model
        self.device = device
        self.batch_size = options.batch_size or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)
        self.precision = choose_precision(model, device, options)
        self._network = model.network.to(device)
        self._tables: torch.Tensor | None = None

    @property
    def models(self) -> "tuple[Model, ...]":
        """The one model."""
        return (self.model,)

    @property
    def members(self) -> "tuple[Classifier, ...]":
        """Itself alone."""
        return (self,)

    @property
    def tables(self) -> Tables | None:
        """What brings the slide's stain to the training data's, uint8 [3, 256]; None: nothing does."""
        return None if self._tables is None else self._tables.cpu().numpy().reshape(3, 256)

    def adapted(self, densities: NDArray[np.floating]) -> "Classifier":
        """This classifier for one slide, whose patches have these optical densities, float [n, 3].

        Brings the slide's stain towards that of the training data as far as the card says; see stain.py.
        """
        import torch

        card, adapted = self.model.card, copy(self)
        tables = stain_tables(densities, card.stain, card.stain_normalisation)
        adapted._tables = None if tables is None else torch.from_numpy(tables.ravel()).to(self.device)
        return adapted

    def scores(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n], 0 to 1, of uint8 patches [n, patch_px, patch_px, 3]."""
        import torch

        if not len(patches):
            return np.empty(0, np.float32)
        with torch.inference_mode():
            parts = [self.forward(batch) for batch in _batches(patches, self.batch_size, self.device)]
        return torch.cat(parts).cpu().numpy()

    def scores_and_spread(self, patches: NDArray[np.uint8]) -> tuple[NDArray[np.float32], None]:
        """The scores; one model alone has no spread."""
        return self.scores(patches), None

    def forward(self, batch: "torch.Tensor") -> "torch.Tensor":
        """float32 [n], 0 to 1, of one batch of uint8 patches on the device."""
        from wsi_pipeline.model import idc_probability

        if self._tables is not None:
            batch = self._tables.take(batch.long() + _channel_starts(batch.device))
        with self._autocast():
            return idc_probability(self._network, self.model.card, batch).float()  # [n]

    def _autocast(self) -> "torch.autocast | nullcontext[None]":
        import torch

        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


class Ensemble:
    """Several models of one patch size and scale on a device: what they say in the mean, and how far apart."""

    def __init__(self, models: "Sequence[Model]", device: "torch.device", options: ClassifyOptions):
        self.device = device
        self._members = [Classifier(model, device, options) for model in models]

    @property
    def models(self) -> "tuple[Model, ...]":
        """The members, in the order given."""
        return tuple(member.model for member in self._members)

    @property
    def members(self) -> tuple[Classifier, ...]:
        """A classifier of each model."""
        return tuple(self._members)

    def adapted(self, densities: NDArray[np.floating]) -> "Ensemble":
        """This ensemble for one slide, each member as its own card says."""
        adapted = copy(self)
        adapted._members = [member.adapted(densities) for member in self._members]
        return adapted

    @property
    def precision(self) -> str:
        """The members' precision: 'fp32', 'bf16', or both."""
        return ", ".join(sorted({member.precision for member in self._members}))

    def scores_and_spread(
        self, patches: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation (population) between the members' probabilities, both float32 [n].

        The mean lies in 0 to 1, the deviation in 0 to 0.5. `patches` are uint8 [n, patch_px, patch_px, 3]; each
        batch is brought to the device once, for all members.
        """
        import torch

        if not len(patches):
            return np.empty(0, np.float32), np.empty(0, np.float32)
        with torch.inference_mode():
            parts = [
                torch.stack([member.forward(batch) for member in self._members])  # [members, n of the batch]
                for batch in _batches(patches, self._members[0].batch_size, self.device)
            ]
        return _mean_and_spread(torch.cat(parts, dim=1).cpu().numpy())


def classifier_of(
    models: "Sequence[Model]", device: "torch.device", options: ClassifyOptions
) -> Classifier | Ensemble:
    """The classifier of one model, or the ensemble of several."""
    return Classifier(models[0], device, options) if len(models) == 1 else Ensemble(models, device, options)


def choose_device(name: str) -> "torch.device":
    """The device that 'auto', 'cpu', 'cuda' or 'cuda:1' names; auto takes a GPU where there is one.

    Raises UsageError when it names a GPU that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            f"{torch.__version__} can use; take --device auto or cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return device


def choose_precision(
    model: "Model", device: "torch.device", options: ClassifyOptions
) -> Literal["fp32", "bf16"]:
    """What `options.precision` comes to on this device with this card."""
    import torch

    if options.precision != "auto":
        return options.precision
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
    return "bf16" if model.card.bf16 and native else "fp32"


def classify_blocks(
    blocks: Iterable[Block],
    grid: Grid,
    read: Callable[[Box], Pixels],
    classifier: Classifier | Ensemble,
    options: ClassifyOptions,
) -> Iterator[tuple[Block, NDArray[np.float32], NDArray[np.float32] | None]]:
    """Each block with its patches' scores and, of an ensemble, their spread, in the blocks' order.

    Both are float32 [n], NaN where unreadable; the spread is the standard deviation between the members. `read`
    gives the pixels of a box of the grid's plane, and is called from several threads.
    """
    if options.dense != "off" and grid.stride_px < grid.patch_px and (blocks := list(blocks)):
        first = read(blocks[0].read_box)
        read = _read_already(read, blocks[0].read_box, first)
        if dense := _dense_scorer(first, blocks[0], grid, classifier, options):
            yield from _classify_densely(blocks, read, dense, options)
            return
    for block, cut in read_blocks(blocks, grid, read, options.reader_threads):
        patches = cut.rgb if cut.readable.all() else cut.rgb[cut.readable]
        scores, spread = classifier.scores_and_spread(patches)
        yield (
            block,
            _among_all(scores, cut.readable),
            None if spread is None else _among_all(spread, cut.readable),
        )


def _read_already(read: Callable[[Box], Pixels], box: Box, pixels: Pixels) -> Callable[[Box], Pixels]:
    """`read`, which need not decode `box` when it is next asked for it."""
    kept = {box: pixels}
    return lambda wanted: kept.pop(wanted, None) or read(wanted)


def _dense_scorer(
    pixels: Pixels, block: Block, grid: Grid, classifier: Classifier | Ensemble, options: ClassifyOptions
) -> DenseScorer | None:
    """The scorer over whole blocks, compared with patch by patch on this one; None where it is not the same."""
    try:
        dense = dense_scorer(classifier.members, grid)
        dense.compare(pixels, block)
    except ModelError as error:
        if options.dense == "require":
            raise
        log.info("patch by patch: %s", error)
        return None
    log.info("over whole blocks: the first one's scores are those of its patches")
    return dense


def _classify_densely(
    blocks: Sequence[Block], read: Callable[[Box], Pixels], dense: DenseScorer, options: ClassifyOptions
) -> Iterator[tuple[Block, NDArray[np.float32], NDArray[np.float32] | None]]:
    for block, pixels in load_blocks(blocks, lambda block: read(block.read_box), options.reader_threads):
        each = dense.scores(pixels, block)
        yield block, *((each[0], None) if len(each) == 1 else _mean_and_spread(np.stack(each)))


def _mean_and_spread(each: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Over members [members, n]: mean and standard deviation, both float32 [n]."""
    exact = each.astype(np.float64)
    return exact.mean(axis=0).astype(np.float32), exact.std(axis=0).astype(np.float32)


def _among_all(values: NDArray[np.float32], readable: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The values of the readable patches at their places among all, NaN at the others'."""
    every = np.full(len(readable), np.nan, np.float32)
    every[readable] = values
    return every


@lru_cache
def _channel_starts(device: "torch.device") -> "torch.Tensor":
    """Where the tables of R, G and B begin, one after the other."""
    import torch

    return torch.tensor([0, 256, 512], device=device)


def _batches(patches: NDArray[np.uint8], batch_size: int, device: "torch.device") -> "Iterator[torch.Tensor]":
    """The patches on the device, `batch_size` at a time."""
    import torch

    for batch in torch.split(torch.from_numpy(patches), batch_size):
        if device.type == "cuda":
            yield batch.pin_memory().to(device, non_blocking=True)
        else:
            yield batch


def _cpu_has_bf16() -> bool:
    import torch

    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name yet
    return bool(probe and probe())
