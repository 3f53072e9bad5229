"""The batches of an epoch as the host makes them: patches, targets, and all that is drawn by chance."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.scanner_effects import looking
from wsi_pipeline.learning.datasets.tiled_slides import SlidePatches
from wsi_pipeline.learning.training.augment import SlideStains, Views, draw_slide_stains, draw_views
from wsi_pipeline.learning.training.coarse_labels import labels_with_neighbours
from wsi_pipeline.learning.training.looks import LookOptions, draw_look
from wsi_pipeline.learning.training.options import TrainOptions
from wsi_pipeline.models.architectures.slide_condition import LEAST_PATCHES, Slides
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
    # float32 [N, classes], shares of the classes: IDC is the last of them.
    targets: torch.Tensor
    views: Views
    blend: Blend | None
    # Where batches are drawn by slide: which patch is of which.
    slides: Slides | None = None


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
    pixels = torch.from_numpy(side.pixels)
    idc = torch.from_numpy(labels_with_neighbours(side, options.neighbours_say))
    for row in rows:
        chosen = torch.from_numpy(row)
        patches, slides, stains = rows_of(pixels, chosen, pinned), None, None
        if options.slides_a_batch:
            index = torch.from_numpy(np.unique(side.patients[row], return_inverse=True)[1])
            _give_looks(patches, index, options.looks, generator)
            stains = _of_patches(draw_slide_stains(int(index.max()) + 1, options.looks, generator), index)
            slides = draw_slides(index, options.condition_dropped, generator)
        yield _batch(patches, idc[chosen], options, generator, stains, slides)


def batches_from_slides(
    side: SlidePatches,
    read: Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]],
    options: TrainOptions,
    generator: torch.Generator,
) -> Iterator[Batch]:
    """A batch of each batch of patches that was read from slides: their indices, and their pixels [N, S, S, 3]."""
    for rows, pixels in read:
        idc = torch.from_numpy(side.labels[rows].astype(np.float32))
        yield _batch(torch.from_numpy(pixels), idc, options, generator)


def _batch(
    patches: torch.Tensor,
    idc: torch.Tensor,
    options: TrainOptions,
    generator: torch.Generator,
    stains: SlideStains | None = None,
    slides: Slides | None = None,
) -> Batch:
    """The batch of patches, uint8 [N, S, S, 3], whose targets say `idc`, float32 [N]."""
    count, size = patches.shape[:2]
    return Batch(
        patches,
        torch.stack([1 - idc, idc], dim=1),
        draw_views(count, size, options.augment, generator, stains),
        draw_blend(count, options.mixup) if options.mixup else None,
        slides,
    )


def draw_slides(index: torch.Tensor, dropped: float, generator: torch.Generator) -> Slides:
    """Of patches of these slides, int64 [N]: from which a slide's condition is taken, and of which slide none is.

    Between LEAST_PATCHES and all of a slide's patches count, as slides in use may show few; those of a slide that
    shows fewer tell nothing, and so do a share of `dropped` slides.
    """
    slides = int(index.max()) + 1
    known = (torch.rand(slides, generator=generator) >= dropped).float()
    counted = torch.zeros(len(index))
    for slide in range(slides):
        rows = torch.nonzero(index == slide).ravel()
        if len(rows) < LEAST_PATCHES:
            known[slide] = 0
            continue
        count = int(torch.randint(LEAST_PATCHES, len(rows) + 1, (), generator=generator))
        counted[rows[torch.randperm(len(rows), generator=generator)[:count]]] = 1
    return Slides(index, counted, known)


def _give_looks(
    patches: torch.Tensor, index: torch.Tensor, looks: LookOptions, generator: torch.Generator
) -> None:
    """Change the patches, uint8 [N, S, S, 3], as the look of each one's slide has it."""
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    pixels, of = patches.numpy(), index.numpy()
    for slide in range(int(of.max()) + 1):
        rows = np.flatnonzero(of == slide)
        pixels[rows] = looking(pixels[rows], draw_look(looks, random), random)


def _of_patches(stains: SlideStains, index: torch.Tensor) -> SlideStains:
    return SlideStains(*(values[index] for values in stains))


def draw_blend(count: int, mixup: float) -> Blend:
    """Blends of `count` patches; `mixup` is both parameters of the beta distribution that shares come from."""
    share = torch.distributions.Beta(mixup, mixup).sample((count,))
    return Blend(torch.maximum(share, 1 - share), torch.randperm(count))


def blended(patches: torch.Tensor, targets: torch.Tensor, blend: Blend) -> tuple[torch.Tensor, torch.Tensor]:
    """Each patch and its target blended with another's of the batch (mixup; Zhang et al., ICLR 2018)."""
    patches = torch.lerp(patches[blend.other], patches, blend.share[:, None, None, None])
    return patches, torch.lerp(targets[blend.other], targets, blend.share[:, None])
