"""An epoch of patches read from slides: piece by piece, each storage tile decoded once, mixed in a bounded pool.

A piece is a square of whole storage tiles of one slide, with the patches that lie wholly within it. Patches over the
edge of two pieces would have their tiles decoded twice: they wait for another epoch, whose squares begin elsewhere.
Which pieces, in which order, which process reads which, and which patch stands in which batch follow from the seed,
the epoch and the number of processes alone; not from threads, nor from what was read before.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Box
from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.datasets.cache import cache_folder
from wsi_pipeline.learning.datasets.load import LabelledPatches
from wsi_pipeline.learning.datasets.scale import check_scale
from wsi_pipeline.learning.datasets.sharing import ONE_READER, Readers, shared_zeros
from wsi_pipeline.learning.datasets.split import SplitOptions
from wsi_pipeline.learning.datasets.tiled_slides import (
    SlidePatches,
    SlideReadOptions,
    all_slides,
    split_slides,
)
from wsi_pipeline.models.card import Stain
from wsi_pipeline.models.stain import Normaliser, colours_of, normalise_stain
from wsi_pipeline.models.stain_methods import StainMethod
from wsi_pipeline.slides.slide import PlaneReader, Slide
from wsi_pipeline.tiling.grid import Block, Grid
from wsi_pipeline.tiling.patches import load_blocks, read_patches

log = logging.getLogger(__name__)

Side = TypeVar("Side", LabelledPatches, SlidePatches)

MOST_THREADS = 8
# A slide's sample is taken from so many places of it at least.
PIECES_A_SAMPLE = 8


@dataclass(frozen=True, eq=False)
class Piece:
    """What is read at once: patches of one slide within a square of whole storage tiles."""

    slide: int
    # int64, indices of patches; each as often as it is drawn.
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Epoch:
    """What one process reads in one epoch, in order."""

    pieces: tuple[Piece, ...]
    # How many batches each of the processes makes of it.
    steps: int
    # How many patches lie over the edges of pieces.
    waiting: int


def pieces_of(patches: SlidePatches, offsets: NDArray[np.int64] | None = None) -> list[Piece]:
    """The pieces of the slides, with the patches wholly within each.

    `offsets`, int [slides, 2], are storage tiles along x and y by which the squares of each slide begin before its
    first. Without them no patch is left out: those over an edge are of the square in which they begin.
    """
    ends = np.searchsorted(patches.slide, np.arange(len(patches.slides) + 1))
    pieces = []
    for index, slide in enumerate(patches.slides):
        rows = np.arange(ends[index], ends[index + 1])
        tiles = patches.tiles[rows].astype(np.int64)
        shift = np.zeros(2, np.int64) if offsets is None else offsets[index] % slide.piece
        square = (tiles[:, (0, 2)] + shift) // slide.piece
        if offsets is not None:
            within = (square == (tiles[:, (1, 3)] + shift) // slide.piece).all(axis=1)
            rows, square = rows[within], square[within]
        _, which = np.unique(square[:, ::-1], axis=0, return_inverse=True)
        order = np.argsort(which.ravel(), kind="stable")
        cuts = np.flatnonzero(np.diff(which.ravel()[order])) + 1
        pieces += [Piece(index, part) for part in np.split(rows[order], cuts) if len(part)]
    return pieces


def plan_epoch(
    patches: SlidePatches,
    seed: tuple[int, int],
    share: int,
    weights: NDArray[np.float64] | None = None,
    rank: int = 0,
    count: int = 1,
) -> Epoch:
    """What process `rank` of `count` reads in the epoch of that seed (the training's, and the epoch's number).

    Each makes batches of `share` patches. With `weights`, float [N], as many patches are drawn as there are, each by
    its weight, and a patch may be drawn again. Raises DataError where a process has no whole batch.
    """
    reading, rng = patches.reading, np.random.default_rng([*seed, 0])
    pieces = pieces_of(patches, rng.integers(0, 2**31, (len(patches.slides), 2)))
    waiting = len(patches) - sum(len(piece.rows) for piece in pieces)
    pieces = [pieces[index] for index in rng.permutation(len(pieces))]
    if reading.patches_an_epoch:
        so_far = np.cumsum([len(piece.rows) for piece in pieces])
        pieces = pieces[: int(np.searchsorted(so_far, reading.patches_an_epoch)) + 1]
    shares: list[list[Piece]] = [[] for _ in range(count)]
    sizes = [0] * count
    for piece in _few_slides_at_once(pieces, reading.slides_at_once, rng):
        least = sizes.index(min(sizes))
        shares[least].append(piece)
        sizes[least] += len(piece.rows)
    if min(sizes) < share:
        raise DataError(
            f"found {counted(min(sizes), 'patch')} for one of {counted(count, 'process')} in an epoch, expected a "
            f"batch of {share} at least; outline more, or set a smaller batch_size in the config, or start fewer "
            "processes"
        )
    mine = shares[rank]
    if weights is not None:
        mine = _drawn(mine, weights, np.random.default_rng([*seed, 1, rank]))
    return Epoch(tuple(mine), min(sizes) // share, waiting)


def _few_slides_at_once(pieces: list[Piece], most: int, rng: np.random.Generator) -> Iterator[Piece]:
    """The pieces in another order: of `most` slides by turns, each next one by chance among theirs."""
    by_slide: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_slide.setdefault(piece.slide, []).append(piece)
    coming = list(by_slide.values())
    at_hand = [coming.pop() for _ in range(min(most, len(coming)))]
    while at_hand:
        left = np.cumsum([len(of_slide) for of_slide in at_hand])
        index = int(np.searchsorted(left, rng.integers(left[-1]), "right"))
        yield at_hand[index].pop()
        if not at_hand[index]:
            del at_hand[index]
            at_hand += [coming.pop()] if coming else []


def _drawn(pieces: list[Piece], weights: NDArray[np.float64], rng: np.random.Generator) -> list[Piece]:
    """As many patches as the pieces hold, drawn from them by their weights, still piece by piece."""
    rows = np.concatenate([piece.rows for piece in pieces])
    chances = weights[rows] / weights[rows].sum()
    times = np.bincount(rng.choice(len(rows), len(rows), p=chances), minlength=len(rows))
    parts = np.split(times, np.cumsum([len(piece.rows) for piece in pieces])[:-1])
    drawn = [
        Piece(piece.slide, np.repeat(piece.rows, part)) for piece, part in zip(pieces, parts, strict=True)
    ]
    return [piece for piece in drawn if len(piece.rows)]


def batches_of(
    patches: SlidePatches, epoch: Epoch, share: int, seed: tuple[int, int], readers: Readers, rank: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """The epoch's batches: indices of patches, int64 [share], and their pixels, uint8 [share, S, S, 3].

    Pieces are decoded ahead on threads. Raises DataError where patches cannot be decoded, unless they are to be
    skipped: then others of their piece stand in their place.
    """
    rng = np.random.default_rng([*seed, 2, rank])
    loaded = read_pieces(patches, epoch.pieces, _threads(readers))
    pool = _Pool(min(patches.reading.pool_patches, sum(len(piece.rows) for piece in epoch.pieces)), share)
    last, made = None, 0
    for last in pool.mixed(loaded, rng):
        yield last
        made += 1
        if made == epoch.steps:
            loaded.close()
            return
    # Whole pieces were unreadable: every process makes as many batches, or the others would wait for it.
    if last is None:
        raise DataError("found no batch of patches that can be decoded; look at the slides named above")
    if made < epoch.steps:
        log.warning("%d of %d batches of the epoch are its last one again", epoch.steps - made, epoch.steps)
    for _ in range(made, epoch.steps):
        yield last


class _Pool:
    """Patches in memory, of which batches are drawn by chance."""

    def __init__(self, capacity: int, share: int):
        self._capacity, self._share = max(capacity, share), share
        self._rows = np.empty(self._capacity, np.int64)
        self._pixels: NDArray[np.uint8] | None = None
        self._filled = 0

    def mixed(
        self, loaded: Iterable[tuple[NDArray[np.int64], NDArray[np.uint8]]], rng: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Batches of what is loaded, one whenever the pool is full, and then until less than one is left."""
        for rows, pixels in loaded:
            if self._pixels is None:
                self._pixels = np.empty((self._capacity, *pixels.shape[1:]), np.uint8)
            start = 0
            while start < len(rows):
                taken = min(self._capacity - self._filled, len(rows) - start)
                into = slice(self._filled, self._filled + taken)
                self._rows[into], self._pixels[into] = (
                    rows[start : start + taken],
                    pixels[start : start + taken],
                )
                self._filled, start = self._filled + taken, start + taken
                if self._filled == self._capacity:
                    yield self._draw(rng)
        while self._filled >= self._share:
            yield self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        assert self._pixels is not None
        chosen = rng.choice(self._filled, self._share, replace=False)
        batch = self._rows[chosen], self._pixels[chosen]
        # The last ones of the pool fill the places that became free.
        self._filled -= self._share
        stay = np.ones(self._share, np.bool_)
        stay[chosen[chosen >= self._filled] - self._filled] = False
        last, free = self._filled + np.flatnonzero(stay), chosen[chosen < self._filled]
        self._rows[free], self._pixels[free] = self._rows[last], self._pixels[last]
        return batch


