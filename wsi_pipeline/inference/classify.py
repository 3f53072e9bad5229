"""Blocks in, probabilities out: readers decode ahead, the network computes, the caller keeps what is done, all at once.

What is done is given out at once, so that it can be kept: a process that is killed loses what is in these queues. So
they are bounded by blocks and by bytes, to what keeps readers and network at work. What a block gives depends on that
block alone, whatever was done before it.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.base.geometry import Box
from wsi_pipeline.inference.classifier import Classifier, PendingScores, mean_and_spread
from wsi_pipeline.inference.dense import DenseScorer, dense_scorer
from wsi_pipeline.inference.device import reader_threads
from wsi_pipeline.inference.engines.options import ClassifyOptions as ClassifyOptions
from wsi_pipeline.slides.slide import Pixels
from wsi_pipeline.tiling.grid import Block, Grid, Plan, ScoredBlock
from wsi_pipeline.tiling.patches import CutPatches, load_blocks, read_patches

log = logging.getLogger(__name__)

# Patches read and not yet given out hold no more memory than this, or than one block's.
MOST_BYTES = 256 * 2**20


def classify_blocks(
    blocks: Iterable[Block],
    grid: Grid,
    read: Callable[[Box], Pixels],
    classifier: Classifier,
    options: ClassifyOptions,
) -> Iterator[ScoredBlock]:
    """Each block with its patches' scores and, of an ensemble, their spread, in the blocks' order.

    Both are float32 [n], NaN where unreadable; the spread is the standard deviation between the members. `read`
    gives the pixels of a box of the grid's plane, and is called from several threads. A block is given out as soon as
    it and those before it are scored. Ahead of the one that is waited for, no more are read than the readers have
    threads, and one, and no more computed than keep the device at work; of a GPU see device_blocks.py.
    """
    threads = reader_threads(options, classifier.device)
    if options.dense != "off" and grid.stride_px < grid.patch_px and (blocks := list(blocks)):
        first = read(blocks[0].read_box)
        if dense := _dense_scorer(first, blocks[0], grid, classifier, options):
            read = _read_already(read, blocks[0].read_box, first)
            yield from _classify_densely(blocks, read, dense, threads)
            return
    if on_device := classifier.device_engines:
        from wsi_pipeline.inference.device_blocks import score_on_device  # torch: seconds, once it is needed

        for block, each in score_on_device(blocks, grid, read, on_device, threads):
            yield ScoredBlock(block, *mean_and_spread(list(each)))
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="reader") as pool:
        queue = _Queue(iter(blocks), lambda block: read_patches(block, grid, read), classifier, pool, threads)
        try:
            yield from queue.scored()
        finally:
            queue.leave()


class _Queue:
    """Blocks that are read, and those that are computed."""

    def __init__(
        self,
        todo: Iterator[Block],
        load: Callable[[Block], CutPatches],
        classifier: Classifier,
        pool: ThreadPoolExecutor,
        threads: int,
    ):
        self._todo, self._load, self._classifier = todo, load, classifier
        self._pool, self._threads = pool, threads
        self._reading: deque[tuple[Block, Future[CutPatches]]] = deque()
        self._begun: deque[tuple[Block, CutPatches, PendingScores]] = deque()

    def scored(self) -> Iterator[ScoredBlock]:
        """Each block, once it is scored."""
        while True:
            self._begin_reading()
            if not self._reading and not self._begun:
                return
            if self._begun and self._begun[0][2].done():
                block, cut, pending = self._begun.popleft()
                found = pending.result()
                each = [
                    None if values is None else _among_all(values, cut.readable)
                    for values in (found.spread, found.others)
                ]
                yield ScoredBlock(block, _among_all(found.scores, cut.readable), *each)
            elif self._reading and not self._is_enough() and self._reading[0][1].done():
                block, loaded = self._reading.popleft()
                cut = loaded.result()
                patches = cut.rgb if cut.readable.all() else cut.rgb[cut.readable]
                self._begun.append((block, cut, self._classifier.start(patches)))
            else:
                self._wait()

    def leave(self) -> None:
        """Begin nothing more."""
        for _, loaded in self._reading:
            loaded.cancel()
        for _, _, pending in self._begun:
            pending.cancel()

    def _begin_reading(self) -> None:
        while len(self._reading) <= self._threads and (block := next(self._todo, None)) is not None:
            self._reading.append((block, self._pool.submit(self._load, block)))

    def _is_enough(self) -> bool:
        """Whether memory is filled by what was begun, or the device kept at work by what follows its first block."""
        batches = sum(pending.batches for _, _, pending in list(self._begun)[1:])
        held = sum(cut.rgb.nbytes for _, cut, _ in self._begun)
        return batches >= self._classifier.batches_in_flight or held >= MOST_BYTES

    def _wait(self) -> None:
        """Until the next block is read, or the first one scored."""
        coming: list[Future[Any]] = []
        if self._reading and not self._is_enough():
            coming.append(self._reading[0][1])
        if not self._begun:
            wait(coming)
            return
        # Any of its batches: how many are left is asked again then.
        wait([*coming, *self._begun[0][2].unfinished], return_when=FIRST_COMPLETED)


def _read_already(read: Callable[[Box], Pixels], box: Box, pixels: Pixels) -> Callable[[Box], Pixels]:
    """`read`, which need not decode `box` when it is next asked for it."""
    kept = {box: pixels}
    return lambda wanted: kept.pop(wanted, None) or read(wanted)


def _scorer(classifier: Classifier, grid: Grid) -> DenseScorer:
    """As `dense_scorer`; it gives one class alone."""
    if classifier.other_classes:
        raise ModelError(
            "dense: gives one class alone; classify: {other_classes: false} leaves the others out, or leave "
            "classify.dense off"
        )
    return dense_scorer(classifier.members, grid)


def _dense_scorer(
    pixels: Pixels, block: Block, grid: Grid, classifier: Classifier, options: ClassifyOptions
) -> DenseScorer | None:
    """The scorer over whole blocks, compared with patch by patch on this one; None where it is not the same."""
    try:
        dense = _scorer(classifier, grid)
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
) -> Iterator[ScoredBlock]:
    for block, pixels in load_blocks(blocks, lambda block: read(block.read_box), threads):
        each = dense.scores(pixels, block)
        yield ScoredBlock(block, *mean_and_spread(each))


def _among_all(values: NDArray[np.float32], readable: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The values of the readable patches at their places among all, NaN at the others'."""
    every = np.full((len(readable), *values.shape[1:]), np.nan, np.float32)
    every[readable] = values
    return every


def runs_densely(
    plan: Plan, read: Callable[[Box], Pixels], classifier: Classifier, options: ClassifyOptions
) -> bool:
    """Whether blocks of the plan are run over as a whole: settled once, on its first block, for all runs of a store.

    `read` as in `classify_blocks`. Raises ModelError where `options.dense` requires it and it is not the same.
    """
    grid = plan.grid
    first = next(plan.blocks(), None)
    if options.dense == "off" or grid.stride_px >= grid.patch_px or first is None:
        return False
    try:
        _scorer(classifier, grid)  # before anything is read for it
    except ModelError:
        if options.dense == "require":
            raise
        return False
    return _dense_scorer(read(first.read_box), first, grid, classifier, options) is not None
