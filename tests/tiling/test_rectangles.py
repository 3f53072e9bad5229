import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.tiling.rectangles import WORTH_A_CUT, split_into_rectangles


def box_area(patches: np.ndarray) -> int:
    return int(np.prod(patches.max(axis=0) - patches.min(axis=0) + 1)) if len(patches) else 0


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1), st.integers(0, 999))
def test_parts_hold_each_patch_once_and_no_cut_is_left_that_pays(
    width: int, height: int, density: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    mask[seed % height, seed % width] = True
    patches = np.argwhere(mask)[:, ::-1]
    parts = split_into_rectangles(patches)
    assert sorted(np.concatenate(parts)) == list(range(len(patches)))
    for part in parts:
        inside = patches[part]
        for axis in (0, 1):
            for at in range(inside[:, axis].min() + 1, inside[:, axis].max() + 1):
                before = inside[:, axis] < at
                left = box_area(inside[before]) + box_area(inside[~before])
                assert left > (1 - WORTH_A_CUT) * box_area(inside)
