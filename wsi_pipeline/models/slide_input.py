"""What a network is given of a slide beside its patches."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_pipeline.models.architectures.slide_condition import SlideHead
from wsi_pipeline.models.stain import Tables


@dataclass(frozen=True, eq=False)
class SlideInput:
    """The same for all patches of a slide."""

    tables: Tables | None = None
    """What brings the slide's stain to the training data's, uint8 [3, 256]; None: nothing does."""

    head: SlideHead | None = None
    """The last layer for this slide; None: the network's own."""


UNKNOWN_SLIDE = SlideInput()


def head_values(head: SlideHead | None) -> dict[str, list[Any]] | None:
    """What a network heard of a slide, as plain values that say each float32 to the bit."""
    return head and {"weight": head.weight.tolist(), "bias": head.bias.tolist()}


def head_of_values(values: dict[str, list[Any]] | None) -> SlideHead | None:
    """The head of such values."""
    if values is None:
        return None
    return SlideHead(np.array(values["weight"], np.float32), np.array(values["bias"], np.float32))
