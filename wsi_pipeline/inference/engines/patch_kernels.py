"""Patches cut out of pixels on the device, stain-normalised, scaled and cast, in one step: by Triton where it is there.

And images resampled. Both ways look each byte up in the same table, so that they give the same bits.
"""

import logging
from dataclasses import dataclass, replace
from functools import cache

import torch

try:  # comes with torch for CUDA
    import triton  # type: ignore[import-not-found, unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    triton = None

log = logging.getLogger(__name__)

# Pixels that one program of the kernel works on.
_PIXELS = 512
# Columns of a row that one program of the other one makes.
_COLUMNS = 128


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
    rows = corners[:, None] + steps * pitches[:, None]  # [N, S]
    # An index a row of pixels: one a byte, of eight bytes, would take eight times the patches' memory.
    values = pixels.unfold(0, 3 * side, 1)[rows].view(n, side, side, 3).int()
    values += torch.arange(0, 768, 256, device=pixels.device, dtype=torch.int32)
    out[..., :3] = table.index_select(0, values.ravel()).view(n, side, side, 3)


@dataclass(frozen=True)
class Resampling:
    """An image among bytes, and another one that is made of it: as slides/resample.py does it, on the device.

    All places are in bytes, whole numbers of four but for the images'.
    """

    source: int
    source_size: tuple[int, int]
    """(width, height)."""

    target: int
    size: tuple[int, int]
    tables: tuple[int, int, int, int]
    """Of `axis_taps`: first pixels and weights along x, first pixels and weights along y."""

    taps: tuple[int, int]
    """(x, y)."""

    def moved(self, by: int) -> "Resampling":
        """The same, so many bytes further."""
        first_x, share_x, first_y, share_y = (place + by for place in self.tables)
        return replace(
            self,
            source=self.source + by,
            target=self.target + by,
            tables=(first_x, share_x, first_y, share_y),
        )


def resample_bytes(pixels: torch.Tensor, work: Resampling, fused: bool | None = None) -> None:
    """Make the image within `pixels`, uint8 [M], M a multiple of four; see `Resampling`.

    `fused`: by the kernel; None: where it can be. Both add up in one order, down and then across, as the host does.
    """
    if fused is None:
        fused = kernel_works(pixels.device)
    (wide, high), (width, height), (taps_x, taps_y) = work.source_size, work.size, work.taps
    numbers, shares = pixels.view(torch.int32), pixels.view(torch.float32)
    first_x, share_x, first_y, share_y = (place // 4 for place in work.tables)
    if fused:
        grid = (height, -(-width // _COLUMNS))
        tables = (first_x, share_x, first_y, share_y)
        _resample[grid](
            pixels,
            numbers,
            shares,
            work.source,
            wide,
            high,
            *tables,
            work.target,
            width,
            taps_x,
            taps_y,
            _COLUMNS,
        )
        return
    image = pixels[work.source : work.source + wide * high * 3].view(high, wide, 3)
    rows = numbers[first_y : first_y + height].long()
    weights = shares[share_y : share_y + height * taps_y].view(height, taps_y)
    down = torch.zeros(height, wide, 3, device=pixels.device)
    for j in range(taps_y):
        down += weights[:, j, None, None] * image[(rows + j).clamp_max(high - 1)].float()
    columns = numbers[first_x : first_x + width].long()
    weights = shares[share_x : share_x + width * taps_x].view(width, taps_x)
    total = torch.zeros(height, width, 3, device=pixels.device)
    for i in range(taps_x):
        total += weights[:, i, None] * down[:, (columns + i).clamp_max(wide - 1)]
    pixels[work.target : work.target + width * height * 3] = (total + 0.5).to(torch.uint8).ravel()


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
    # Without annotations: Triton takes them for its own. A kernel takes every number by itself, hence so many.

    @triton.jit
    def _cut(
        pixels, corners, pitches, table, out, SIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
    ):
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

    # Else it is compiled again for each kind of offset.
    @triton.jit(
        do_not_specialize=[
            "source",
            "wide",
            "high",
            "first_x",
            "first_y",
            "share_x",
            "share_y",
            "to",
            "width",
        ]
    )
    def _resample(
        pixels,
        numbers,
        shares,
        source,
        wide,
        high,
        first_x,
        share_x,
        first_y,
        share_y,
        to,
        width,
        TAPS_X: tl.constexpr,
        TAPS_Y: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        colour = tl.arange(0, 4)
        inside = column < width
        wanted = inside[:, None] & (colour < 3)[None, :]
        x = tl.load(numbers + first_x + column, mask=inside, other=0)
        y = tl.load(numbers + first_y + row)
        total = tl.zeros([BLOCK, 4], tl.float32)
        for i in range(TAPS_X):
            at = tl.minimum(x + i, wide - 1)
            down = tl.zeros([BLOCK, 4], tl.float32)
            for j in range(TAPS_Y):
                start = pixels + source + tl.minimum(y + j, high - 1) * wide * 3
                value = tl.load(start + at[:, None] * 3 + colour[None, :], mask=wanted, other=0)
                down += tl.load(shares + share_y + row * TAPS_Y + j) * value.to(tl.float32)
            total += tl.load(shares + share_x + column * TAPS_X + i, mask=inside, other=0.0)[:, None] * down
        new = (total + 0.5).to(tl.int32).to(tl.uint8)
        tl.store(pixels + to + (row * width + column)[:, None] * 3 + colour[None, :], new, mask=wanted)
