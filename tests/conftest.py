"""Slides that the tests make, and where the shared ones lie."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real slides and patches; tests that need it skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the shared data folder beside the checkout (../shared), which is not here")
    return SHARED


def write_slide(
    path: Path,
    level0: NDArray[np.uint8],
    mpp: tuple[float, float] | None = (0.5, 0.5),
    factors: tuple[int, ...] = (1, 4),
    tile: int = 256,
    compression: str | None = None,
) -> Path:
    """A tiled pyramid that OpenSlide opens as generic TIFF; `factors` are its levels' downsamples."""
    with tifffile.TiffWriter(path, bigtiff=False) as tif:
        for factor in factors:
            level = level0 if factor == 1 else np.asarray(Image.fromarray(level0).reduce(factor))
            scale = {}
            if mpp is not None:
                scale = {
                    "resolution": (1e4 / (mpp[0] * factor), 1e4 / (mpp[1] * factor)),
                    "resolutionunit": "CENTIMETER",
                }
            tif.write(
                level,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression,
                metadata=None,
                subfiletype=0 if factor == 1 else 1,
                **scale,
            )
    return path


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    """`make_slide(name, level0, **options of write_slide)`: a slide file in the test's own folder."""

    def make(name: str, level0: NDArray[np.uint8], **options: object) -> Path:
        return write_slide(tmp_path / name, level0, **options)  # type: ignore[arg-type]

    return make


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """An image of which no two areas are alike, smooth enough to be reduced."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
