"""Blocks in, probabilities out: readers decode ahead, the network computes, the caller keeps what is done, all at once.

Blocks wait for each other in bounded queues. A batch never crosses a block, so that the same block gives the same
bits whatever was done before it.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.dense import DenseScorer, dense_scorer
from wsi_pipeline.engines.lanes import Pending
from wsi_pipeline.engines.options import ClassifyOptions as ClassifyOptions
from wsi_pipeline.errors import ModelError, UsageError
from wsi_pipeline.geometry import Box
from wsi_pipeline.grid import Block, Grid
from wsi_pipeline.patches import load_blocks, read_blocks
from wsi_pipeline.slide import Pixels
from wsi_pipeline.stain import Tables, stain_tables

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    import torch

    from wsi_pipeline.engines.choice import Chosen
    from wsi_pipeline.model import Model

log = logging.getLogger(__name__)

READERS_BESIDE_NETWORK, READERS_BEFORE_GPU = 2, 8


class PendingScores:
    """Scores that are being computed, by one network or several."""

    def __init__(self, members: Sequence[Pending]):
        self._members = members

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Once they are there: scores, float32 [n], 0 to 1, and of several networks their spread, float32 [n].

        Of several, the score is the mean, the spread the standard deviation (population), 0 to 0.5.
        """
        each = [member.result() for member in self._members]
        return (each[0], None) if len(each) == 1 else _mean_and_spread(np.stack(each))

    def cancel(self) -> None:
        """Leave what has not begun."""
        for member in self._members:
            member.cancel()


