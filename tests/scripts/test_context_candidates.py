"""Steps over the map that are tried beside those that ship."""

import numpy as np
import pytest

from scripts.results.context_candidates import random_field, u_net
from wsi_pipeline.learning.datasets.labelled_slides import LabelledSlide
from wsi_pipeline.learning.evaluation import metrics


def mount(seed: int) -> LabelledSlide:
    """A section with a round carcinoma; each patch is right more often than not."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:21, :24] - random.uniform(7, 14, 2)[:, None, None]
    labels = (np.hypot(y, x) < 6).astype(np.uint8)
    odds = np.where(labels == 1, 0.9, -0.9) + random.normal(0, 1.5, labels.shape)
    alone = (1 / (1 + np.exp(-odds))).astype(np.float32)
    alone[:3, :5] = np.nan
    labels[-2:] = 255
    return LabelledSlide(str(seed), alone[None], labels)


@pytest.mark.parametrize("step", [random_field, u_net])
def test_neighbours_tell_more_than_a_patch_alone(step) -> None:
    mounts = [mount(seed) for seed in range(6)]
    labels = np.concatenate([m.labels[m.evaluated] for m in mounts]).astype(int)
    alone = np.concatenate([m.patch_probability[0][m.evaluated] for m in mounts])
    odds = step(mounts, np.arange(6) % 3)
    assert odds.shape == labels.shape
    assert np.isfinite(odds).all()
    assert metrics.auroc(odds, labels) > metrics.auroc(alone, labels) + 0.05
