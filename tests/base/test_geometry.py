import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.base.geometry import Box, Plane, Region, Size, cover

downsamples = st.floats(0.1, 1024)
origins = st.floats(0, 2e5)
planes = st.builds(Plane, downsamples, downsamples, origins, origins)
boxes = st.builds(Box, *[st.integers(-100_000, 100_000)] * 2, *[st.integers(0, 100_000)] * 2)


@given(planes, boxes)
def test_a_box_taken_to_level_0_and_back_covers_the_same_pixels(plane: Plane, box: Box) -> None:
    assert cover(plane.from_level0(plane.to_level0(box))) == box


@given(planes, st.floats(-1e5, 1e5), st.floats(-1e5, 1e5))
def test_points_round_trip(plane: Plane, x: float, y: float) -> None:
    back = plane.point_from_level0(*plane.point_to_level0(x, y))
    assert back == pytest.approx((x, y), rel=1e-6, abs=1e-3)


@given(planes, st.integers(1, 64), boxes)
def test_a_coarser_plane_says_the_same_of_the_same_place(plane: Plane, factor: int, box: Box) -> None:
    coarse = plane.coarser(factor, factor)
    fine = Box(box.x * factor, box.y * factor, box.width * factor, box.height * factor)
    a, b = coarse.to_level0(box), plane.to_level0(fine)
    assert (a.left, a.bottom) == pytest.approx((b.left, b.bottom), rel=1e-9, abs=1e-3)


@given(boxes, boxes)
def test_an_intersection_lies_in_both(a: Box, b: Box) -> None:
    both = a.intersect(b)
    assert both.is_empty or (a.contains(both) and b.contains(both))
    assert both.width * both.height == b.intersect(a).width * b.intersect(a).height


def test_covering_floors_a_start_and_ceils_an_end() -> None:
    assert cover(Region(0.5, 1.0, 2.1, 3.0)) == Box(0, 1, 3, 2)
    assert cover(Region(-0.5, 0, 0.5, 1)) == Box(-1, 0, 2, 1)


def test_float_dust_does_not_grow_a_box() -> None:
    assert cover(Region(1 - 1e-9, 0, 3 + 1e-9, 1)) == Box(1, 0, 2, 1)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_a_plane_without_a_positive_downsample_cannot_be_made(wrong: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Plane(wrong, 1.0)


def test_negative_sizes_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="negative"):
        Size(-1, 2)
    with pytest.raises(ValueError, match="negative"):
        Box(0, 0, -1, 2)
