"""A small residual CNN for patches of some 50 pixels a side: few stages, wide where the map is small."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

# What a file says of a network is not believed without bounds: it could fill the memory.
MOST_CHANNELS, MOST_BLOCKS = 2048, 200


class ResidualCnn(nn.Module):
    """Logits [N, classes] of normalised patches [N, 3, H, W]: strided stem, residual stages, global average.

    Each stage after the first halves the map, unless `strides` says by how much each stage reduces it. With the
    default widths a 50x50 patch costs 56 MFLOP. Without padding (`padding` none) and without gates (`squeeze` 0)
    what a pixel adds does not depend on where the patch ends: such a network runs over whole blocks (dense.py).
    """

    def __init__(
        self,
        classes: int = 2,
        widths: Sequence[int] = (24, 64, 128),
        blocks: Sequence[int] = (1, 1, 1),
        squeeze: int = 4,
        dropout: float = 0.2,
        padding: Literal["same", "none"] = "same",
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or min(blocks, default=0) < 1:
            raise ValueError(f"one count of blocks (1 or more) a stage: widths {widths}, blocks {blocks}")
        if max(widths) > MOST_CHANNELS or sum(blocks) > MOST_BLOCKS:
            raise ValueError(
                f"found widths {widths} and blocks {blocks}, expected at most {MOST_CHANNELS} channels and "
                f"{MOST_BLOCKS} blocks in all"
            )
        strides = [1] + [2] * (len(widths) - 1) if strides is None else strides
        if len(strides) != len(widths) or min(strides) < 1:
            raise ValueError(f"one stride (1 or more) a stage: widths {widths}, strides {strides}")
        if padding not in ("same", "none"):
            raise ValueError(f"padding '{padding}' is neither same nor none")
        padded = padding == "same"
        # Pixels from one position of the last map to the next.
        self.step_px = 2 * math.prod(strides)
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], kernel_size=5, stride=2, padding=2 if padded else 0, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        stages = [
            _stage(before, after, stride, count, squeeze, padded)
            for (before, after), stride, count in zip(
                pairwise((widths[0], *widths)), strides, blocks, strict=True
            )
        ]
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]."""
        return self.head(self.features(x))  # type: ignore[no-any-return]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the last layer is given, [N, widths[-1]]."""
        x = self.stages(self.stem(x))  # [N, widths[-1], H / 8, W / 8] with three stages
        return self.dropout(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two convolutions, a gate on the channels (unless `squeeze` is 0), and the way around them.

    Kernels are 3x3; a first one of a larger stride is as wide as its stride, so that no pixel is passed over.
    """

    def __init__(self, before: int, after: int, stride: int, squeeze: int, padded: bool = True) -> None:
        super().__init__()
        kernel = max(3, stride)
        self.conv1 = nn.Conv2d(
            before, after, kernel, stride=stride, padding=(kernel - 1) // 2 if padded else 0, bias=False
        )
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1 if padded else 0, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        # Starts as the plain way around, which keeps the first steps stable.
        nn.init.zeros_(self.norm2.weight)
        self.gate: nn.Module = ChannelGate(after, squeeze) if squeeze else nn.Identity()
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            # Averaging before the 1x1 lets every pixel speak; a strided 1x1 would drop three of four.
            self.around = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=padded, count_include_pad=False)
                if stride > 1
                else nn.Identity(),
                nn.Conv2d(before, after, kernel_size=1, bias=False),
                nn.BatchNorm2d(after),
            )
        # Unpadded convolutions lose the rim, which the way around must leave out too.
        self.rim = 0 if padded else 1 if stride > 1 else 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, after, H / stride, W / stride] of a map [N, before, H, W]; smaller where unpadded."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.gate(self.norm2(self.conv2(y)))
        around = self.around(x)
        if self.rim:
            height, width = y.shape[2:]
            around = around[:, :, self.rim : self.rim + height, self.rim : self.rim + width]
        return torch.relu(y + around)


class ChannelGate(nn.Module):
    """Squeeze and excitation: each channel scaled by what the whole map says."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, channels // squeeze)
        self.up = nn.Linear(channels // squeeze, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map [N, C, H, W], its channels scaled by gates in (0, 1)."""
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean(dim=(2, 3))))))  # [N, C]
        return x * gate[:, :, None, None]


def _stage(before: int, after: int, stride: int, count: int, squeeze: int, padded: bool) -> nn.Sequential:
    first = ResidualBlock(before, after, stride, squeeze, padded)
    return nn.Sequential(first, *(ResidualBlock(after, after, 1, squeeze, padded) for _ in range(count - 1)))