class Classifier:
    """A model on a device: uint8 patches in, probabilities of IDC out."""

    def __init__(self, model: "Model", device: "torch.device", options: ClassifyOptions):
        from wsi_pipeline.engines.choice import Engines

        self.model = model
        self.device = device
        self._engines = Engines(model, device, options)
        self._sample: NDArray[np.uint8] | None = None
        self._tables: Tables | None = None
        self._chosen: Chosen | None = None

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
        return self._tables

    @property
    def chosen(self) -> "Chosen":
        """The engine that computes it, chosen when it is first asked for."""
        if self._chosen is None:
            self._chosen = self._engines.choose(self._sample, self._tables)
        return self._chosen

    @property
    def precision(self) -> str:
        """What it is computed in: 'fp32', 'bf16' or 'int8'."""
        return self.chosen.lanes.engine.precision

    @property
    def engine_facts(self) -> list[dict[str, Any]]:
        """How each of its models is computed, for summary.json."""
        return [self.chosen.facts]

    @property
    def appetite(self) -> int:
        """Patches to have begun, so that the device never waits."""
        return self.chosen.lanes.appetite

    def adapted(
        self, densities: NDArray[np.floating], sample: NDArray[np.uint8] | None = None
    ) -> "Classifier":
        """This classifier for one slide, whose patches have these optical densities, float [n, 3].

        Brings the slide's stain towards that of the training data as far as the card says; see stain.py. On `sample`,
        uint8 [n, S, S, 3], patches of the slide as they are, its engine is checked (engines/choice.py).
        """
        card, adapted = self.model.card, copy(self)
        adapted._tables = stain_tables(densities, card.stain, card.stain_normalisation)
        if sample is not None:
            adapted._sample, adapted._chosen = sample, None
        return adapted

    def start(self, patches: NDArray[np.uint8]) -> PendingScores:
        """Begin on patches, uint8 [n, patch_px, patch_px, 3], which must stay as they are until they are scored."""
        return PendingScores([self.chosen.lanes.start(patches, self.tables)])

    def scores(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n], 0 to 1, of uint8 patches [n, patch_px, patch_px, 3]."""
        return self.start(patches).result()[0]

    def scores_and_spread(self, patches: NDArray[np.uint8]) -> tuple[NDArray[np.float32], None]:
        """The scores; one model alone has no spread."""
        return self.scores(patches), None


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

    @property
    def precision(self) -> str:
        """The members' precision: 'fp32', 'bf16', or both."""
        return ", ".join(sorted({member.precision for member in self._members}))

    @property
    def engine_facts(self) -> list[dict[str, Any]]:
        """How each of its models is computed, for summary.json."""
        return [facts for member in self._members for facts in member.engine_facts]

    @property
    def appetite(self) -> int:
        """Patches to have begun, so that the device never waits."""
        return max(member.appetite for member in self._members)

    def adapted(self, densities: NDArray[np.floating], sample: NDArray[np.uint8] | None = None) -> "Ensemble":
        """This ensemble for one slide, each member as its own card says; as `Classifier.adapted`."""
        adapted = copy(self)
        adapted._members = [member.adapted(densities, sample) for member in self._members]
        return adapted

    def start(self, patches: NDArray[np.uint8]) -> PendingScores:
        """Begin on patches, uint8 [n, patch_px, patch_px, 3], which must stay as they are until they are scored."""
        return PendingScores([member.chosen.lanes.start(patches, member.tables) for member in self._members])

    def scores_and_spread(
        self, patches: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation (population) between the members' probabilities, both float32 [n].

        The mean lies in 0 to 1, the deviation in 0 to 0.5. `patches` are uint8 [n, patch_px, patch_px, 3].
        """
        scores, spread = self.start(patches).result()
        assert spread is not None  # of several
        return scores, spread


def classifier_of(
    models: "Sequence[Model]", device: "torch.device", options: ClassifyOptions
) -> Classifier | Ensemble:
    """The classifier of one model, or the ensemble of several."""
    return Classifier(models[0], device, options) if len(models) == 1 else Ensemble(models, device, options)


def choose_device(name: str, worker: int = 0) -> "torch.device":
    """The device that 'auto', 'cpu', 'cuda' or 'cuda:1' names; auto takes a GPU where there is one.

    Of a machine with several GPUs, its workers, counted from 0, get them by turns, unless `name` says which.

    Raises UsageError when it names a GPU that is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cuda") and gpus > 1:
        return torch.device(f"cuda:{worker % gpus}")
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
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


def reader_threads(options: ClassifyOptions, device: "torch.device") -> int:
    """Threads that decode ahead of a network on that device."""
    if options.reader_threads is not None:
        return options.reader_threads
    return READERS_BESIDE_NETWORK if device.type == "cpu" else min(READERS_BEFORE_GPU, os.cpu_count() or 1)


def classify_blocks(
    blocks: Iterable[Block],
    grid: Grid,
    read: Callable[[Box], Pixels],
    classifier: Classifier | Ensemble,
    options: ClassifyOptions,
) -> Iterator[tuple[Block, NDArray[np.float32], NDArray[np.float32] | None]]:
    """Each block with its patches' scores and, of an ensemble, their spread, in the blocks' order.

    Both are float32 [n], NaN where unreadable; the spread is the standard deviation between the members. `read`
    gives the pixels of a box of the grid's plane, and is called from several threads. While the caller keeps a block,
    the next ones are computed: no more than fill the device twice, and one.
    """
    if options.dense != "off" and grid.stride_px < grid.patch_px and (blocks := list(blocks)):
        first = read(blocks[0].read_box)
        if dense := _dense_scorer(first, blocks[0], grid, classifier, options):
            read = _read_already(read, blocks[0].read_box, first)
            threads = reader_threads(options, classifier.device)
            yield from _classify_densely(blocks, read, dense, threads)
            return
    begun: deque[tuple[Block, NDArray[np.bool_], PendingScores]] = deque()
    try:
        for block, cut in read_blocks(blocks, grid, read, reader_threads(options, classifier.device)):
            patches = cut.rgb if cut.readable.all() else cut.rgb[cut.readable]
            begun.append((block, cut.readable, classifier.start(patches)))
            while sum(len(readable) for _, readable, _ in list(begun)[1:]) >= classifier.appetite:
                yield _scored(*begun.popleft())
        while begun:
            yield _scored(*begun.popleft())
    finally:
        for _, _, pending in begun:
            pending.cancel()


def _scored(
    block: Block, readable: NDArray[np.bool_], pending: PendingScores
) -> tuple[Block, NDArray[np.float32], NDArray[np.float32] | None]:
    scores, spread = pending.result()
    return block, _among_all(scores, readable), None if spread is None else _among_all(spread, readable)


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
    blocks: Sequence[Block], read: Callable[[Box], Pixels], dense: DenseScorer, threads: int
) -> Iterator[tuple[Block, NDArray[np.float32], NDArray[np.float32] | None]]:
    for block, pixels in load_blocks(blocks, lambda block: read(block.read_box), threads):
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
