"""Which patches a training sees, in which order."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.tiled_slides import SlidePatches
from wsi_pipeline.learning.training.options import TrainOptions


def epoch_batches(
    side: LabelledPatches, options: TrainOptions, generator: torch.Generator
) -> Iterator[NDArray[np.int64]]:
    """Indices of each batch of an epoch; a last batch that is not full is left out."""
    size = min(options.batch_size, len(side))
    if options.slides_a_batch:
        yield from _batches_by_slide(side, size, options, generator)
        return
    weights = draw_weights(side, options)
    if weights is not None:
        order = torch.multinomial(torch.from_numpy(weights), len(side), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(side), generator=generator)
    for start in range(0, len(side) - size + 1, size):
        yield order[start : start + size].numpy()


def draw_weights(side: LabelledPatches | SlidePatches, options: TrainOptions) -> NDArray[np.float64] | None:
    """How likely each patch is drawn, float [N], by the balance of patients and classes; None: all alike, once each."""
    if not options.patient_balance and options.class_balance != "sampling":
        return None
    weights = np.ones(len(side))
    if options.patient_balance:
        _, which, counts = np.unique(side.patients, return_inverse=True, return_counts=True)
        weights = weights * counts[which] ** -options.patient_balance
    if options.class_balance == "sampling":
        weights = weights / np.bincount(side.labels, weights)[side.labels]
    return weights


def _batches_by_slide(
    side: LabelledPatches, size: int, options: TrainOptions, generator: torch.Generator
) -> Iterator[NDArray[np.int64]]:
    """As many batches of `size` as the patches would fill, each of patches of a few patients, in random order.

    No patch stands twice in a batch: of a patient with fewer than its share all are taken, and the batch is smaller.
    """
    _, which, counts = np.unique(side.patients, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(which, kind="stable"), np.cumsum(counts)[:-1])
    weights = torch.from_numpy(counts ** (1 - options.patient_balance))
    slides = min(options.slides_a_batch or 1, len(rows))
    for _ in range(len(side) // size):
        drawn = torch.multinomial(weights, slides, generator=generator)
        batch = []
        for slide in drawn.tolist():
            order = torch.randperm(len(rows[slide]), generator=generator)[: size // slides]
            batch.append(rows[slide][order.numpy()])
        mixed = torch.randperm(sum(map(len, batch)), generator=generator).numpy()
        yield np.concatenate(batch)[mixed]


def class_weights(labels: NDArray[np.integer], classes: int) -> torch.Tensor:
    """float32 [classes]: what each class weighs in the loss, so that all weigh the same and 1 on average."""
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy(len(labels) / (classes * np.maximum(counts, 1))).float()
