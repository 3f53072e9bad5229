"""Images decoded once: patches of one size in a memory-mapped array, kept in a cache folder.

A public IDC set is 277,524 PNGs; opening them takes minutes, its 2 GB of pixels as one array a second. A cache is
of one folder and one way to read it; when the folder's names, sizes or times change, it is made anew in place.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.learning.datasets.listing import Listing, decode_each
from wsi_pipeline.slides.resample import resample

logger = logging.getLogger(__name__)

# Part of every cache's name: caches of code that decoded otherwise are not taken for this one's.
FORMAT = 2


@dataclass(frozen=True, eq=False)
class Decoded:
    """Patches of a listing; rows of `pixels` are only of use where `whole` says so."""

    # uint8 [N, patch_px, patch_px, 3] RGB, perhaps on disk; a row an image of the listing.
    pixels: NDArray[np.uint8]
    # bool [N]: decoded, and of patch_px size (or squeezed into it).
    whole: NDArray[np.bool_]
    # int32 [N, 2]: width and height of the image itself, 0 where it was not decoded.
    sizes: NDArray[np.int32]
    # Why images could not be decoded, by their index.
    problems: dict[int, str]


def cache_folder() -> Path:
    """Where caches lie unless said: $XDG_CACHE_HOME/wsi_pipeline, or ~/.cache/wsi_pipeline."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsi_pipeline"


def decode(
    listing: Listing,
    wanted: NDArray[np.int64],
    patch_px: int,
    squeeze: bool,
    cache: Path | None = None,
) -> Decoded:
    """The images at the indices `wanted`, decoded; others may be too.

    An image of another size is squeezed to patch_px x patch_px by area average with `squeeze`, and left out
    without. Images of a fingerprint are read from `cache` (none: `cache_folder()`), where all of the listing is
    put first. Raises DataError when the cache cannot be written.
    """
    if not listing.fingerprint:  # few files, or an array already
        pixels = np.zeros((len(listing), patch_px, patch_px, 3), np.uint8)
        return _fill(listing, wanted, pixels, squeeze)
    cache = cache_folder() if cache is None else cache
    way = f"{FORMAT}\0{listing.folder.resolve()}\0{patch_px}\0{squeeze}"
    place = cache / f"{listing.folder.resolve().name}-{hashlib.sha256(way.encode()).hexdigest()[:12]}"
    try:
        kept = _open(place, listing)
        return kept or _make(place, listing, patch_px, squeeze)
    except OSError as error:
        raise DataError(
            f"{place}: the cache of decoded patches cannot be written ({error.strerror or error}); make room, "
            "or set XDG_CACHE_HOME to another folder"
        ) from error


def _make(place: Path, listing: Listing, patch_px: int, squeeze: bool) -> Decoded:
    """Decode all of the listing into `place`: beside it first, then renamed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    began = time.monotonic()
    try:
        shape = (len(listing), patch_px, patch_px, 3)
        pixels = np.lib.format.open_memmap(beside / "pixels.npy", "w+", np.uint8, shape)
        made = _fill(listing, np.arange(len(listing)), pixels, squeeze)
        pixels.flush()
        np.save(beside / "whole.npy", made.whole)
        np.save(beside / "sizes.npy", made.sizes)
        info = {"fingerprint": listing.fingerprint, "problems": made.problems}
        (beside / "facts.json").write_text(json.dumps(info))
        if place.exists():  # of the folder as it was; whoever has it open keeps it
            place.rename(beside / "old")
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(place / "old", ignore_errors=True)
    seconds = time.monotonic() - began
    logger.info(
        "decoded %d images in %.1f s (%.0f/s) into %s", len(listing), seconds, len(listing) / seconds, place
    )
    return made


def _open(place: Path, listing: Listing) -> Decoded | None:
    """The cache at `place`; none where there is none, or it is of the folder as it was, or damaged."""
    try:
        info = json.loads((place / "facts.json").read_text())
        if info["fingerprint"] != listing.fingerprint:
            return None
        pixels, whole, sizes = (
            np.load(place / f"{name}.npy", mmap_mode="r") for name in ("pixels", "whole", "sizes")
        )
    except (OSError, ValueError, KeyError, EOFError):
        return None
    problems = {int(index): reason for index, reason in info["problems"].items()}
    return Decoded(pixels, np.array(whole), np.array(sizes), problems)


def _fill(listing: Listing, wanted: NDArray[np.int64], pixels: NDArray[np.uint8], squeeze: bool) -> Decoded:
    """Decode the images `wanted` into their rows of `pixels`."""
    patch_px = pixels.shape[1]
    whole = np.zeros(len(listing), np.bool_)
    sizes = np.zeros((len(listing), 2), np.int32)
    problems: dict[int, str] = {}
    images = decode_each(listing, wanted)
    for index, image in tqdm(images, "decoding", len(wanted), leave=False, disable=None, unit=" images"):
        if isinstance(image, DataError):
            problems[index] = str(image)
            continue
        sizes[index] = image.shape[1], image.shape[0]
        if image.shape[:2] != (patch_px, patch_px) and squeeze:
            image = squeezed(image, patch_px)
        if image.shape[:2] == (patch_px, patch_px):
            pixels[index] = image
            whole[index] = True
    return Decoded(pixels, whole, sizes, problems)


def squeezed(image: NDArray[np.uint8], patch_px: int) -> NDArray[np.uint8]:
    """The whole image as uint8 [patch_px, patch_px, 3], averaged by area (linear where it is smaller)."""
    height, width = image.shape[:2]
    return resample(image, patch_px, patch_px, (0, 0), (width / patch_px, height / patch_px))
