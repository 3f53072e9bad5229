"""Whether a file whose ending says nothing is a slide."""

from pathlib import Path

import openslide

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_readable_tiff(path: Path) -> bool:
    """Whether the file begins as TIFF does and is of a kind that can be read; False where it cannot be opened."""
    try:
        with path.open("rb") as file:
            if file.read(4) not in TIFF_MAGIC:
                return False
        return openslide.OpenSlide.detect_format(path) is not None
    except (OSError, openslide.OpenSlideError):
        return False
