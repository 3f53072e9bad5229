"""Patches cut out of pixels on the device, restained, normalised and cast, in one step: by Triton where it is there.

Both ways look each byte up in the same table, so that they give the same bits.
"""

import logging
from functools import cache
from typing import Any

import torch

try:  # comes with torch for CUDA
    import triton  # type: ignore[import-not-found, unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    triton = None

log = logging.getLogger(__name__)

# Pixels that one program of the kernel works on.
_PIXELS = 512


def cut_normalised(
    pixels: torch.Tensor,
    corners: torch.Tensor,
    pitches: torch.Tensor,
    table: torch.Tensor,
    out: torch.Tensor,
    fused: bool | None = None,
) -> None:
    """Fill `out`, [N, S, S, C], with the patches whose upper left corners lie at these bytes of `pixels`, uint8 [M].

    `corners` and `pitches`, int64 [N], are in bytes, a pitch being that of a row of the image that the patch lies in.
    `table`, float32 [768], holds what R, then G, then B becomes for each value. Channels after the third are left as
    they are. `fused`: by the kernel; None: where it can be.
    """
    if fused is None:
        fused = kernel_works(pixels.device)
    n, side, _, channels = out.shape
    if fused:
        grid = (n, -(-side * side // _PIXELS))
        _cut[grid](pixels, corners, pitches, table, out, side, channels, _PIXELS, num_warps=4)
        return
    steps = torch.arange(side, device=pixels.device)
    within = (steps[:, None] * 3)[None, :, :] + torch.arange(3, device=pixels.device)  # [1, S, 3]
    rows = corners[:, None] + steps * pitches[:, None]  # [N, S]
    values = pixels[rows[:, :, None, None] + within].int()  # [N, S, S, 3]
    values += torch.arange(0, 768, 256, device=pixels.device, dtype=torch.int32)
    out[..., :3] = table.index_select(0, values.ravel()).view(n, side, side, 3)


@cache
def kernel_works(device: torch.device) -> bool:
    """Whether the kernel runs there: Triton compiles it, for which it needs a C compiler at run time."""
    if triton is None or device.type != "cuda":
        return False
    try:
        pixels, zeros = (
            torch.zeros(64, dtype=torch.uint8, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
        )
        table, out = torch.ones(768, device=device), torch.zeros(1, 2, 2, 3, device=device)
        cut_normalised(pixels, zeros, zeros, table, out, True)
        return bool((out == 1).all())
    except Exception as error:  # Triton raises what it likes
        log.warning(
            "patches are normalised by torch, which is slower: Triton says: %s",
            " ".join(str(error).split())[:200],
        )
        return False


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def _cut(
        pixels: Any,
        corners: Any,
        pitches: Any,
        table: Any,
        out: Any,
        SIDE: tl.constexpr,
        CHANNELS: tl.constexpr,
        BLOCK: tl.constexpr,
    ) -> None:
        patch = tl.program_id(0).to(tl.int64)
        place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        colour = tl.arange(0, 4)
        inside = place < SIDE * SIDE
        wanted = inside[:, None] & (colour < 3)[None, :]
        start = tl.load(corners + patch) + (place // SIDE) * tl.load(pitches + patch) + (place % SIDE) * 3
        value = tl.load(pixels + start[:, None] + colour[None, :], mask=wanted, other=0).to(tl.int32)
        new = tl.load(table + colour[None, :] * 256 + value, mask=wanted, other=0.0)
        to = out + (patch * SIDE * SIDE + place)[:, None] * CHANNELS + colour[None, :]
        tl.store(to, new.to(out.dtype.element_ty), mask=wanted)
