"""Blocks in, probabilities out: readers decode ahead, the network computes, the caller keeps what is done, all at once.

Blocks wait for each other in bounded queues. A batch never crosses a block, so that the same block gives the same
bits whatever was done before it.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

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
from wsi_pipeline.tiling.patches import load_blocks, read_blocks

log = logging.getLogger(__name__)


def classify_blocks(
    blocks: Iterable[Block],
    grid: Grid,
    read: Callable[[Box], Pixels],
    classifier: Classifier,
    options: ClassifyOptions,
) -> Iterator[ScoredBlock]:
    """Each block with its patches' scores, in the blocks' order.

    `read` gives the pixels of a box of the grid's plane, and is called from several threads. While the caller keeps a
    block, the next ones are computed: no more than fill the device twice, and one.
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
            while sum(len(readable) for _, readable, _ in list(begun)[1:]) >= classifier.max_in_flight:
                yield _scored(*begun.popleft())
        while begun:
            yield _scored(*begun.popleft())
    finally:
        for _, _, pending in begun:
            pending.cancel()


def _scored(block: Block, readable: NDArray[np.bool_], pending: PendingScores) -> ScoredBlock:
    scores, spread = pending.result()
    return ScoredBlock(
        block, _among_all(scores, readable), None if spread is None else _among_all(spread, readable)
    )


def _read_already(read: Callable[[Box], Pixels], box: Box, pixels: Pixels) -> Callable[[Box], Pixels]:
    """`read`, which need not decode `box` when it is next asked for it."""
    kept = {box: pixels}
    return lambda wanted: kept.pop(wanted, None) or read(wanted)


def _dense_scorer(
    pixels: Pixels, block: Block, grid: Grid, classifier: Classifier, options: ClassifyOptions
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
) -> Iterator[ScoredBlock]:
    for block, pixels in load_blocks(blocks, lambda block: read(block.read_box), threads):
        each = dense.scores(pixels, block)
        yield ScoredBlock(block, *mean_and_spread(each))


def _among_all(values: NDArray[np.float32], readable: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The values of the readable patches at their places among all, NaN at the others'."""
    every = np.full(len(readable), np.nan, np.float32)
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
        dense_scorer(classifier.members, grid)  # before anything is read for it
    except ModelError:
        if options.dense == "require":
            raise
        return False
    return _dense_scorer(read(first.read_box), first, grid, classifier, options) is not None
