"""Overlapping patches scored by a run over the whole block instead of one by one, where that is the same.

Used only after it has been compared with the patches one by one on the first block. Where the patches' stride is no
multiple of the network's step, the block is shifted by so many pixels as fill the step, one pass a shift.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.inference.engines.batching import all_numbers
from wsi_pipeline.models.stain import normalise_stain
from wsi_pipeline.slides.slide import Pixels
from wsi_pipeline.tiling.grid import Block, Grid
from wsi_pipeline.tiling.patches import cut_patches, readable_patches

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.inference.classifier import Member
    from wsi_pipeline.models.architectures.fully_convolutional import DenseForm

# A score may differ from the patch's own by no more.
TOLERANCE = 1e-3
# So many patches of the first block are scored both ways.
COMPARED = 64
# Fewer passes than patches, so many times at least: unpadded maps shrink, so half of it is gained.
LEAST_GAIN = 4.0
# Pixels a side that are run at once: what a network makes of them fits in memory.
PIECE_PX = 1024


@dataclass(frozen=True, eq=False)
class DenseScorer:
    """Every member of a classifier in its form for whole blocks; made by `dense_scorer`."""

    members: "Sequence[Member]"
    forms: "Sequence[DenseForm]"
    grid: Grid

    def scores(self, pixels: Pixels, block: Block) -> list[NDArray[np.float32]]:
        """Of each member: float32 [n], 0 to 1, of the block's patches, NaN where not wholly readable.

        `pixels` are those of the block's read box.
        """
        lost = ~readable_patches(pixels, block, self.grid)
        places = block.patches - block.patches.min(axis=0)  # [n, 2] column and row in the block
        each = []
        for member, form in zip(self.members, self.forms, strict=True):
            rgb = normalise_stain(normalise_stain(pixels.rgb, member.colours), member.slide.tables)
            scores = np.full(len(places), np.nan, np.float32)
            for chosen in _pieces(places, ~lost, self.grid):
                scores[chosen] = all_numbers(self._piece(member, form, rgb, places[chosen]))
            each.append(scores)
        return each

    def compare(self, pixels: Pixels, block: Block) -> None:
        """Raises ModelError when a patch's score, of some evenly over the block, is not the patch's own."""
        cut = cut_patches(pixels, block, self.grid)
        readable = np.flatnonzero(cut.readable)
        if not len(readable):
            raise ModelError("dense: the first block holds no readable patch to compare on")
        some = readable[np.linspace(0, len(readable) - 1, min(COMPARED, len(readable))).astype(int)]
        for member, scores in zip(self.members, self.scores(pixels, block), strict=True):
            differs = float(np.abs(scores[some] - member.scores(cut.rgb[some])).max())
            if not differs <= TOLERANCE:
                raise ModelError(
                    f"dense: found a map that differs by {differs:.2g} from the one patch by patch, expected at most "
                    f"{TOLERANCE:g}; leave classify.dense off, or train a network without padding and gates "
                    f"(--config train/idc_dense)"
                )

    def _piece(
        self, member: "Member", form: "DenseForm", rgb: NDArray[np.uint8], places: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """float32 [n] of the patches at these columns and rows of the block."""
        stride, step, size = self.grid.stride_px, form.step_px, self.grid.patch_px
        first, last = places.min(axis=0) * stride, places.max(axis=0) * stride + size
        corners = places * stride - first  # [n, 2] in the piece's own pixels
        scores = np.empty(len(places), np.float32)
        for dx, dy in np.unique(corners % step, axis=0).tolist():
            here = (corners % step == (dx, dy)).all(axis=1)
            part = rgb[first[1] + dy : last[1], first[0] + dx : last[0]]
            column, row = corners[here].T // step
            scores[here] = _probabilities(member, form, part)[row, column]
        return scores


def dense_scorer(members: "Sequence[Member]", grid: Grid) -> DenseScorer:
    """The scorer of a classifier's members on this grid.

    Raises ModelError where an architecture has no form for whole blocks, or nothing would be gained by it.
    """
    from wsi_pipeline.models.architectures.fully_convolutional import dense_form

    forms = []
    for member in members:
        try:
            forms.append(dense_form(member.model.network, grid.patch_px))
        except ModelError as error:
            raise ModelError(
                f"dense: model '{member.model.card.name}' cannot be run over whole blocks: {error}; "
                "leave classify.dense off"
            ) from error
    for form in forms:
        passes = (form.step_px // math.gcd(form.step_px, grid.stride_px)) ** 2
        if (grid.patch_px / grid.stride_px) ** 2 < LEAST_GAIN * passes:
            raise ModelError(
                f"dense: found stride_px {grid.stride_px} and a network of step {form.step_px} px, which needs "
                f"{passes} passes over each block and gains nothing; expected a smaller stride, best a multiple of the "
                "step; leave classify.dense off"
            )
    return DenseScorer(members, forms, grid)


def _pieces(places: NDArray[np.int32], wanted: NDArray[np.bool_], grid: Grid) -> Iterator[NDArray[np.intp]]:
    """Indices of the wanted patches, those of one piece of the block together."""
    strides = max(1, (PIECE_PX - grid.patch_px) // grid.stride_px + 1)
    piece = places // strides
    for column, row in np.unique(piece[wanted], axis=0).tolist():
        yield np.flatnonzero(wanted & (piece == (column, row)).all(axis=1))


def _probabilities(member: "Member", form: "DenseForm", rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [rows, columns] of one run over uint8 pixels [H, W, 3]."""
    import torch

    from wsi_pipeline.models.architectures.slide_condition import head_inputs
    from wsi_pipeline.models.model import calibrated, normalised

    card, device = member.model.card, member.device
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = halves.get(member.precision)
    half = torch.autocast(device.type, dtype) if dtype else nullcontext()
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)[None]).to(device)  # [1, H, W, 3]
    with torch.inference_mode(), half:
        images = normalised(pixels, card.mean, card.std)
        head = head_inputs(member.model.network, member.slide.head)
        logits = form.logits(
            images, *(torch.from_numpy(values).to(device) for values in head)
        ).float()  # [1, classes, rows, columns]
        return calibrated(logits, card)[0].cpu().numpy()
