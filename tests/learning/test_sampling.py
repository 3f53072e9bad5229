"""Batches: who is drawn how often, and how a few patches stand for all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_train import OPTIONS

from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.slide_epochs import limited
from wsi_pipeline.learning.training.sampling import class_weights, epoch_batches

# One IDC patch in ten; one patient of 900 patches, one of 100.
SIDE = LabelledPatches(
    pixels=(np.arange(1000) % 200).astype(np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8),
    labels=(np.arange(1000) % 10 == 0).astype(np.uint8),
    patients=np.where(np.arange(1000) < 900, "a", "b"),
)


def drawn(**changes: object) -> np.ndarray:
    options = replace(OPTIONS, batch_size=100, **changes)
    return np.concatenate(list(epoch_batches(SIDE, options, torch.Generator().manual_seed(0))))


def test_without_balance_every_patch_comes_once():
    assert sorted(drawn()) == list(range(1000))


def test_sampling_draws_both_classes_alike_and_keeps_the_balance_of_patients():
    assert SIDE.labels[drawn(class_balance="sampling")].mean() == pytest.approx(0.5, abs=0.05)
    both = drawn(class_balance="sampling", patient_balance=1.0)
    assert SIDE.labels[both].mean() == pytest.approx(0.5, abs=0.05)
    assert (SIDE.patients[both] == "a").mean() == pytest.approx(0.5, abs=0.05)


def test_class_weights_make_classes_weigh_alike_and_patches_one_on_average():
    weights = class_weights(SIDE.labels, 2).numpy()
    each = weights[SIDE.labels]
    assert each.mean() == pytest.approx(1)
    assert each[SIDE.labels == 1].sum() == pytest.approx(each[SIDE.labels == 0].sum())


def test_a_limit_keeps_the_classes_shares_and_pairs_and_follows_the_seed():
    some = limited(SIDE, 200, seed=0)
    assert len(some) == 200
    assert some.labels.sum() == 20
    assert np.array_equal(some.pixels[:, 0, 0, 0] % 10 == 0, some.labels == 1)  # a pixel knows its label
    assert np.array_equal(some.pixels, limited(SIDE, 200, seed=0).pixels)
    assert not np.array_equal(some.pixels, limited(SIDE, 200, seed=1).pixels)
    assert set(limited(SIDE, 2, seed=0).labels) == {0, 1}
    assert limited(SIDE, None, seed=0) is limited(SIDE, 5000, seed=0) is SIDE


def test_batches_by_slide_show_many_patches_of_few_patients_and_none_twice():
    side = replace(SIDE, patients=np.char.add("p", (np.arange(1000) % 17).astype(str)))
    options = replace(OPTIONS, batch_size=40, slides_a_batch=4, patient_balance=0.5)
    batches = list(epoch_batches(side, options, torch.Generator().manual_seed(0)))
    assert len(batches) == len(side) // 40
    for batch in batches:
        names, counts = np.unique(side.patients[batch], return_counts=True)
        assert len(names) <= 4
        assert counts.max() <= 10
        assert len(set(batch.tolist())) == len(batch)
