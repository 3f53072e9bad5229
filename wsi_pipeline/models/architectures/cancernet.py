"""CancerNet: three blocks of depthwise separable convolutions, for patches of some 50 pixels a side.

Rosebrock, "Breast cancer classification with Keras and Deep Learning", pyimagesearch.com (2019); separable
convolutions as in Chollet, "Xception", CVPR 2017.
"""

from collections.abc import Sequence

import torch
from torch import nn


class CancerNet(nn.Module):
    """Logits [N, classes] of images [N, 3, input_px, input_px]; the dense layer fixes their side.

    A block is so many convolutions as `repeats` says, each with ReLU and batch norm, then pooling by two.
    """

    def __init__(
        self,
        classes: int = 2,
        *,
        input_px: int,
        widths: Sequence[int] = (32, 64, 128),
        repeats: Sequence[int] = (1, 2, 3),
        dense: int = 256,
    ) -> None:
        super().__init__()
        if len(widths) != len(repeats):
            raise ValueError(f"one count of convolutions a block: widths {widths}, repeats {repeats}")
        layers: list[nn.Module] = []
        before, side = 3, input_px
        for width, repeat in zip(widths, repeats, strict=True):
            for _ in range(repeat):
                layers += [_separable(before, width), nn.ReLU(inplace=True), nn.BatchNorm2d(width)]
                before = width
            layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
            side //= 2
        if side < 1:
            raise ValueError(f"input_px: found {input_px}, too small for {len(widths)} poolings")
        self.features = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Flatten(),
            nn.Linear(before * side * side, dense),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(dense),
            nn.Dropout(0.5),
        )
        self.head = nn.Linear(dense, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]."""
        return self.head(self.dense(self.features(x)))  # type: ignore[no-any-return]


def _separable(before: int, after: int) -> nn.Sequential:
    # Each channel by itself, then a mix of channels; one bias, as one layer.
    return nn.Sequential(
        nn.Conv2d(before, before, kernel_size=3, padding=1, groups=before, bias=False),
        nn.Conv2d(before, after, kernel_size=1),
    )