def read_pieces(
    patches: SlidePatches, pieces: Sequence[Piece], threads: int
) -> Generator[tuple[NDArray[np.int64], NDArray[np.uint8]], None, None]:
    """Each piece's patches that can be decoded, or others of the same piece in their place: indices and pixels.

    Raises as `batches_of`.
    """
    slides = _OpenSlides(patches, Counter(piece.slide for piece in pieces))
    lost = 0
    try:
        with closing(load_blocks(pieces, slides.read, threads)) as loaded:
            for piece, (rows, pixels, unreadable) in loaded:
                slides.done(piece.slide)
                if unreadable and not patches.skip_unreadable:
                    raise DataError(
                        f"{patches.slides[piece.slide].path}: {unreadable} of {counted(len(piece.rows), 'patch')} "
                        "read together cannot be decoded; get the slide again, or set skip_unreadable: true under "
                        "split in the config"
                    )
                lost += unreadable
                if len(rows):
                    yield rows, pixels
    finally:
        slides.close()
        if lost:
            log.warning("%s of slides cannot be decoded: skipped", counted(lost, "patch"))


class _OpenSlides:
    """Slides opened when they are first read, and closed after their last piece."""

    def __init__(self, patches: SlidePatches, pieces: Counter[int]):
        self._patches, self._left = patches, pieces
        self._open: dict[int, tuple[Slide, PlaneReader]] = {}
        self._lock = threading.Lock()

    def read(self, piece: Piece) -> tuple[NDArray[np.int64], NDArray[np.uint8], int]:
        """Indices, pixels [n, S, S, 3], and how many of the piece's patches cannot be decoded; from any thread."""
        patches, grid = self._patches, self._patches.slides[piece.slide].grid
        rows, times = np.unique(piece.rows, return_inverse=True)
        cut = read_patches(_block(patches.places[rows], grid), grid, self._reader(piece.slide))
        pixels = normalise_stain(cut.rgb, patches.tables[piece.slide]) if patches.tables else cut.rgb
        good = np.flatnonzero(cut.readable)
        if len(good) == len(rows):
            same = len(rows) == len(piece.rows)
            return (rows, pixels, 0) if same else (rows[times], pixels[times], 0)
        if not len(good):
            return piece.rows[:0], pixels[:0], len(piece.rows)
        instead = np.arange(len(rows))
        instead[~cut.readable] = np.resize(good, len(rows) - len(good))
        lost = int((~cut.readable)[times].sum())
        return rows[instead[times]], pixels[instead[times]], lost

    def _reader(self, index: int) -> PlaneReader:
        with self._lock:
            if index not in self._open:
                slide = self._patches.slides[index].open()
                self._open[index] = slide, self._patches.slides[index].grid.reader(slide)
            return self._open[index][1]

    def done(self, index: int) -> None:
        """One piece of the slide was read."""
        self._left[index] -= 1
        if not self._left[index]:
            with self._lock:
                slide, _ = self._open.pop(index)
            slide.check_unchanged()
            slide.close()

    def close(self) -> None:
        """Close those that are open."""
        for slide, _ in self._open.values():
            slide.close()


