"""Scored blocks brought into the store while the next ones are scored."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from wsi_pipeline.results.stitch import stitch_block
from wsi_pipeline.results.store import SlideStore
from wsi_pipeline.tiling.cell_status import initial_status
from wsi_pipeline.tiling.grid import Block, Plan, ScoredBlock

log = logging.getLogger(__name__)

# A chunk is hardly any work, but waits for the disk, or for the answer of an object store.
WRITERS = 4
# Chunks begun and not yet written: whoever computes must not wait for one that is slow. A kill repeats them.
MOST_BEGUN = 4 * WRITERS


def commit_blocks(
    scored: Iterable[ScoredBlock], plan: Plan, store: SlideStore, before_each: Callable[[], None]
) -> Iterator[Block]:
    """Bring scored blocks into the store while the next ones are scored; each block once it is there, in their order.

    `scored` gives blocks of the plan, as `classify_blocks` does. `before_each` is called before each is written, from
    the threads that write, and may raise. Raises what it, `scored` and `SlideStore.write_block` raise; what is then
    being written is still written.
    """
    untouched = initial_status(plan)

    def commit(scored_block: ScoredBlock) -> Block:
        block, spread = scored_block.block, scored_block.spread
        cells = block.cells
        log.debug("done block %d, %d", cells.x, cells.y)
        before = untouched[cells.y : cells.bottom, cells.x : cells.right]
        values, status = stitch_block(plan.grid, block, scored_block.scores, before)
        deviation = None if spread is None else stitch_block(plan.grid, block, spread, before)[0]
        others = () if scored_block.others is None else scored_block.others.T
        of_classes = [stitch_block(plan.grid, block, scores, before)[0] for scores in others]
        before_each()
        store.write_block(cells, values, status, deviation, of_classes)
        return block

    begun: deque[Future[Block]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="writer") as pool:
        try:
            for scored_block in scored:
                begun.append(pool.submit(commit, scored_block))
                while begun and (len(begun) > MOST_BEGUN or begun[0].done()):
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for written in begun:
                written.cancel()
