"""What each image of a set is in numbers: its size, stain, a small picture of it, and a hash of its pixels."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb
from tqdm import tqdm

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.learning.datasets.listing import Listing, decode_each
from wsi_pipeline.models.stain import patch_densities
from wsi_pipeline.slides.resample import axis_weights

THUMBNAIL_PX = 16


@dataclass(frozen=True, eq=False)
class ImageStats:
    """Columns as long as the listing; those of images that cannot be decoded are 0."""

    # int32 [N, 2], width and height.
    sizes: NDArray[np.int32]
    # float32 [N, 3], mean optical density of R, G, B.
    densities: NDArray[np.float32]
    # uint8 [N, 16, 16, 3], the whole image by area average.
    thumbnails: NDArray[np.uint8]
    # uint64 [N], of size and pixels: alike where these are.
    digests: NDArray[np.uint64]
    # Why images could not be decoded, by their index.
    problems: dict[int, str]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """bool [N], whether each could be decoded."""
        return np.asarray(self.sizes[:, 0] > 0)


def measure_images(listing: Listing) -> ImageStats:
    """The statistics of every image, each decoded once."""
    n = len(listing)
    info = ImageStats(
        np.zeros((n, 2), np.int32),
        np.zeros((n, 3), np.float32),
        np.zeros((n, THUMBNAIL_PX, THUMBNAIL_PX, 3), np.uint8),
        np.zeros(n, np.uint64),
        {},
    )
    images = decode_each(listing, np.arange(n))
    for index, image in tqdm(images, "measuring", n, leave=False, disable=None, unit=" images"):
        if isinstance(image, DataError):
            info.problems[index] = str(image)
            continue
        info.sizes[index] = image.shape[1], image.shape[0]
        info.densities[index] = patch_densities([image])[0]
        info.thumbnails[index] = thumbnail(image)
        content = repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()
        info.digests[index] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return info


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole image, uint8 [height, width, 3], as uint8 [16, 16, 3] by area average.

    Exact, so that a flipped image gives the flipped thumbnail; Pillow's box filter takes whole pixels.
    """
    height, width = image.shape[:2]
    rows = _averaging(height) @ image.reshape(height, -1).astype(np.float32)  # [16, width * 3]
    columns = rows.reshape(THUMBNAIL_PX, width, 3).transpose(1, 0, 2).reshape(width, -1)
    means = _averaging(width) @ columns  # [16 columns, 16 rows * 3]
    pixels = (means + 0.5).reshape(THUMBNAIL_PX, THUMBNAIL_PX, 3).transpose(1, 0, 2)
    return np.ascontiguousarray(pixels.astype(np.uint8))


@lru_cache
def _averaging(length: int) -> NDArray[np.float32]:
    """float32 [16, length]: the mean over each sixteenth of a length."""
    weights: NDArray[np.float32] = axis_weights(THUMBNAIL_PX, 0, length / THUMBNAIL_PX, length).toarray()
    return weights


def stain_amounts(densities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Haematoxylin and eosin, float [N, 2], of mean optical densities [N, 3].

    Unmixed with the vectors of Ruifrok and Johnston (2001) as skimage has them; in optical density.
    """
    return np.asarray(densities.astype(float) @ hed_from_rgb)[:, :2]
