"""Local contrast made even, but not beyond a limit: contrast-limited adaptive histogram equalisation (CLAHE).

Zuiderveld, Graphics Gems IV (1994), 474, after Pizer et al., CVGIP 39 (1987), 355. In the details (how an
image is padded to whole tiles, how what was clipped is handed out again, where values are rounded) it does
what OpenCV's does, so that configs of others can be followed.
"""

from functools import lru_cache
from typing import Annotated

import torch
import torch.nn.functional as F

from wsi_pipeline.base.options import Field, options

_LEVELS = 256
# Luma of R, G, B (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


@options
class ClaheOptions:
    """How far contrast may be raised, and how locally."""

    clip: Annotated[float, Field(gt=0)] = 2.0
    """A level may hold so many times its even share of a tile's pixels; what is above is spread over all."""

    tiles: Annotated[int, Field(gt=0)] = 8
    """So many tiles a side, each with a histogram of its own; between their centres, values are interpolated."""


@torch.no_grad()
def clahe(images: torch.Tensor, options: ClaheOptions) -> torch.Tensor:
    """The images, float [N, 3, H, W] of R, G, B from 0 to 1, with the contrast of their luma evened.

    What is added to the luma is added to R, G and B alike: hue stays. Each image is treated by itself.
    """
    weights = _luma_weights(images.device)
    luma = (images.float() * weights).sum(dim=1).mul(_LEVELS - 1).round().clamp(0, _LEVELS - 1)  # [N, H, W]
    change = (equalised(luma.long(), options) - luma) / (_LEVELS - 1)
    return (images + change[:, None]).clamp(0, 1)


@lru_cache
def _luma_weights(device: torch.device) -> torch.Tensor:
    # Kept: a copy from the host for each batch would make the device wait.
    return torch.tensor(_LUMA, device=device).view(1, 3, 1, 1)


def equalised(values: torch.Tensor, options: ClaheOptions) -> torch.Tensor:
    """The images of whole numbers 0 to 255, int64 [N, H, W], equalised; float32 of whole numbers."""
    n, height, width = values.shape
    tiles = options.tiles
    tables, tile_height, tile_width = _tables(values, options)  # [N, tiles * tiles * 256]
    above, below, down = _between(height, tile_height, tiles, values.device)
    left, right, across = _between(width, tile_width, tiles, values.device)

    def looked_up(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        tile = row[:, None] * tiles + column[None, :]  # [H, W]
        index = (tile * _LEVELS + values).view(n, -1)
        return tables.gather(1, index).view(n, height, width)

    top = torch.lerp(looked_up(above, left), looked_up(above, right), across)
    bottom = torch.lerp(looked_up(below, left), looked_up(below, right), across)
    return torch.lerp(top, bottom, down[:, None]).round()


def _tables(values: torch.Tensor, options: ClaheOptions) -> tuple[torch.Tensor, int, int]:
    """What each tile makes of each level, float32 [N, tiles * tiles * 256], and a tile's height and width."""
    n, height, width = values.shape
    tiles = options.tiles
    missing = (-width % tiles, -height % tiles)
    padded = F.pad(values[:, None].float(), (0, missing[0], 0, missing[1]), mode="reflect")[:, 0].long()
    tile_height, tile_width = padded.shape[1] // tiles, padded.shape[2] // tiles
    area = tile_height * tile_width
    row = torch.arange(padded.shape[1], device=values.device) // tile_height
    column = torch.arange(padded.shape[2], device=values.device) // tile_width
    index = (row[:, None] * tiles + column) * _LEVELS + padded  # [N, H, W]
    counts = torch.zeros(n, tiles * tiles * _LEVELS, dtype=torch.int64, device=values.device)
    counts.scatter_add_(1, index.view(n, -1), torch.ones_like(index).view(n, -1))
    counts = counts.view(n, -1, _LEVELS)
    limit = max(int(options.clip * area / _LEVELS), 1)
    excess = (counts - limit).clamp(min=0).sum(dim=2, keepdim=True)  # [N, tiles * tiles, 1]
    counts = counts.clamp(max=limit) + excess // _LEVELS
    # What does not go evenly is given one by one to levels at even steps.
    rest = excess % _LEVELS
    step = (_LEVELS // rest.clamp(min=1)).clamp(min=1)
    level = torch.arange(_LEVELS, device=values.device)
    counts = counts + ((level % step == 0) & (level // step < rest))
    tables = (counts.cumsum(dim=2) * ((_LEVELS - 1) / area)).round().clamp(0, _LEVELS - 1)
    return tables.float().view(n, -1), tile_height, tile_width


def _between(
    length: int, tile: int, tiles: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each pixel of a side: the tiles whose centres it lies between, and how far along (0 to 1)."""
    place = torch.arange(length, device=device) / tile - 0.5
    before = place.floor()
    return (
        before.long().clamp(0, tiles - 1),
        (before.long() + 1).clamp(0, tiles - 1),
        place - before,
    )
