import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_grid import plans

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.stitch import stitch_block
from wsi_pipeline.tiling.cell_status import Status, initial_status
from wsi_pipeline.tiling.grid import Grid, Plan


def stitched(plan: Plan, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whole map from scores [rows, columns], block by block."""
    status = initial_status(plan)
    heatmap = np.full(status.shape, np.nan, np.float32)
    for block in plan.blocks():
        cells = (slice(block.cells.y, block.cells.bottom), slice(block.cells.x, block.cells.right))
        values = scores[block.patches[:, 1], block.patches[:, 0]].astype(np.float32)
        heatmap[cells], status[cells] = stitch_block(plan.grid, block, values, status[cells])
    return heatmap, status


@given(plans(), st.integers(0, 2**31))
def test_overlaps_merge_as_brute_force_says(plan: Plan, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random(plan.kept.shape).astype(np.float32)
    scores[rng.random(plan.kept.shape) < 0.1] = np.nan  # could not be read
    heatmap, status = stitched(plan, scores)
    grid = plan.grid
    for y, x in np.ndindex(heatmap.shape):
        covering = [
            scores[row, column]
            for row, column in np.argwhere(plan.scored)
            if 0 <= y - row * grid.stride_cells < grid.patch_cells
            and 0 <= x - column * grid.stride_cells < grid.patch_cells
        ]
        read = [float(score) for score in covering if not np.isnan(score)]
        if read:
            assert abs(heatmap[y, x] - np.mean(read)) < 1e-6
            assert status[y, x] == Status.SCORED
        else:
            assert np.isnan(heatmap[y, x])
            assert (status[y, x] == Status.UNREADABLE) == bool(covering)
        assert status[y, x] != Status.PLANNED


@given(plans(), st.integers(0, 2**31), st.integers(1, 13))
def test_the_size_of_blocks_changes_no_bit(plan: Plan, seed: int, other: int) -> None:
    scores = np.random.default_rng(seed).random(plan.kept.shape).astype(np.float32)
    again = Plan(plan.grid, plan.tissue, plan.kept, plan.rejected, other)
    for a, b in zip(stitched(plan, scores), stitched(again, scores), strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype == np.float32)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_side_by_side_patches_stitch_back_to_their_scores(
    columns: int, rows: int, strides: int, seed: int
) -> None:
    grid = Grid(Plane(1, 1), 50, 50, columns, rows)
    every = np.ones((rows, columns), np.bool_)
    plan = Plan(grid, every.astype(np.float32), every, ~every, strides)
    scores = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)
    heatmap, status = stitched(plan, scores)
    assert np.array_equal(heatmap, scores)
    assert (status == Status.SCORED).all()


def test_rejected_cells_stay_rejected_unless_a_scored_patch_covers_them() -> None:
    grid = Grid(Plane(1, 1), 50, 25, columns=3, rows=1)
    kept = np.ones((1, 3), np.bool_)
    plan = Plan(grid, kept.astype(np.float32), kept, np.array([[True, False, False]]), 8)
    _, status = stitched(plan, np.full((1, 3), 0.5))
    assert status.tolist() == [[2, 1, 1, 1]] * 2
