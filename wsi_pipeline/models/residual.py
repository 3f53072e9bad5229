"""A small residual CNN for patches of some 50 pixels a side: few stages, wide where the map is small."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class ResidualCnn(nn.Module):
    """Logits [N, classes] of normalised patches [N, 3, H, W]: strided stem, residual stages, global average.

    Each stage after the first halves the map. With the default widths a 50x50 patch costs 56 MFLOP.
    """

    def __init__(
        self,
        classes: int = 2,
        widths: Sequence[int] = (24, 64, 128),
        blocks: Sequence[int] = (1, 1, 1),
        squeeze: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or min(blocks, default=0) < 1:
            raise ValueError(f"one count of blocks (1 or more) a stage: widths {widths}, blocks {blocks}")
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], kernel_size=5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        stages = [_stage(widths[0], widths[0], 1, blocks[0], squeeze)]
        for (before, after), count in zip(pairwise(widths), blocks[1:], strict=True):
            stages.append(_stage(before, after, 2, count, squeeze))
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]."""
        x = self.stages(self.stem(x))  # [N, widths[-1], H / 8, W / 8] with three stages
        x = x.mean(dim=(2, 3))  # [N, widths[-1]]
        return self.head(self.dropout(x))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, a gate on the channels, and the way around them."""

    def __init__(self, before: int, after: int, stride: int, squeeze: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        # Starts as the plain way around, which keeps the first steps stable.
        nn.init.zeros_(self.norm2.weight)
        self.gate = ChannelGate(after, squeeze)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            # Averaging before the 1x1 lets every pixel speak; a strided 1x1 would drop three of four.
            self.around = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
                if stride > 1
                else nn.Identity(),
                nn.Conv2d(before, after, kernel_size=1, bias=False),
                nn.BatchNorm2d(after),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, after, H / stride, W / stride] of a map [N, before, H, W]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.gate(self.norm2(self.conv2(y)))
        return torch.relu(y + self.around(x))


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


def _stage(before: int, after: int, stride: int, count: int, squeeze: int) -> nn.Sequential:
    first = ResidualBlock(before, after, stride, squeeze)
    return nn.Sequential(first, *(ResidualBlock(after, after, 1, squeeze) for _ in range(count - 1)))
