"""Coarse labels: only rims become soft, neighbours are those of the grid, and losses that are doubted do not count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_device_step import CPU, PX, make_run, some_side
from test_train import OPTIONS

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.training.batches import make_batches
from wsi_pipeline.learning.training.coarse_labels import (
    labels_with_neighbours,
    mean_of_trusted,
    without_doubted,
)
from wsi_pipeline.learning.training.train import take_step


def grid_side(labels: np.ndarray, patient: str = "a", pitch: int = 50) -> LabelledPatches:
    """A patient's grid of patches, labels [rows, columns], -1 where no patch is."""
    rows, columns = np.nonzero(labels >= 0)
    found = labels[rows, columns].astype(np.uint8)
    names = [
        f"{patient}_idx5_x{1 + x * pitch}_y{1 + y * pitch}_class{label}.png"
        for y, x, label in zip(rows, columns, found, strict=True)
    ]
    pixels = np.zeros((len(found), PX, PX, 3), np.uint8)
    return LabelledPatches(pixels, found, np.full(len(found), patient), names=np.array(names))


def test_only_patches_at_a_rim_get_soft_labels_and_those_as_their_neighbours_say():
    labels = np.zeros((5, 6), int)
    labels[:, 3:] = 1
    soft = labels_with_neighbours(grid_side(labels), 0.5).reshape(5, 6)
    # In the middle of a straight rim three of eight neighbours are of the other class.
    assert soft[2].tolist() == pytest.approx([0, 0, 0.5 * 3 / 8, 1 - 0.5 * 3 / 8, 1, 1])
    # At its end two of five are.
    assert soft[0].tolist() == pytest.approx([0, 0, 0.5 * 2 / 5, 1 - 0.5 * 2 / 5, 1, 1])


@pytest.mark.parametrize("pitch", [16, 50, 3200])
def test_the_pitch_of_the_grid_is_found(pitch):
    labels = np.tri(5, dtype=int)
    found = labels_with_neighbours(grid_side(labels, pitch=pitch), 0.5)
    np.testing.assert_array_equal(found, labels_with_neighbours(grid_side(labels), 0.5))


def test_few_neighbours_no_names_and_other_patients_say_nothing():
    lone = np.full((5, 6), -1)
    lone[2, 2:4] = 0, 1
    assert labels_with_neighbours(grid_side(lone), 0.5).tolist() == [0, 1]
    unnamed = replace(grid_side(np.tri(5, dtype=int)), names=np.empty(0, np.str_))
    np.testing.assert_array_equal(labels_with_neighbours(unnamed, 0.5), unnamed.labels)
    # Two patients whose patches lie at the same places.
    one, other = grid_side(np.zeros((3, 3), int), "a"), grid_side(np.ones((3, 3), int), "b")
    both = LabelledPatches(
        np.concatenate([one.pixels, other.pixels]),
        np.concatenate([one.labels, other.labels]),
        np.concatenate([one.patients, other.patients]),
        names=np.concatenate([one.names, other.names]),
    )
    np.testing.assert_array_equal(labels_with_neighbours(both, 0.5), both.labels)


def test_batches_learn_the_soft_labels():
    side = grid_side(np.tri(4, dtype=int))
    options = replace(OPTIONS, neighbours_say=0.5)
    rows = np.array([3, 5, 9])
    (batch,) = make_batches(side, iter([rows]), options, torch.Generator().manual_seed(0), pinned=False)
    soft = labels_with_neighbours(side, 0.5)[rows]
    np.testing.assert_allclose(batch.targets.numpy(), np.stack([1 - soft, soft], 1))
    assert ((soft > 0) & (soft < 1)).any()


def test_the_largest_losses_do_not_count():
    losses = torch.tensor([0.1, 5.0, 0.3, 0.2], requires_grad=True)
    mean_of_trusted(losses, 0.75).backward()
    assert losses.grad.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert float(mean_of_trusted(losses.detach(), 1.0)) == pytest.approx(1.4)
    # Something is learned of each batch.
    assert float(mean_of_trusted(losses.detach(), 0.01)) == pytest.approx(0.1)


def test_a_step_learns_the_trusted_share_alone():
    options = replace(OPTIONS, bf16=False, batch_size=16)
    side = some_side()
    found = {}
    for trusted in (1.0, 0.5):
        run = make_run(options, CPU)
        generator = torch.Generator().manual_seed(1)
        (batch,) = make_batches(side, iter([np.arange(16)]), options, generator, pinned=False)
        found[trusted] = float(take_step(run, batch, 0.01, trusted))
    assert found[0.5] < found[1.0]


def test_nothing_is_learned_from_patches_that_are_named_as_doubted(tmp_path, caplog):
    side, named = grid_side(np.tri(4, dtype=int)), tmp_path / "doubted.csv"
    named.write_text(f"name,why\n{side.names[3]},fat\n{side.names[9]},glass\nelsewhere.png,\n")
    with caplog.at_level("INFO"):
        left = without_doubted(side, named)
    assert left.names.tolist() == [name for row, name in enumerate(side.names) if row not in (3, 9)]
    np.testing.assert_array_equal(left.labels, np.delete(side.labels, [3, 9]))
    assert "left out of the training 2 patches of 16, whose label is doubted" in caplog.text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "name\nother.png\n",
            r"found none of 16 training patches named in it, expected names .* such as a_idx5",
        ),
        ("patch\na\n", "found the columns patch, expected name"),
        ("", "found the columns none, expected name"),
        (None, "cannot be read as a CSV of doubted patches"),
    ],
)
def test_a_file_of_doubted_patches_that_does_not_fit_is_refused(tmp_path, text, found):
    named = tmp_path / "doubted.csv"
    if text is not None:
        named.write_text(text)
    with pytest.raises(DataError, match=found):
        without_doubted(grid_side(np.tri(4, dtype=int)), named)
