from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import noise
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.base.errors import ConfigError, ScaleError
from wsi_pipeline.base.geometry import Box, Plane, Size
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.grid import Grid, GridOptions, Plan, patch_means, plan_grid, plan_patches

MakeSlide = Callable[..., Path]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any grid with patches side by side, overlapping or apart, and any choice of patches."""
    cell = draw(st.integers(1, 10))
    patch, stride = cell * draw(st.integers(1, 6)), cell * draw(st.integers(1, 8))
    columns, rows = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    kept = rng.random((rows, columns)) < draw(st.floats(0, 1))
    rejected = kept & (rng.random((rows, columns)) < 0.2)
    grid = Grid(Plane(4.0, 4.2, 30.0, 7.0), patch, stride, columns, rows)
    return Plan(grid, kept.astype(np.float32), kept, rejected, draw(st.integers(1, 13)))


@given(plans())
def test_blocks_write_each_cell_once_and_hold_every_patch_that_reaches_into_them(plan: Plan) -> None:
    grid, size = plan.grid, plan.grid.map_size
    written = np.zeros((size.height, size.width), int)
    for block in plan.blocks():
        cells = block.cells
        assert cells.x % plan.chunk_cells == 0
        assert cells.y % plan.chunk_cells == 0
        written[cells.y : cells.bottom, cells.x : cells.right] += 1
        mine = {(int(c), int(r)) for c, r in block.patches}
        for row, column in np.argwhere(plan.scored):
            x, y = column * grid.stride_cells, row * grid.stride_cells
            reaches = not Box(x, y, grid.patch_cells, grid.patch_cells).intersect(cells).is_empty
            assert reaches == ((column, row) in mine)
            if reaches:
                assert block.read_box.contains(grid.patch_box(int(column), int(row)))
    assert written.max(initial=0) <= 1
    # What no block writes holds no patch to score.
    for row, column in np.argwhere(plan.scored):
        x, y = column * grid.stride_cells, row * grid.stride_cells
        assert written[y : y + grid.patch_cells, x : x + grid.patch_cells].all()


@given(plans())
def test_without_overlap_each_patch_is_in_one_block(plan: Plan) -> None:
    if plan.grid.stride_px >= plan.grid.patch_px:
        listed = [tuple(patch) for block in plan.blocks() for patch in block.patches.tolist()]
        assert len(listed) == len(set(listed)) == plan.scored.sum()


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 60), st.integers(1, 60))
def test_the_grid_covers_every_pixel_as_its_stride_says(
    width: int, height: int, patch: int, stride: int
) -> None:
    from wsi_pipeline.tiling.grid import _positions

    for length in (width, height):
        count = _positions(length, patch, stride)
        starts = np.arange(count) * stride
        assert starts[-1] < length  # no patch lies wholly outside
        assert starts[-1] + max(patch, stride) >= length
        if stride <= patch and count > 1:
            assert starts[-2] + patch < length  # none is superfluous


def test_the_share_of_tissue_is_exact_to_the_area() -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[7:29, 11:43] = True
    grid = Grid(Plane(4, 4), patch_px=10, stride_px=5, columns=20, rows=14)
    mask_plane = Plane(8, 8)
    fine = mask.repeat(8, axis=0).repeat(8, axis=1)
    share = patch_means(grid, mask, mask_plane)
    for row in range(grid.rows):
        for column in range(grid.columns):
            part = fine[row * 20 : row * 20 + 40, column * 20 : column * 20 + 40]
            assert share[row, column] == pytest.approx(part.sum() / 1600, abs=1e-5)


def test_patches_over_the_edge_count_what_lies_outside_as_no_tissue() -> None:
    grid = Grid(Plane(1, 1), patch_px=50, stride_px=50, columns=2, rows=1)
    share = patch_means(grid, np.ones((50, 75), np.bool_), Plane(1, 1))
    assert share[0] == pytest.approx([1, 0.5])


@pytest.mark.parametrize("stride", [None, 25, 60])
def test_every_patch_with_enough_tissue_is_planned_and_no_other(
    make_slide: MakeSlide, stride: int | None
) -> None:
    slide = open_slide(make_slide("a.tiff", noise(777, 1010)))
    tissue = np.zeros((98, 127), np.bool_)
    tissue[20:70, 30:110] = True
    options = GridOptions(patch_px=50, stride_px=stride, mpp=0.5, min_tissue=0.3)
    mask_plane = Plane(8, 8)
    plan = plan_patches(slide, tissue, np.zeros_like(tissue), mask_plane, options)
    assert np.array_equal(plan.kept, patch_means(plan.grid, tissue, mask_plane) >= 0.3 - 1e-6)
    assert plan.kept.any()
    assert not plan.rejected.any()


def test_patches_mostly_under_artefacts_are_rejected_not_scored(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", noise(400, 400)))
    tissue = np.ones((50, 50), np.bool_)
    pen = np.zeros_like(tissue)
    pen[:, :25] = True
    plan = plan_patches(slide, tissue, pen, Plane(8, 8), GridOptions(patch_px=100, mpp=0.5))
    assert plan.rejected.tolist() == [[True, True, False, False]] * 4
    assert plan.scored.tolist() == [[False, False, True, True]] * 4


def test_a_slide_smaller_than_a_patch_is_one_patch(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", noise(20, 30), factors=(1,)))
    grid = plan_grid(slide, GridOptions(patch_px=50, mpp=0.5))
    assert (grid.columns, grid.rows) == (1, 1)
    assert grid.map_size == Size(1, 1)


def test_blocks_end_where_storage_tiles_end_if_any_such_fits(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", noise(2000, 2000), tile=240, factors=(1,)))
    options = GridOptions(patch_px=50, mpp=0.5, block_px=2048)
    plan = plan_patches(
        slide, np.ones((250, 250), np.bool_), np.zeros((250, 250), np.bool_), Plane(8, 8), options
    )
    assert plan.block_strides == 24  # 24 * 50 = 5 * 240


def test_a_grid_finer_than_the_slide_allows_is_refused(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", noise(100, 100), mpp=(4.0, 4.0)))
    with pytest.raises(ScaleError, match=r"enlarged 16\.0 times.*max_upsampling"):
        plan_grid(slide, GridOptions(patch_px=50, mpp=0.25))


def test_a_stride_that_shares_no_cell_with_the_patch_is_refused(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", noise(100, 100)))
    with pytest.raises(ConfigError, match="divides patch_px"):
        plan_grid(slide, GridOptions(patch_px=101, stride_px=7, mpp=0.5))


def test_a_grid_that_leaves_its_scale_to_a_model_needs_one(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", noise(100, 100)))
    with pytest.raises(ConfigError, match="no model card"):
        plan_grid(slide, GridOptions(stride_px=7))
