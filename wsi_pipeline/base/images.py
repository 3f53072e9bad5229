"""Picture files as RGB pixels, and back: what Pillow reads, refused where its colours would have to be guessed.

JPEG goes through simplejpeg, which refuses what its decoder stumbles over; Pillow gives grey for what it could not
decode, and says nothing. Both are libjpeg-turbo and give the same bits. What no decoder can know of a JPEG: changed
bytes that still are a picture, for it holds no checksum.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from wsi_pipeline.base.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
# Of a picture to classify: what is larger is a slide, of which infer-slide holds no more than a part at a time.
MOST_PIXELS = 40_000_000
# All that Pillow raises at files that are not what they say.
_FAILURES = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)

# Numbers of TIFF tags: bits a channel, compression, how channels lie, where strips or tiles lie and their lengths,
# JPEG's tables; and values of the second and third.
BITS, COMPRESSION, PLANES, STRIPS, TILES, JPEG_TABLES = 258, 259, 284, (273, 279), (324, 325), 347
JPEG_IN_TIFF, DEFLATE_IN_TIFF, PLANAR = 7, (8, 32946), 2
# What is decompressed at once only to see whether it can be.
PIECE_BYTES = 2**20

# The text in a PNG that says its um per pixel.
MPP_TEXT = "mpp"
UM_PER_INCH = 25_400.0

# Of zlib: half the time of its usual 6, for a sixth more bytes.
PNG_LEVEL = 3


def read_image(path: Path, most_pixels: int | None = None) -> NDArray[np.uint8]:
    """The file's first picture, uint8 [height, width, 3], RGB; what is transparent is laid on white.

    Raises DataError where it is no file or cannot be decoded whole, has no colours, or more than 8 bits of them; and,
    before any is decoded, where it has more than `most_pixels`.
    """
    if not _is_file(path):
        raise DataError(f"{path}: found a pipe, a folder or a device, expected a picture's file")
    return _decoded(path, path.read_bytes, str(path), most_pixels)


def decode_image(data: bytes, name: str, most_pixels: int) -> NDArray[np.uint8]:
    """The same of a file's bytes; DataError too where it has more than `most_pixels`, before any is decoded."""
    return _decoded(io.BytesIO(data), lambda: data, name, most_pixels)


def _is_file(path: Path) -> bool:
    """Whether it may be opened: a file, or nothing, of which the system says what is wrong. A pipe may never end."""
    return path.is_file() or not path.exists()


def _decoded(
    file: Path | io.BytesIO, content: Callable[[], bytes], path: str, most_pixels: int | None
) -> NDArray[np.uint8]:
    """The picture of an open file, or one at a path, which errors call `path`."""
    try:
        with Image.open(file) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise DataError(
                    f"{path}: found {image.width:,} x {image.height:,} pixels, expected at most {most_pixels:,} of a "
                    f"picture; write a larger one as a tiled TIFF with its scale, and map it with infer-slide"
                )
            if image.format in ("JPEG", "MPO"):
                pixels = _strictly(content(), image.size)
                if image.mode == "RGB" and "transparency" not in image.info:
                    return pixels
            elif image.format == "TIFF":
                _check_tiff(image, content(), path)
            if image.mode == "RGB" and "transparency" not in image.info:
                return np.array(image)
            return _as_rgb(image, path)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large for a picture ({error}); map slides with infer-slide") from error
    except _FAILURES as error:
        if isinstance(error, OSError) and error.errno:  # the system's, not Pillow's
            raise DataError(
                f"{path}: cannot be read by the system ({error.strerror}); see to the file, its disk or mount"
            ) from error
        reason = "no image format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: cannot be read as an image ({reason}); get it again") from error


