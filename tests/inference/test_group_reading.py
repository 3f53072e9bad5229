"""Blocks that lie side by side are read as one, by calls of C that decode into the memory that is copied from."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import noise
from models import brightness_model
from stand_in import on_stand_in
from test_device_blocks import of, scored
from test_patches import everything

from wsi_pipeline.inference.classify import ClassifyOptions, classify_blocks
from wsi_pipeline.inference.device_blocks import bytes_of, load_block
from wsi_pipeline.slides.readers import jpeg_tiles
from wsi_pipeline.tiling.block_groups import MOST_SPREAD, MOST_TOGETHER, group_blocks

MakeSlide = Callable[..., Path]


@pytest.mark.parametrize("threads", [1, 3, 9])
def test_blocks_read_as_one_give_what_each_gives(shared: Path, threads: int) -> None:
    slide, plan = everything(shared / "data/bad/five_tiles_corrupt.svs", block_px=512)
    read, options = plan.grid.reader(slide), ClassifyOptions(reader_threads=threads, dense="off")
    if not read.decodes_many:
        pytest.skip("the C function was not built here: no compiler or no jpeglib.h")
    assert len(group_blocks(plan.blocks(), MOST_TOGETHER)) < len(list(plan.blocks())) / 2
    expected = scored(slide, plan, of([brightness_model()]))
    classifier = on_stand_in(of([brightness_model()]), 100)
    found = list(classify_blocks(plan.blocks(), plan.grid, read, classifier, options))
    assert len(found) == len(expected) > 8
    for one, right in zip(found, expected, strict=True):
        assert one.block.cells == right.block.cells
        np.testing.assert_allclose(one.scores, right.scores, rtol=0, atol=1e-5, equal_nan=True)
    assert any(np.isnan(one.scores).any() for one in found)


def test_only_blocks_that_lie_side_by_side_are_read_as_one(make_slide: MakeSlide) -> None:
    _, plan = everything(make_slide("a.tiff", noise(900, 2600)), block_px=256)
    blocks = list(plan.blocks())
    columns = len({block.cells.x for block in blocks})
    groups = group_blocks(blocks, MOST_TOGETHER)
    assert [block for group in groups for block in group.blocks] == blocks
    for group in groups:
        assert 1 <= len(group.blocks) <= MOST_TOGETHER
        assert len({block.cells.y for block in group.blocks}) == 1  # the next row's begin far to the left
        patches = np.concatenate([block.patches for block in group.blocks])
        assert np.array_equal(group.whole.patches, patches)
        own = sum(block.read_box.width * block.read_box.height for block in group.blocks)
        assert own <= group.whole.read_box.width * group.whole.read_box.height <= MOST_SPREAD * own
    assert len(groups) == len(blocks) // columns * -(-columns // MOST_TOGETHER)
    apart = group_blocks(blocks[::2], MOST_TOGETHER)
    assert [len(group.blocks) for group in apart] == [1] * len(blocks[::2])
    assert group_blocks([], MOST_TOGETHER) == []


def test_blocks_as_one_are_two_calls_of_c_at_most_and_own_tiles_go_straight_to_their_place(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not jpeg_tiles.is_built():
        pytest.skip("the C function was not built here: no compiler or no jpeglib.h")
    built, calls = jpeg_tiles._jpeg_tiles, []

    def decode_tiles(*given: Any) -> None:
        *_, rows, memory, _, threads = given
        calls.append((len(rows), memory, threads))
        built.decode_tiles(*given)

    counted = SimpleNamespace(decode_tiles=decode_tiles, copy_rectangles=built.copy_rectangles)
    monkeypatch.setattr(jpeg_tiles, "_jpeg_tiles", counted)
    slide, plan = everything(shared / "data/slides/cmu_1_small_region.svs", block_px=512)
    read = plan.grid.reader(slide)
    groups = group_blocks(plan.blocks(), MOST_TOGETHER)
    memory = np.empty(max(bytes_of(group.whole, read)[0] for group in groups), np.uint8)
    load_block(groups[0].whole, plan.grid, read, memory)  # and the level is compared with simplejpeg
    straight, behind = 0, 0
    for group in groups[1:]:
        calls.clear()
        assert load_block(group.whole, plan.grid, read, memory, 4).readable.all()
        assert len(calls) <= 2
        for tiles, targets, threads in calls:
            assert threads == 4
            if np.shares_memory(targets[0], memory):
                straight += tiles
            else:
                behind += tiles  # tiles that other blocks want too
    assert straight > 20
    assert behind > 0