def _block(places: NDArray[np.int32], grid: Grid) -> Block:
    """Patches at these columns and rows as a block to be read; it writes no cells."""
    (left, top), (right, bottom) = places.min(axis=0).tolist(), places.max(axis=0).tolist()
    first, last = grid.patch_box(left, top), grid.patch_box(right, bottom)
    return Block(Box(0, 0, 0, 0), places, Box(first.x, first.y, last.right - first.x, last.bottom - first.y))


def in_memory(patches: SlidePatches, readers: Readers = ONE_READER) -> LabelledPatches:
    """All of the patches, read once and kept; each reader reads its share, and all have them.

    Those that cannot be decoded are left out where they are to be skipped. Raises as `batches_of`.
    """
    size = patches.slides[0].grid.patch_px
    pixels = shared_zeros((len(patches), size, size, 3), cache_folder(), readers)
    whole = np.zeros(len(patches), np.bool_)
    mine = pieces_of(patches)[readers.rank :: readers.count]
    hidden = True if readers.rank else None
    total = sum(len(piece.rows) for piece in mine)
    with tqdm(total=total, desc="reading", unit=" patches", leave=False, disable=hidden) as bar:
        for rows, rgb in read_pieces(patches, mine, _threads(readers)):
            pixels[rows], whole[rows] = rgb, True
            bar.update(len(rows))
    whole = np.any(readers.all_say(whole), axis=0)
    kept = LabelledPatches(
        pixels, patches.labels, patches.patients, patches.by, patches.names(), patches.scale
    )
    return kept if whole.all() else kept.taken(np.flatnonzero(whole))


