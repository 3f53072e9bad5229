"""Scored blocks brought into the store while the next ones are scored."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.results.stitch import stitch_block
from wsi_pipeline.tiling.cell_status import initial_status
from wsi_pipeline.tiling.grid import Block, Plan

if TYPE_CHECKING:  # the store takes Status from here
    from wsi_pipeline.results.store import SlideStore

log = logging.getLogger(__name__)

# A chunk is hardly any work, but waits for the disk, or for the answer of an object store.
WRITERS = 4


def commit_blocks(
    scored: Iterable[tuple[Block, NDArray[np.float32], NDArray[np.float32] | None]],
    plan: Plan,
    store: "SlideStore",
    before_each: Callable[[], None],
) -> Iterator[Block]:
    """Bring scored blocks into the store while the next ones are scored; each block once it is there, in their order.

    `scored` gives blocks of the plan with scores and, of an ensemble, spread, as `classify_blocks` does. `before_each`
    is called before each is written, from the threads that write, and may raise. Raises what it, `scored` and
    `SlideStore.write_block` raise; what is then being written is still written.
    """
    untouched = initial_status(plan)

    def commit(block: Block, scores: NDArray[np.float32], spread: NDArray[np.float32] | None) -> None:
        log.debug("done block %d, %d", block.cells.x, block.cells.y)
        cells = block.cells
        before = untouched[cells.y : cells.bottom, cells.x : cells.right]
        values, status = stitch_block(plan.grid, block, scores, before)
        deviation = None if spread is None else stitch_block(plan.grid, block, spread, before)[0]
        before_each()
        store.write_block(cells, values, status, deviation)

    begun: deque[tuple[Block, Future[None]]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="writer") as pool:
        try:
            for block, scores, spread in scored:
                begun.append((block, pool.submit(commit, block, scores, spread)))
                while begun and (len(begun) > WRITERS or begun[0][1].done()):
                    yield _committed(*begun.popleft())
            while begun:
                yield _committed(*begun.popleft())
        finally:
            for _, written in begun:
                written.cancel()


def _committed(block: Block, written: Future[None]) -> Block:
    written.result()
    return block
