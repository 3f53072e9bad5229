"""A plain CNN: convolutions with pooling, one dense layer, the output. Of another side, another network."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class PlainCnn(nn.Module):
    """Logits [N, classes] of images [N, 3, input_px, input_px].

    Each of `widths` is a 3x3 convolution with ReLU, padded (same) or not (valid), and a pooling by two.
    """

    def __init__(
        self,
        classes: int = 2,
        *,
        input_px: int,
        widths: Sequence[int] = (16, 32, 64),
        padding: Literal["same", "valid"] = "same",
        dense: int = 128,
        activation: Literal["relu", "sigmoid"] = "relu",
    ) -> None:
        super().__init__()
        if padding not in ("same", "valid") or activation not in _ACTIVATIONS:
            raise ValueError(
                f"padding '{padding}' is same or valid, activation '{activation}' relu or sigmoid"
            )
        layers: list[nn.Module] = []
        before, side = 3, input_px
        for width in widths:
            layers += [
                nn.Conv2d(before, width, kernel_size=3, padding=1 if padding == "same" else 0),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            before, side = width, (side if padding == "same" else side - 2) // 2
        if side < 1:
            raise ValueError(f"input_px: found {input_px}, too small for {len(widths)} convolutions")
        self.features = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Flatten(), nn.Linear(before * side * side, dense), _ACTIVATIONS[activation]()
        )
        self.head = nn.Linear(dense, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]."""
        return self.head(self.dense(self.features(x)))  # type: ignore[no-any-return]
