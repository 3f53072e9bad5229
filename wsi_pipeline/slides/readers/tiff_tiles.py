"""The storage tiles of one TIFF page: where they lie in the file, and what their bytes decode to.

JPEG tiles go to libjpeg-turbo by way of simplejpeg, the one binding that refuses damaged ones: others give the
part that could be decoded and grey for the rest. All else goes through tifffile and imagecodecs, after a check of
what their decoders do not check. Both release the interpreter's lock while they decode.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import RegionReadError
from wsi_pipeline.base.geometry import Box, Size
from wsi_pipeline.slides.readers.jp2k import damage_of
from wsi_pipeline.slides.readers.jpeg_tiles import JpegStreams
from wsi_pipeline.slides.readers.source import SourceFile

if TYPE_CHECKING:
    from tifffile import TiffPage

JPEG = 7
JPEG_2000 = (33003, 33005, 34712)
RGB, YCBCR = 2, 6  # values of the PhotometricInterpretation tag
# A codec that finds nothing to save adds a few bytes; what is longer is no tile, and is not read into memory.
MOST_BYTES_A_PIXEL, MOST_BYTES_BESIDE = 6, 65_536
SOI, EOI, APP0 = b"\xff\xd8", b"\xff\xd9", b"\xff\xe0"
# An Adobe APP14 segment whose last byte says: no colour transform. Without it a decoder takes three components
# for YCbCr, whatever the TIFF's tag says.
STORED_AS_RGB = bytes.fromhex("ffee000e41646f626500640000000000")


@dataclass(frozen=True, eq=False)
class TilesOfPage:
    """One page's storage tiles, in row order; a tile of no bytes is missing."""

    size: Size
    """The page's pixels."""

    tile_size: Size
    """Pixels of a whole tile; those at the right and lower edge reach past the page."""

    offsets: NDArray[np.int64]
    """[n] where each tile begins in the file."""

    byte_counts: NDArray[np.int64]
    """[n] its length; 0: missing."""

    decode: Callable[[bytes, int], NDArray[np.uint8]]
    """Pixels [row, column, RGB] of the bytes of the tile of this index."""

    streams: JpegStreams | None = None
    """What its tiles have in common, where they are JPEG."""

    @property
    def columns(self) -> int:
        """Tiles along a row."""
        return -(-self.size.width // self.tile_size.width)

    def box(self, index: int) -> Box:
        """The tile's pixels, cut to the page."""
        row, column = divmod(index, self.columns)
        tile = self.tile_size
        whole = Box(column * tile.width, row * tile.height, tile.width, tile.height)
        return whole.intersect(Box(0, 0, self.size.width, self.size.height))

    def check_counts(self, box: Box) -> None:
        """Raises RegionReadError where a tile that the box touches is said to have more bytes than any tile has.

        OpenSlide takes as much memory before it reads: where there is none, GLib ends the process.
        """
        tile, columns = self.tile_size, self.columns
        rows = -(-self.size.height // tile.height)
        part = box.intersect(Box(0, 0, self.size.width, self.size.height))
        if min(part.width, part.height) <= 0:
            return
        of_box = np.s_[
            part.y // tile.height : (part.bottom - 1) // tile.height + 1,
            part.x // tile.width : (part.right - 1) // tile.width + 1,
        ]
        counts = self.byte_counts[: rows * columns]
        if counts.size == rows * columns:
            self._check_count(int(counts.reshape(rows, columns)[of_box].max()))

    def _check_count(self, count: int) -> None:
        tile = self.tile_size
        if count > MOST_BYTES_A_PIXEL * tile.area + MOST_BYTES_BESIDE:
            raise RegionReadError(
                f"the tile has {count:,} bytes, too many for {tile.width} x {tile.height} pixels"
            )

    def read(self, file: SourceFile, index: int) -> NDArray[np.uint8]:
        """uint8 [row, column, RGB] of a tile, cut to the page.

        Raises SlideReadError when the bytes cannot be read, RegionReadError when they are known to be damaged, and
        else whatever the decoder raises at what it cannot decode.
        """
        count, tile = int(self.byte_counts[index]), self.tile_size
        self._check_count(count)
        pixels = self.decode(file.read(int(self.offsets[index]), count), index)
        if pixels.shape != (tile.height, tile.width, 3):
            raise ValueError(f"the tile has shape {pixels.shape}, expected {(tile.height, tile.width, 3)}")
        row, column = divmod(index, self.columns)
        return pixels[: self.size.height - row * tile.height, : self.size.width - column * tile.width]


def tiles_of(page: "TiffPage") -> TilesOfPage | None:
    """The page's tiles; None where it is no tiled page of 8-bit RGB or YCbCr pixels."""
    if (
        not page.is_tiled
        or page.dtype != np.uint8
        or page.samplesperpixel != 3
        or page.planarconfig != 1
        or page.imagedepth != 1
        or page.photometric not in (RGB, YCBCR)
    ):
        return None
    tiles = TilesOfPage(
        Size(page.imagewidth, page.imagelength),
        Size(page.tilewidth, page.tilelength),
        np.array(page.dataoffsets, np.int64),
        np.array(page.databytecounts, np.int64),
        _jpeg_decoder(page) if page.compression == JPEG else _other_decoder(page),
        _streams(page) if page.compression == JPEG else None,
    )
    n = tiles.columns * -(-tiles.size.height // tiles.tile_size.height)
    return tiles if len(tiles.offsets) == len(tiles.byte_counts) == n else None


def jpeg_stream(page: "TiffPage") -> Callable[[bytes], bytes]:
    """Makes of a JPEG tile's bytes a stream that any decoder takes: with the page's tables, and the colours it means.

    What it gives raises ValueError where the bytes are no JPEG's.
    """
    streams = _streams(page)
    head, stored_as_rgb = streams.head, streams.stored_as_rgb

    def whole(data: bytes) -> bytes:
        if not data.startswith(SOI):
            raise ValueError(f"not a JPEG tile: it starts with 0x{data[:2].hex()}")
        start = len(SOI)
        if stored_as_rgb and data[2:4] == APP0:  # a JFIF segment would mean YCbCr
            start += 2 + int.from_bytes(data[4:6], "big")
        return head + data[start:]

    return whole


def _streams(page: "TiffPage") -> JpegStreams:
    tables = page.jpegtables
    head = SOI if tables is None else tables[: tables.rfind(EOI)]
    stored_as_rgb = page.photometric == RGB
    return JpegStreams(head + STORED_AS_RGB if stored_as_rgb else head, stored_as_rgb)


def _jpeg_decoder(page: "TiffPage") -> Callable[[bytes, int], NDArray[np.uint8]]:
    from simplejpeg import decode_jpeg

    whole, shape = jpeg_stream(page), (page.tilelength, page.tilewidth, 3)

    def decode(data: bytes, _: int) -> NDArray[np.uint8]:
        # Of the tile's own size: what says that it is larger is refused before room is made for it.
        stream, room = whole(data), np.empty(shape, np.uint8)
        try:
            pixels: NDArray[np.uint8] = decode_jpeg(stream, buffer=room, strict=True)
        except ValueError as error:
            decode_jpeg(stream, buffer=room, strict=False)  # what even this refuses may be of another kind
            raise RegionReadError(f"damaged: {error}") from error
        return pixels

    return decode


def _other_decoder(page: "TiffPage") -> Callable[[bytes, int], NDArray[np.uint8]]:
    decode_segment, tables = page.decode, page.jpegtables
    tile_size, is_jpeg_2000 = Size(page.tilewidth, page.tilelength), page.compression in JPEG_2000

    def decode(data: bytes, index: int) -> NDArray[np.uint8]:
        if is_jpeg_2000 and (damage := damage_of(data, tile_size)):
            raise RegionReadError(f"damaged: {damage}")
        pixels = decode_segment(data, index, jpegtables=tables)[0]
        if pixels is None:
            raise ValueError("the tile decodes to nothing")
        tile: NDArray[np.uint8] = pixels[0]  # of [depth, row, column, RGB]
        return tile

    return decode
