"""What a network is given of a slide beside its patches."""

from dataclasses import dataclass

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
