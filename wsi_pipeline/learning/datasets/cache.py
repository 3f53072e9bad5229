"""Images decoded once: patches of one size in a memory-mapped array, kept in a cache folder.

A public IDC set is 277,524 PNGs; opening them takes minutes, its 2 GB of pixels as one array a second. A cache is
of one folder and one way to read it; when the folder's names, sizes or times change, it is made again in its place.
Of several processes that want one cache, one makes it and the others wait.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wsi_pipeline.base.errors import DataError, OutputError
from wsi_pipeline.base.files import clear_leftovers_of, new_array, new_file, new_folder, write_json
from wsi_pipeline.base.text import counted
from wsi_pipeline.jobs.locks import hold
from wsi_pipeline.jobs.protocols import Busy
from wsi_pipeline.learning.datasets.listing import Listing, decode_each
from wsi_pipeline.learning.datasets.sharing import ONE_READER, Readers, share_of, shared_zeros
from wsi_pipeline.slides.resample import resample

log = logging.getLogger(__name__)

# Part of every cache's name: caches of code that decoded otherwise are not taken for this one's.
FORMAT = 2
# How often a process looks whether another one has made the cache that both want.
POLL_S = 0.5
PIXELS = "pixels.npy"

T = TypeVar("T")


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
    readers: Readers = ONE_READER,
) -> Decoded:
    """The images at the indices `wanted`, decoded; others may be too. Of several readers, each decodes its share.

    An image of another size is squeezed to patch_px x patch_px by area average with `squeeze`, and left out
    without. Images of a fingerprint are read from `cache` (none: `cache_folder()`), where all of the listing is
    put first. Raises DataError when the cache cannot be written.
    """
    cache = cache_folder() if cache is None else cache
    if not listing.fingerprint:  # few files, or an array already
        pixels = shared_zeros((len(listing), patch_px, patch_px, 3), cache, readers)
        return _fill(listing, wanted, pixels, squeeze, readers)
    way = f"{FORMAT}\0{listing.folder.resolve()}\0{patch_px}\0{squeeze}"
    place = cache / f"{listing.folder.resolve().name}-{hashlib.sha256(way.encode()).hexdigest()[:12]}"
    try:
        if kept := _opened_by_all(place, listing, readers):
            return kept
        with _alone(place, readers):  # another process may have made it by then
            kept = _opened_by_all(place, listing, readers)
            return kept or _make(place, listing, patch_px, squeeze, readers)
    except OSError as error:
        raise _not_written(place, error) from error


@contextmanager
def _alone(place: Path, readers: Readers) -> Iterator[None]:
    """A block in which no other process makes the cache; its readers begin it together."""
    with ExitStack() as stack:

        def lock() -> None:
            while True:
                try:
                    stack.enter_context(hold(place.with_name(f".{place.name}.lock")))
                except Busy as busy:
                    log.debug("%s: waiting: %s", place, busy)
                    time.sleep(POLL_S)
                else:
                    clear_leftovers_of(place)
                    return

        _by_the_first(lock, place, readers)
        yield


def _make(place: Path, listing: Listing, patch_px: int, squeeze: bool, readers: Readers) -> Decoded:
    """Decode all of the listing into `place`: the first reader makes the files, each fills its part of the pixels."""
    began = time.monotonic()
    with ExitStack() as stack:

        def begin() -> Path:
            folder = stack.enter_context(new_folder(place))
            new_array(folder / PIXELS, (len(listing), patch_px, patch_px, 3), np.uint8)
            return folder

        def finish() -> None:
            for name, values in (("whole", made.whole), ("sizes", made.sizes)):
                with new_file(folder / f"{name}.npy", durable=False) as file:
                    np.save(file, values)
            write_json(folder / "facts.json", {"fingerprint": listing.fingerprint, "problems": made.problems})
            stack.close()

        folder = _by_the_first(begin, place, readers)
        pixels = np.load(folder / PIXELS, mmap_mode="r+")
        made = _fill(listing, np.arange(len(listing)), pixels, squeeze, readers)
        pixels.flush()
        readers.all_say(None)
        _by_the_first(finish, place, readers)
    if readers.rank == 0:
        seconds = time.monotonic() - began
        count = len(listing)
        log.info(
            "decoded %s in %.1f s (%.0f/s) into %s", counted(count, "image"), seconds, count / seconds, place
        )
    return made


def _by_the_first(work: Callable[[], T], place: Path, readers: Readers) -> T:
    """What the first reader's `work` gives, in all readers; that the cache cannot be written is raised in all."""
    done: T | DataError | None = None
    if readers.rank == 0:
        try:
            done = work()
        except (OSError, OutputError) as error:
            done = _not_written(place, error)
    done = readers.all_say(done)[0]
    if isinstance(done, DataError):
        raise done
    return cast(T, done)


