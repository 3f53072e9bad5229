"""Picture files as RGB pixels, and back: what Pillow reads, refused where its colours would have to be guessed."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsi_pipeline.base.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
# All that Pillow raises at files that are not what they say.
_FAILURES = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)

# Of zlib: half the time of its usual 6, for a sixth more bytes.
PNG_LEVEL = 3


def read_image(path: Path) -> NDArray[np.uint8]:
    """The file's first picture, uint8 [height, width, 3], RGB; what is transparent is laid on white.

    Raises DataError where it cannot be decoded whole, has no colours, or more than 8 bits of them.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "RGB" and "transparency" not in image.info:
                return np.array(image)
            return _as_rgb(image, path)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large for a picture ({error}); map slides with infer-slide") from error
    except _FAILURES as error:
        reason = "no image format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: cannot be read as an image ({reason}); get it again") from error


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def _as_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
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