def limited(side: Side, count: int | None, seed: int) -> Side:
    """At most `count` of the patches, drawn by the seed, their order and the classes' shares kept."""
    if count is None or count >= len(side):
        return side
    rng = np.random.default_rng(seed)
    picked = []
    idc = min(max(round(count * float(side.labels.mean())), 1), count - 1)
    for label, share in ((0, count - idc), (1, idc)):
        among = np.flatnonzero(side.labels == label)
        picked.append(rng.choice(among, min(share, len(among)), replace=False))
    some = np.sort(np.concatenate(picked))
    return side.taken(some)


def load_tiled_side(
    folder: Path,
    patch_px: int,
    side: str,
    split: SplitOptions,
    reading: SlideReadOptions,
    mpp: float,
    seed: int,
) -> LabelledPatches:
    """The patches of one side, as `load_side` gives them, of slides that `tile-slides` cut into `folder`.

    More than `val_patches` of `reading` are not read: so many are drawn, by `seed`, as a training draws those that it
    evaluates on. Raises as `split_slides` and `in_memory`; ScaleError where they are not of `mpp` um per pixel.
    """
    if side == "all":
        patches = all_slides(folder, split, reading)
    else:
        patches = split_slides(folder, split, reading)[("train", "val").index(side)]
    check_scale(patches.scale, folder, patch_px, mpp, squeeze=False, whose="model")
    if len(patches) > reading.val_patches:
        log.warning(
            "%s: found %s, of which %d are drawn and read (reading.val_patches of the model's card)",
            *(
                folder,
                counted(len(patches), f"{'labelled' if side == 'all' else side} patch"),
                reading.val_patches,
            ),
        )
    return in_memory(limited(patches, reading.val_patches, seed))


def sample_of(patches: SlidePatches, seed: int) -> SlidePatches:
    """About `sample_patches` of them, as many of each slide, from several places of each."""
    rng = np.random.default_rng([seed, 3])
    a_slide = -(-patches.reading.sample_patches // len(patches.slides))
    a_piece = -(-a_slide // PIECES_A_SAMPLE)
    pieces, chosen = pieces_of(patches), []
    left = [a_slide] * len(patches.slides)
    for index in rng.permutation(len(pieces)).tolist():
        piece = pieces[index]
        count = min(len(piece.rows), a_piece, left[piece.slide])
        left[piece.slide] -= count
        chosen.append(rng.choice(piece.rows, count, replace=False))
    return patches.taken(np.sort(np.concatenate(chosen)))


def with_normalised_stain(
    patches: SlidePatches,
    sample: LabelledPatches,
    stain: Stain,
    strength: float,
    method: StainMethod = "gain",
) -> SlidePatches:
    """The patches, of which each slide's stain is brought towards `stain` once they are read, by that of `sample`."""
    if not strength:
        return patches
    of_patient: dict[str, Normaliser | None] = {}
    for patient in np.unique(sample.patients).tolist():
        own = sample.pixels[sample.patients == patient]
        try:
            of_patient[patient] = colours_of(own, stain, strength, method)
        except DataError as error:
            log.warning("%s: stain left as it is: %s", patient, error)
            of_patient[patient] = None
    return replace(patches, tables=tuple(of_patient[slide.patient] for slide in patches.slides))


def _threads(readers: Readers) -> int:
    return max(1, min(MOST_THREADS, (os.cpu_count() or 1) // readers.count))