def _not_written(place: Path, error: Exception) -> DataError:
    cause = error.__cause__ if isinstance(error, OutputError) else error
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
    return DataError(
        f"{place}: the cache of decoded patches cannot be written ({reason}); make room, or set XDG_CACHE_HOME to "
        "another folder"
    )


def _opened_by_all(place: Path, listing: Listing, readers: Readers) -> Decoded | None:
    """The cache, where every reader can open it."""
    kept = _open(place, listing)
    everywhere = all(readers.all_say(kept is not None))
    return kept if everywhere else None


def _open(place: Path, listing: Listing) -> Decoded | None:
    """The cache at `place`; none where there is none, or it is of the folder as it was, or damaged."""
    try:
        info = json.loads((place / "facts.json").read_text())
        if info["fingerprint"] != listing.fingerprint:
            return None
        pixels, whole, sizes = (
            np.load(place / f"{name}.npy", mmap_mode="r") for name in ("pixels", "whole", "sizes")
        )
        problems = {int(index): reason for index, reason in info["problems"].items()}
    except Exception:
        # numpy raises what it likes at a damaged header; whatever it is, the cache is filled again.
        return None
    return Decoded(pixels, np.array(whole), np.array(sizes), problems)


def _fill(
    listing: Listing,
    wanted: NDArray[np.int64],
    pixels: NDArray[np.uint8],
    squeeze: bool,
    readers: Readers,
) -> Decoded:
    """Decode the images `wanted` into their rows of `pixels`, which all readers share, each reader its part."""
    patch_px = pixels.shape[1]
    whole = np.zeros(len(listing), np.bool_)
    sizes = np.zeros((len(listing), 2), np.int32)
    problems: dict[int, str] = {}
    mine = wanted[share_of(len(wanted), readers)]
    images = decode_each(listing, mine)
    hidden = True if readers.rank else None
    for index, image in tqdm(images, "decoding", len(mine), leave=False, disable=hidden, unit=" images"):
        if isinstance(image, DataError):
            problems[index] = str(image)
            continue
        sizes[index] = image.shape[1], image.shape[0]
        if image.shape[:2] != (patch_px, patch_px) and squeeze:
            image = squeezed(image, patch_px)
        if image.shape[:2] == (patch_px, patch_px):
            pixels[index] = image
            whole[index] = True
    for rows, are_whole, have_sizes, with_problems in readers.all_say(
        (mine, whole[mine], sizes[mine], problems)
    ):
        whole[rows], sizes[rows] = are_whole, have_sizes
        problems = problems | with_problems
    return Decoded(pixels, whole, sizes, problems)


def squeezed(image: NDArray[np.uint8], patch_px: int) -> NDArray[np.uint8]:
    """The whole image as uint8 [patch_px, patch_px, 3], averaged by area (linear where it is smaller)."""
    height, width = image.shape[:2]
    return resample(image, patch_px, patch_px, (0, 0), (width / patch_px, height / patch_px))
