"""Blocks that lie side by side taken as one, so that what is done for a block is done for several at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wsi_pipeline.base.geometry import Box
from wsi_pipeline.tiling.grid import Block

# So many blocks are read as one where the box around them is no larger than so many times theirs.
MOST_TOGETHER, MOST_SPREAD = 4, 1.25


@dataclass(frozen=True, eq=False)
class Group:
    """Blocks that are read as one."""

    blocks: tuple[Block, ...]
    whole: Block
    """All their patches, one block's behind the other's, and the box around them; the cells are the first one's."""


def group_blocks(blocks: Iterable[Block], most: int) -> list[Group]:
    """The blocks in their order, up to `most` of those that follow each other and lie side by side as one."""
    groups: list[Group] = []
    taken: list[Block] = []
    for block in blocks:
        if taken and (len(taken) == most or not _is_close([*taken, block])):
            groups.append(_group(taken))
            taken = []
        taken.append(block)
    return [*groups, _group(taken)] if taken else groups


def _is_close(blocks: Sequence[Block]) -> bool:
    """Whether the box around them holds little besides."""
    own = sum(block.read_box.width * block.read_box.height for block in blocks)
    around = _box_around(blocks)
    return around.width * around.height <= MOST_SPREAD * own


def _group(blocks: Sequence[Block]) -> Group:
    patches = np.concatenate([block.patches for block in blocks])
    return Group(tuple(blocks), replace(blocks[0], patches=patches, read_box=_box_around(blocks)))


def _box_around(blocks: Sequence[Block]) -> Box:
    boxes = [block.read_box for block in blocks]
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    right, bottom = max(box.right for box in boxes), max(box.bottom for box in boxes)
    return Box(left, top, right - left, bottom - top)
