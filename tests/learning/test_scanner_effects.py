"""What focus, sensor and file format do to patches in memory."""

import numpy as np
import pytest

from wsi_pipeline.learning.datasets.scanner_effects import Look, as_jpeg, looking
from wsi_pipeline.learning.training.looks import LookOptions, draw_look


def patches(count: int = 6, side: int = 50) -> np.ndarray:
    """Smooth in colour, as tissue is, with some grain."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    ground = np.stack([180 + 40 * x, 110 + 60 * y, 160 + 30 * x * y], axis=-1)
    grained = ground + random.normal(0, 3, (count, side, side, 3)) + random.normal(0, 15, (count, 1, 1, 3))
    return grained.clip(0, 255).astype(np.uint8)


def test_no_look_leaves_patches_as_they_are():
    assert looking(patches(), Look(), np.random.default_rng(0)) is not None
    assert np.array_equal(looking(patches(), Look(), np.random.default_rng(0)), patches())
    assert draw_look(LookOptions(), np.random.default_rng(0))[:4] == (0.0, 0.0, 0.0, None)


@pytest.mark.parametrize("finer", [1, 2, 4])
@pytest.mark.parametrize("offset", [(0, 0), (3, 15)])
def test_a_good_jpeg_gives_nearly_the_same_pixels_in_the_same_place(finer, offset):
    there = as_jpeg(patches(), 97, halved_chroma=False, finer=finer, offset=offset)
    assert there.shape == patches().shape
    assert np.abs(there.astype(int) - patches()).mean() < 3


def test_a_worse_jpeg_is_further_off_and_halved_chroma_further_still():
    off = {
        (quality, halved): np.abs(as_jpeg(patches(), quality, halved).astype(int) - patches()).mean()
        for quality in (90, 30)
        for halved in (False, True)
    }
    assert off[90, False] < off[90, True] < off[30, True]
    assert off[90, False] < off[30, False] < off[30, True]


def test_stored_finer_a_jpeg_of_the_same_quality_costs_less():
    near, far = (np.abs(as_jpeg(patches(), 40, finer=f).astype(int) - patches()).mean() for f in (4, 1))
    assert near < 0.85 * far


def test_patches_do_not_touch_each_other_in_their_jpeg():
    both = patches(2)
    both[1] = 255 - both[1]
    assert np.array_equal(as_jpeg(both, 50)[:1], as_jpeg(both[:1], 50))


def test_blur_takes_grain_away_sharpening_and_noise_bring_it():
    def grain(rgb: np.ndarray) -> float:
        return float(np.abs(np.diff(rgb.astype(int), axis=2)).mean())

    random = np.random.default_rng(0)
    as_it_is = grain(patches())
    assert grain(looking(patches(), Look(blur_px=1.0), random)) < 0.6 * as_it_is
    assert grain(looking(patches(), Look(sharpening=0.5), random)) > 1.1 * as_it_is
    assert grain(looking(patches(), Look(noise=6.0), random)) > 1.5 * as_it_is


def test_looks_come_as_often_and_as_far_as_the_options_say():
    options = LookOptions(compressed=0.6, quality=(40, 50), blurred=0.25, blur_px=(0.5, 0.7), finer=0.0)
    random = np.random.default_rng(1)
    looks = [draw_look(options, random) for _ in range(2000)]
    qualities = [look.quality for look in looks if look.quality is not None]
    blurs = [look.blur_px for look in looks if look.blur_px]
    assert len(qualities) / 2000 == pytest.approx(0.6, abs=0.04)
    assert (min(qualities), max(qualities)) == (40, 50)
    assert len(blurs) / 2000 == pytest.approx(0.25, abs=0.04)
    assert min(blurs) >= 0.5
    assert max(blurs) <= 0.7
    assert not any(look.noise or look.sharpening for look in looks)
