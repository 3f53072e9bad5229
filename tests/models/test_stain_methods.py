"""Macenko's and Reinhard's methods are those of the papers: they agree with another implementation, and undo stains."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.models.stain_methods import (
    LabSpread,
    PixelMethod,
    TwoStains,
    as_numbers,
    colour_table,
    find_stains,
    of_numbers,
)
from wsi_pipeline.slides.slide import open_slide

# Haematoxylin and eosin, unit vectors in the density of R, G, B.
HE = np.array([[0.65, 0.70, 0.29], [0.21, 0.90, 0.38]]).T
METHODS: tuple[PixelMethod, ...] = ("macenko", "reinhard")


def stained(seed: int, most: tuple[float, float] = (1.6, 0.9), turn: float = 0.0) -> NDArray[np.uint8]:
    """Pixels of two stains, in amounts from none to about `most`; `turn` mixes each stain with the other."""
    rng = np.random.default_rng(seed)
    share = rng.beta(0.5, 0.5, 40_000)
    amounts = np.stack([share * most[0], (1 - share) * most[1]]) * rng.uniform(0.4, 1, 40_000)
    directions = HE @ np.array([[1 - turn, turn], [turn, 1 - turn]])
    directions = directions / np.linalg.norm(directions, axis=0)
    light = 240 * np.exp(-(directions @ amounts)).T
    return light.clip(0, 255).round().astype(np.uint8).reshape(200, 200, 3)


def test_macenko_finds_the_two_stains_that_pixels_are_made_of():
    found = find_stains("macenko", stained(0))
    assert isinstance(found, TwoStains)
    cosines = (found.directions * (HE / np.linalg.norm(HE, axis=0))).sum(axis=0)
    assert (cosines > 0.995).all()
    assert found.most == pytest.approx([1.6, 0.9], rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_of_another_stain_comes_to_look_like_the_reference(method):
    reference, other = stained(0), stained(1, (1.0, 1.4), turn=0.12)
    table = colour_table(find_stains(method, other), find_stains(method, reference))
    new = table.applied(other)
    before, after = (
        np.abs(np.mean(a, axis=(0, 1)) - reference.mean(axis=(0, 1))).max() for a in (other, new)
    )
    assert before > 8
    assert after < 2
    found, aim = find_stains(method, new), find_stains(method, reference)
    if isinstance(found, LabSpread):
        assert isinstance(aim, LabSpread)
        assert found.mean == pytest.approx(aim.mean, abs=2)
        assert found.std == pytest.approx(aim.std, abs=2)
    else:
        assert isinstance(aim, TwoStains)
        assert found.directions == pytest.approx(aim.directions, abs=0.04)
        assert found.most == pytest.approx(aim.most, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_none_of_the_way_changes_next_to_nothing(method):
    pixels = stained(1)
    table = colour_table(find_stains(method, pixels), find_stains(method, stained(2, (1.0, 1.4))), 0.0)
    assert np.abs(table.applied(pixels).astype(int) - pixels).mean() < 1.5


@pytest.mark.parametrize("method", METHODS)
def test_each_method_agrees_with_torchstain_on_real_tissue(method, shared: Path):
    normalizers = pytest.importorskip(
        "torchstain.numpy.normalizers", reason="torchstain, for comparing alone"
    )
    with open_slide(shared / "data/slides/breast_40x.svs") as slide:
        source = slide.read(Box(10560, 2880, 600, 600), Plane(1, 1))  # dense tissue
        reference = slide.read(Box(5440, 6400, 600, 600), Plane(1, 1))
    theirs = getattr(normalizers, f"Numpy{method.capitalize()}Normalizer")()
    theirs.fit(reference)
    expected = theirs.normalize(source)
    expected = expected[0] if isinstance(expected, tuple) else expected
    table = colour_table(find_stains(method, source), find_stains(method, reference))
    apart = np.abs(table.applied(source).astype(int) - expected.reshape(source.shape).astype(int))
    # Theirs cuts decimals off, ours interpolates between 33 values of each channel.
    assert apart.mean() < 1.5
    assert np.percentile(apart, 99) <= 12


@pytest.mark.parametrize("method", METHODS)
def test_what_was_found_goes_through_a_card_unchanged(method):
    found = find_stains(method, stained(0))
    assert as_numbers(of_numbers(method, as_numbers(found))) == as_numbers(found)
    with pytest.raises(ValueError, match=f"found 2 numbers of {method}'s reference, expected [68]"):
        of_numbers(method, (1.0, 2.0))


@pytest.mark.parametrize(
    ("method", "numbers", "reason"),
    [
        ("macenko", (0.0,) * 8, "expected unit vectors"),
        ("macenko", (1e308,) * 8, "expected unit vectors"),
        ("macenko", (0.6, 0.6, 0.8, 0.8, 0.0, 0.0, 1.0, 1.0), "expected two that differ"),
        ("macenko", (0.6, 0.0, 0.8, 0.6, 0.0, 0.8, 1.0, -1.0), "expected above 0, at most 20"),
        ("macenko", (0.6, 0.0, 0.8, 0.6, 0.0, 0.8, 1.0, 1e300), "expected above 0, at most 20"),
        ("reinhard", (50.0, 0.0, 0.0, 0.0, 1.0, 1.0), "deviations above 0, at most 128"),
        ("reinhard", (50.0, 1e9, 0.0, 1.0, 1.0, 1.0), "expected L within 0 and 100"),
    ],
)
def test_a_reference_that_no_tissue_has_is_refused(method, numbers, reason):
    with pytest.raises(ValueError, match=reason):
        of_numbers(method, numbers)


def test_glass_alone_has_no_two_stains():
    with pytest.raises(DataError, match="found 0 pixels of stained tissue, expected 500 at least"):
        find_stains("macenko", np.full((50, 50, 3), 240, np.uint8))
