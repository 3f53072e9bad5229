"""Every pair within the radii is found, whichever way one is turned, and nothing else."""

import io

import numpy as np
import pytest
from conftest import noise
from PIL import Image

from wsi_pipeline.learning.datasets.duplicates import (
    COARSE_RMS,
    COARSE_SHARE,
    FINE_RMS,
    FINE_SHARE,
    exact_duplicates,
    near_duplicates,
    near_pairs,
)
from wsi_pipeline.learning.datasets.image_stats import thumbnail

PX = 50
TURNS = [(turn, flip) for turn in range(4) for flip in (False, True)]


def pink(seed: int, strength: float = 1.0) -> np.ndarray:
    """Noise in the colours of an H&E stain."""
    amount = noise(PX, PX, seed).mean(axis=2, keepdims=True) / 255 * strength
    return (255 * 10 ** (-amount * np.array((0.2, 0.4, 0.25)))).round().astype(np.uint8)


def turned(image: np.ndarray, turn: int, flip: bool) -> np.ndarray:
    image = np.rot90(image, turn)
    return np.ascontiguousarray(image[:, ::-1] if flip else image)


def jpeg(image: np.ndarray, quality: int = 90) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return np.array(Image.open(content))


def by_brute_force(thumbnails: np.ndarray, contrast: np.ndarray) -> set[tuple[int, int]]:
    """Every pair of every thumbnail in each orientation, at both sizes."""
    found = set()
    small = thumbnails.reshape(-1, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    for i in range(len(thumbnails)):
        for j in range(i + 1, len(thumbnails)):
            least = min(contrast[i], contrast[j])
            rms = [
                min(
                    np.sqrt(((images[i] - turned(images[j], *turn).astype(float)) ** 2).mean())
                    for turn in TURNS
                )
                for images in (small, thumbnails.astype(float))
            ]
            if rms[0] <= min(COARSE_RMS, COARSE_SHARE * least) and rms[1] <= min(
                FINE_RMS, FINE_SHARE * least
            ):
                found.add((i, j))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_those_of_comparing_all_with_all(seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(60, 200, (12, 16, 16, 3)).astype(float)
    base = (base - base.mean()) * rng.uniform(0.1, 1, (12, 1, 1, 1)) + 130  # of all contrasts
    noisy = [
        turned(base[i % 12] + rng.normal(0, sigma, (16, 16, 3)), i % 4, i % 3 == 0)
        for i, sigma in enumerate(rng.uniform(0, 9, 36))
    ]
    thumbnails = np.concatenate([base, noisy]).clip(0, 255).round().astype(np.uint8)
    contrast = thumbnails.mean(axis=3).std(axis=(1, 2))
    first, second = near_pairs(thumbnails, contrast)
    expected = by_brute_force(thumbnails, contrast)
    assert 3 < len(expected) < len(thumbnails) ** 2 / 4
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == sorted(expected)


@pytest.mark.parametrize("turn", TURNS)
def test_a_copy_that_was_turned_encoded_and_resized_is_found_among_others(turn):
    images = [pink(seed) for seed in range(30)]
    copy = Image.fromarray(jpeg(turned(images[7], *turn))).resize((64, 64), Image.Resampling.BICUBIC)
    thumbnails = np.stack([thumbnail(image) for image in [*images, np.asarray(copy)]])
    groups = near_duplicates(thumbnails, np.ones(31, bool)).groups
    assert [group.tolist() for group in groups] == [[7, 30]]


def test_a_turned_image_gives_the_turned_thumbnail():
    image = noise(50, 50)
    for turn in TURNS:
        assert (
            np.abs(thumbnail(turned(image, *turn)).astype(int) - turned(thumbnail(image), *turn)).max() <= 1
        )


def test_plain_images_are_no_near_duplicates_and_neither_are_those_left_out():
    rng = np.random.default_rng(0)
    plain = (240 + rng.normal(0, 1, (20, 16, 16, 3))).round().astype(np.uint8)
    assert near_duplicates(plain, np.ones(20, bool)).groups == []
    same = np.stack([thumbnail(noise(50, 50))] * 3)
    assert [g.tolist() for g in near_duplicates(same, np.array([True, False, True])).groups] == [[0, 2]]
    assert near_duplicates(same, np.zeros(3, bool)).groups == []


def test_exact_duplicates_are_those_of_one_digest():
    digests = np.array([5, 1, 5, 2, 1, 5, 9], np.uint64)
    doubles = exact_duplicates(digests, np.array([True] * 6 + [False]))
    assert sorted(group.tolist() for group in doubles.groups) == [[0, 2, 5], [1, 4]]
    assert doubles.surplus == 3
