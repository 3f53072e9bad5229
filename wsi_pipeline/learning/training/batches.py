"""The batches of an epoch as the host makes them: patches, targets, and all that is drawn by chance."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.training.augment import Views, draw_views
from wsi_pipeline.learning.training.card import CLASSES
from wsi_pipeline.learning.training.options import TrainOptions
from wsi_pipeline.models.device_feed import rows_of


class Blend(NamedTuple):
    """Which other patch each of N is blended with, and how much of itself stays (mixup)."""

    # float32 [N], from 0.5 to 1.
    share: torch.Tensor
    # int64 [N].
    other: torch.Tensor


class Batch(NamedTuple):
    """What one step learns from."""

    # uint8 [N, S, S, 3], as they were scanned.
    patches: torch.Tensor
    # float32 [N, classes], 1 for the class that the label says.
    targets: torch.Tensor
    views: Views
    blend: Blend | None


def make_batches(
    side: LabelledPatches,
    rows: Iterator[NDArray[np.int64]],
    options: TrainOptions,
    generator: torch.Generator,
    pinned: bool,
) -> Iterator[Batch]:
    """A batch of each of `rows`, in page-locked memory where `pinned`.

    Views are drawn from `generator`, blends from torch's own generator of the CPU. Each batch is drawn when it is
    asked for, so that on a CPU dropout, of the same generator, comes after the blend of its batch.
    """
    pixels, labels = torch.from_numpy(side.pixels), torch.from_numpy(side.labels)
    for row in rows:
        chosen = torch.from_numpy(row)
        yield Batch(
            rows_of(pixels, chosen, pinned),
            F.one_hot(labels[chosen].long(), len(CLASSES)).float(),
            draw_views(len(row), side.pixels.shape[1], options.augment, generator),
            draw_blend(len(row), options.mixup) if options.mixup else None,
        )


def draw_blend(count: int, mixup: float) -> Blend:
    """Blends of `count` patches; `mixup` is both parameters of the beta distribution that shares come from."""
    share = torch.distributions.Beta(mixup, mixup).sample((count,))
    return Blend(torch.maximum(share, 1 - share), torch.randperm(count))


def blended(patches: torch.Tensor, targets: torch.Tensor, blend: Blend) -> tuple[torch.Tensor, torch.Tensor]:
    """Each patch and its target blended with another's of the batch (mixup; Zhang et al., ICLR 2018)."""
    patches = torch.lerp(patches[blend.other], patches, blend.share[:, None, None, None])
    return patches, torch.lerp(targets[blend.other], targets, blend.share[:, None])
