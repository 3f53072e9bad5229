"""A slide of any size made of few distinct storage tiles: quickly written, small on disk, as slow to decode as any.

    python -m scripts.bench.tiled_slide whole.tiff 117000 55000 --texture ../shared/data/slides/breast_40x.svs

A square of a real slide, the fields of densest tissue, is compressed once at each level of the pyramid, and laid again
and again within an ellipse; around it is glass. In the file all that look alike are one run of bytes, to which many
entries of the tables of offsets point. Readers decode each as if it were its own.
"""

import argparse
import io
import math
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.files import new_file

TILE_PX = 256
# The square that is repeated: a whole number of tiles at each of these downsamples.
SQUARE_PX = 4096
DOWNSAMPLES = (1, 4, 16)
QUALITY = 85
GLASS = (242, 241, 243)
MPP = 0.25
# Half of a whole mount's scan is glass.
TISSUE_SHARE = 0.5

Tiles = dict[tuple[int, int], bytes]


def write_tiled_slide(path: Path, width: int, height: int, square: NDArray[np.uint8]) -> None:
    """Write a BigTIFF of `width` x `height` px at 0.25 um/px, `square` (uint8 [4096, 4096, 3]) repeated in it."""
    image = Image.fromarray(square)
    with new_file(path) as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        link = 8  # where the offset of the next directory is to be written
        for downsample in DOWNSAMPLES:
            level = np.asarray(image.reduce(downsample))
            places = _write_tiles(file, level)
            size = (-(-width // downsample), -(-height // downsample))
            link = _write_directory(file, link, size, downsample, _table(size, downsample, places))


def densest_square(slide: Path) -> NDArray[np.uint8]:
    """The square of `SQUARE_PX` of a slide that holds most colour, uint8 [row, column, RGB]."""
    with openslide.OpenSlide(slide) as handle:
        level = handle.level_count - 1
        step = handle.level_downsamples[level]
        small = np.asarray(handle.read_region((0, 0), level, handle.level_dimensions[level]))[..., :3]
        colour = np.ptp(small.astype(int), axis=2)
        side = int(SQUARE_PX / step)
        corners = [
            (x, y)
            for y in range(0, max(1, colour.shape[0] - side), side // 4)
            for x in range(0, max(1, colour.shape[1] - side), side // 4)
        ]
        x, y = max(corners, key=lambda c: colour[c[1] : c[1] + side, c[0] : c[0] + side].sum())
        region = handle.read_region((int(x * step), int(y * step)), 0, (SQUARE_PX, SQUARE_PX))
        return np.ascontiguousarray(np.asarray(region)[..., :3])


@dataclass(frozen=True)
class _Places:
    """Offset and length in the file of each tile of the square [row, column, 2], and of a tile of glass [2]."""

    tissue: NDArray[np.uint64]
    glass: NDArray[np.uint64]


def _write_tiles(file: IO[bytes], level: NDArray[np.uint8]) -> _Places:
    def place(pixels: NDArray[np.uint8]) -> tuple[int, int]:
        data = _jpeg(pixels)
        file.write(data)
        return file.tell() - len(data), len(data)

    side = level.shape[0] // TILE_PX
    tissue = [
        [place(level[y * TILE_PX : (y + 1) * TILE_PX, x * TILE_PX : (x + 1) * TILE_PX]) for x in range(side)]
        for y in range(side)
    ]
    noise = np.random.default_rng(0).normal(0, 1, (TILE_PX, TILE_PX, 1))
    glass = place((np.array(GLASS) + noise).round().clip(0, 255).astype(np.uint8))
    return _Places(np.array(tissue, np.uint64), np.array(glass, np.uint64))


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def _table(size: tuple[int, int], downsample: int, places: _Places) -> NDArray[np.uint64]:
    """Offset and length of every tile of a level, [tiles in row order, 2]."""
    columns, rows = (-(-side // TILE_PX) for side in size)
    x, y = np.arange(columns), np.arange(rows)[:, None]
    side = len(places.tissue)
    table = places.tissue[y % side, x % side]  # [rows, columns, 2]
    # Whole squares are tissue or glass, the same at every level.
    square_tiles = SQUARE_PX // downsample // TILE_PX
    centre_x = (x // square_tiles + 0.5) * square_tiles / (size[0] / TILE_PX) - 0.5
    centre_y = (y // square_tiles + 0.5) * square_tiles / (size[1] / TILE_PX) - 0.5
    outside = centre_x**2 + centre_y**2 > TISSUE_SHARE / math.pi
    table[outside] = places.glass
    return table.reshape(-1, 2)


def _write_directory(
    file: IO[bytes], link: int, size: tuple[int, int], downsample: int, table: NDArray[np.uint64]
) -> int:
    """One page of the TIFF, with its tables; gives where the offset of the next page is to be written."""

    def put(data: bytes) -> int:
        file.seek(0, io.SEEK_END)
        file.write(b"\0" * (-file.tell() % 8))
        file.write(data)
        return file.tell() - len(data)

    offsets, lengths = (put(np.ascontiguousarray(table[:, i]).astype("<u8").tobytes()) for i in (0, 1))
    per_cm = struct.pack("<II", round(1e4 / (MPP * downsample)), 1)
    short, long, rational, long8 = 3, 4, 5, 16
    entries = [
        (254, long, 1, struct.pack("<I", 0 if downsample == 1 else 1)),
        (256, long, 1, struct.pack("<I", size[0])),
        (257, long, 1, struct.pack("<I", size[1])),
        (258, short, 3, struct.pack("<HHH", 8, 8, 8)),
        (259, short, 1, struct.pack("<H", 7)),  # JPEG
        (262, short, 1, struct.pack("<H", 6)),  # YCbCr
        (277, short, 1, struct.pack("<H", 3)),
        (282, rational, 1, per_cm),
        (283, rational, 1, per_cm),
        (284, short, 1, struct.pack("<H", 1)),
        (296, short, 1, struct.pack("<H", 3)),  # resolution is per centimetre
        (322, short, 1, struct.pack("<H", TILE_PX)),
        (323, short, 1, struct.pack("<H", TILE_PX)),
        (324, long8, len(table), struct.pack("<Q", offsets)),
        (325, long8, len(table), struct.pack("<Q", lengths)),
        (530, short, 2, struct.pack("<HH", 1, 1)),  # colour as fine as brightness
    ]
    directory = struct.pack("<Q", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack("<HHQ8s", tag, kind, count, value.ljust(8, b"\0"))
    start = put(directory + struct.pack("<Q", 0))
    end = file.tell() - 8
    file.seek(link)
    file.write(struct.pack("<Q", start))
    file.seek(0, io.SEEK_END)
    return end


def main() -> int:
    """Write one slide; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("width", type=int, help="level-0 pixels")
    parser.add_argument("height", type=int, help="level-0 pixels")
    parser.add_argument(
        "--texture", type=Path, required=True, help="a slide whose densest square is repeated"
    )
    args = parser.parse_args()
    write_tiled_slide(args.path, args.width, args.height, densest_square(args.texture))
    return 0


if __name__ == "__main__":
    sys.exit(main())