def _strictly(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels [row, column, channel] of a JPEG of this width and height: RGB, or grey or CMYK where it is of those.

    Raises ValueError at the first thing that a whole JPEG would not have.
    """
    from simplejpeg import decode_jpeg, decode_jpeg_header

    _, _, stored_as, _ = decode_jpeg_header(data)
    colours, channels = {"Gray": ("GRAY", 1), "CMYK": ("CMYK", 4), "YCCK": ("CMYK", 4)}.get(
        stored_as, ("RGB", 3)
    )
    room = np.empty((size[1], size[0], channels), np.uint8)  # what says that it is larger is refused
    pixels: NDArray[np.uint8] = decode_jpeg(data, colours, buffer=room, strict=True)
    if pixels.shape[:2] != room.shape[:2]:
        raise ValueError(
            f"the picture has {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {size[0]} x {size[1]}"
        )
    return pixels


def _check_tiff(image: Image.Image, data: bytes, path: str) -> None:
    """Raises DataError at what Pillow reads wrongly, ValueError or zlib.error at damage that it does not notice."""
    tags = dict(image.tag_v2)  # type: ignore[attr-defined]
    bits = max(np.ravel(tags.get(BITS, 1)))
    if tags.get(PLANES) == PLANAR and bits > 8:
        raise DataError(
            f"{path}: cannot be read as an image (found {bits} bits a channel, each channel by itself, expected 8 "
            "bits); write it as 8-bit RGB"
        )
    checks = {JPEG_IN_TIFF: _check_jpeg} | dict.fromkeys(DEFLATE_IN_TIFF, _check_deflate)
    check = checks.get(int(tags.get(COMPRESSION, 1)))
    if check is None:
        return
    offsets, lengths = (np.ravel(tags.get(tag, ())) for tag in (TILES if TILES[0] in tags else STRIPS))
    tables = tags.get(JPEG_TABLES, b"")
    for offset, length in zip(offsets, lengths, strict=True):
        check(data[offset : offset + length], tables)


def _check_jpeg(part: bytes, tables: bytes) -> None:
    from simplejpeg import decode_jpeg, decode_jpeg_header

    stream = tables[:-2] + part[2:] if tables else part
    is_grey = decode_jpeg_header(stream)[2] == "Gray"
    decode_jpeg(stream, "GRAY" if is_grey else "RGB", strict=True)


def _check_deflate(part: bytes, _: bytes) -> None:
    """Its checksum, which comes last, and which Pillow does not wait for."""
    stream = zlib.decompressobj()
    while part and not stream.eof:
        stream.decompress(part, PIECE_BYTES)
        part = stream.unconsumed_tail
    if not stream.eof:
        raise ValueError("a strip or tile ends before its data do")


def png_bytes(image: Image.Image, mpp: float | None = None, texts: Mapping[str, str] | None = None) -> bytes:
    """The picture as a PNG file; `mpp`, um per pixel, is written into it as pixels per metre and as the text "mpp".

    texts: what else it says of itself, by keyword.
    """
    file, info, scale = io.BytesIO(), PngInfo(), {}
    if mpp is not None:
        info.add_text(MPP_TEXT, f"{mpp:g}")
        scale = {"dpi": (UM_PER_INCH / mpp,) * 2}
    for keyword, text in (texts or {}).items():
        info.add_text(keyword, text)
    image.save(file, format="PNG", compress_level=PNG_LEVEL, pnginfo=info, **scale)
    return file.getvalue()


def png_scale(path: Path) -> tuple[float, int] | None:
    """Um per pixel that a PNG says, in the text "mpp" or as pixels per metre, and its width; none where it says none.

    Many programs write a screen's or a printer's pixels per metre. What cannot be read, or is no PNG, says none.
    """
    if not _is_file(path):
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(MPP_TEXT)
            dots = image.info.get("dpi")
            mpp = float(text) if text else UM_PER_INCH / float(dots[0]) if dots and dots[0] else 0.0
            return (mpp, image.width) if mpp > 0 else None
    except (*_FAILURES, Image.DecompressionBombError):
        return None


def _as_rgb(image: Image.Image, path: str) -> NDArray[np.uint8]:
    if image.mode in ("P", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.array(Image.alpha_composite(white, image).convert("RGB"))
    if image.mode in ("CMYK", "YCbCr", "RGBX"):
        return np.array(image.convert("RGB"))
    raise DataError(
        f"{path}: cannot be read as an image of a stain (found Pillow's mode {image.mode}, without 8-bit "
        "colours, expected RGB); get it in colour"
    )


def through_jpeg(rgb: NDArray[np.uint8], quality: int, halved_chroma: bool = True) -> NDArray[np.uint8]:
    """Pixels, uint8 [height, width, 3], as a JPEG gives them back: `quality` 1 to 100, chroma 4:2:0 or 4:4:4."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="JPEG", quality=quality, subsampling=2 if halved_chroma else 0)
    return np.asarray(Image.open(file))
