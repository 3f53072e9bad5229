"""Levels read by whole storage tiles, each decoded once, and what cannot be decoded kept apart from the rest.

Blocks of patches rarely end where storage tiles end. A tile that blocks share is kept, once decoded, until each of
them has had it; of a slide read block by block in row order that is a row of tiles. Where a
block never comes, having no patches, its tiles go as the least recently used.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import RegionReadError
from wsi_pipeline.base.geometry import Box, Size
from wsi_pipeline.slides.readers.jpeg_tiles import DecodeTiles, TileTargets
from wsi_pipeline.slides.readers.tile_canvas import Tile, TileCanvas

# A row of tiles of 64,000 px of tissue; of a wider one some are decoded twice.
BORDER_CACHE_BYTES = 48 * 2**20

TileKey = tuple[int, int, int]  # level, column, row of the storage tile
TileDecoder = Callable[[int, int], NDArray[np.uint8]]
"""Column and row of a storage tile in, its pixels out: uint8 [row, column, RGB], cut to the level.

Raises RegionReadError when it cannot be decoded.
"""


class LevelReader(Protocol):
    """How one file's pixels are read; `OpenSlideReader` for one."""

    @property
    def level_sizes(self) -> Sequence[Size]:
        """Each level's size in its own pixels."""

    @property
    def tile_sizes(self) -> Sequence[Size]:
        """Each level's storage tiles' size in its pixels."""

    def tile_decoder(self, level: int) -> TileDecoder | None:
        """How the level's storage tiles are decoded one by one; None where `read` is the faster way."""

    def tiles_decoder(self, level: int) -> DecodeTiles | None:
        """How many of them are decoded in one call; None where one by one. Asked after `tile_decoder`."""

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Pixels of the box, uint8 [row, column, RGB]; RegionReadError when any cannot be decoded."""


class TiledLevels:
    """The levels of one file, read by storage tile through `reader`; safe to read from several threads."""

    def __init__(self, reader: LevelReader, cache_bytes: int = BORDER_CACHE_BYTES):
        self._reader = reader
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[TileKey, Future[Tile]] = OrderedDict()
        self._kept_bytes = 0
        # How many blocks have yet to come for each tile that is kept.
        self._wanted: dict[TileKey, int] = {}

    def read(
        self,
        level: int,
        box: Box,
        out: NDArray[np.uint8] | None = None,
        threads: int = 1,
        overlap_px: int = 0,
    ) -> tuple[NDArray[np.uint8], tuple[Box, ...]]:
        """Pixels of `box` in level pixels as uint8 [row, column, RGB], and the tiles that cannot be decoded.

        In `out`, where it is given: contiguous, of the box's size. By so many threads, where the file's tiles can be
        decoded many in a call. Boxes reach so many level pixels over those beside them; tiles there are kept for these.

        Those come as boxes of level pixels, cut to `box`; their pixels are white in the array and mean
        nothing. Outside of the level all is white.
        """
        size, tile = self._reader.level_sizes[level], self._reader.tile_sizes[level]
        canvas = TileCanvas(box, size, tile, out)
        if canvas.inside.is_empty:
            return canvas.rgb, ()
        decoder = self._reader.tile_decoder(level)
        mine, others = self._claim(level, canvas.inside, overlap_px)
        try:
            if decoder:
                for key in self._decode_many(level, mine, canvas, threads):
                    self._hand_out(key, mine, _decoded(decoder, key), canvas)
            else:
                for run in _runs(mine):
                    self._decode_run(run, mine, canvas)
        except BaseException as error:
            with self._lock:
                for key, future in mine.items():
                    if future and not future.done():
                        self._forget(key)
                        future.set_exception(error)
            raise
        canvas.put([key[1:] for key in others], [kept.result() for kept in others.values()])
        return canvas.rgb, tuple(canvas.unreadable)

    def _claim(
        self, level: int, inside: Box, overlap_px: int
    ) -> tuple[dict[TileKey, Future[Tile] | None], dict[TileKey, Future[Tile]]]:
        """The box's tiles to decode here, with a future where other blocks want them too, and those kept."""
        size, tile = self._reader.level_sizes[level], self._reader.tile_sizes[level]
        columns, whole_columns = _tiles_along(inside.x, inside.right, tile.width, size.width, overlap_px)
        rows, whole_rows = _tiles_along(inside.y, inside.bottom, tile.height, size.height, overlap_px)
        # So many blocks like this one can touch a tile that lies over its edge: two, if they are larger than tiles.
        along_x, along_y = -(-tile.width // inside.width) + 1, -(-tile.height // inside.height) + 1
        mine: dict[TileKey, Future[Tile] | None] = {}
        others: dict[TileKey, Future[Tile]] = {}
        with self._lock:
            for row in rows:
                for column in columns:
                    key = (level, column, row)
                    kept = self._kept.get(key)
                    if kept is not None:
                        others[key] = kept
                        self._had(key)
                        continue
                    sharing = 1 if column in whole_columns else along_x
                    sharing *= 1 if row in whole_rows else along_y
                    mine[key] = self._keep(key, sharing - 1) if sharing > 1 else None
        return mine, others

    def _had(self, key: TileKey) -> None:
        """One more block has the tile."""
        self._wanted[key] -= 1
        if self._wanted[key]:
            self._kept.move_to_end(key)
        else:
            self._forget(key)

    def _keep(self, key: TileKey, wanted: int) -> Future[Tile]:
        """A place for the tile, for so many other blocks."""
        future: Future[Tile] = Future()
        self._kept[key], self._wanted[key] = future, wanted
        self._kept_bytes += self._tile_bytes(key)
        while self._kept_bytes > self._cache_bytes and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))
        return future

    def _forget(self, key: TileKey) -> None:
        if self._kept.pop(key, None) is not None:
            del self._wanted[key]
            self._kept_bytes -= self._tile_bytes(key)

    def _hand_out(
        self, key: TileKey, mine: dict[TileKey, Future[Tile] | None], pixels: Tile, canvas: TileCanvas
    ) -> None:
        """Give a tile to those who wait for it, and to this block's canvas."""
        if future := mine[key]:
            # What is kept must not hold more in memory than itself.
            future.set_result(None if pixels is None else _alone(pixels))
        canvas.put([key[1:]], [pixels])

    def _decode_many(
        self, level: int, mine: dict[TileKey, Future[Tile] | None], canvas: TileCanvas, threads: int
    ) -> list[TileKey]:
        """Decode what can be in one call; gives what is left, to be decoded one by one.

        In two calls, in fact: first the tiles that other blocks want too, which may be waiting for them.
        """
        decode = self._reader.tiles_decoder(level)
        if decode is None:
            return list(mine)
        shared = [key for key, future in mine.items() if future]
        own = [key for key, future in mine.items() if not future]
        memory = [np.empty(self._tile_shape(key), np.uint8) for key in shared]
        given = decode(TileTargets.whole([key[1:] for key in shared], memory), threads) if shared else ()
        done = [i for i, decoded in enumerate(given) if decoded]
        for i in done:
            future = mine[shared[i]]
            assert future
            future.set_result(memory[i])
        canvas.put([shared[i][1:] for i in done], [memory[i] for i in done])
        left = [key for key, decoded in zip(shared, given, strict=True) if not decoded]
        if own:
            decoded_own = decode(canvas.targets([key[1:] for key in own]), threads)
            left += [key for key, decoded in zip(own, decoded_own, strict=True) if not decoded]
        return left

    def _decode_run(
        self, run: list[TileKey], mine: dict[TileKey, Future[Tile] | None], canvas: TileCanvas
    ) -> None:
        """Decode a rectangle of tiles in one read; where that fails, each by itself."""
        first, last = self._tile_box(run[0]), self._tile_box(run[-1])
        box = Box(first.x, first.y, last.right - first.x, last.bottom - first.y)
        try:
            pixels = self._reader.read(run[0][0], box)
        except RegionReadError:
            if len(run) == 1:
                self._hand_out(run[0], mine, None, canvas)
            else:
                for key in run:
                    self._decode_run([key], mine, canvas)
            return
        for key in run:
            tile = self._tile_box(key)
            part = pixels[tile.y - box.y : tile.bottom - box.y, tile.x - box.x : tile.right - box.x]
            self._hand_out(key, mine, part, canvas)

    def _tile_box(self, key: TileKey) -> Box:
        tile, (height, width, _) = self._reader.tile_sizes[key[0]], self._tile_shape(key)
        return Box(key[1] * tile.width, key[2] * tile.height, width, height)

    def _tile_shape(self, key: TileKey) -> tuple[int, int, int]:
        """(height, width, 3) of a tile, cut to the level."""
        level, column, row = key
        size, tile = self._reader.level_sizes[level], self._reader.tile_sizes[level]
        height = min(tile.height, size.height - row * tile.height)
        return height, min(tile.width, size.width - column * tile.width), 3

    def _tile_bytes(self, key: TileKey) -> int:
        return math.prod(self._tile_shape(key))


def _tiles_along(start: int, end: int, tile_px: int, level_px: int, overlap_px: int) -> tuple[range, range]:
    """The tiles along an axis that [start, end) touches, and those of them that lie wholly inside, where no other is.

    Others reach so many pixels over it at either end.
    """
    touched = range(start // tile_px, -(-end // tile_px))
    past_whole = touched.stop if end == level_px else (end - overlap_px) // tile_px
    first_whole = 0 if start == 0 else -(-(start + overlap_px) // tile_px)
    return touched, range(first_whole, past_whole)


def _decoded(decoder: TileDecoder, key: TileKey) -> Tile:
    try:
        return decoder(key[1], key[2])
    except RegionReadError:
        return None


def _alone(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels in memory of their own."""
    return pixels if pixels.base is None else pixels.copy()


def _runs(keys: Iterable[TileKey]) -> list[list[TileKey]]:
    """The tiles as rectangles, row runs merged downwards where equal; in each, tiles in row order."""
    by_row: dict[int, list[TileKey]] = {}
    for key in sorted(keys, key=lambda k: (k[2], k[1])):
        by_row.setdefault(key[2], []).append(key)
    rectangles: list[list[TileKey]] = []
    open_runs: dict[
        tuple[int, int, int], list[TileKey]
    ] = {}  # first column, last column, last row -> rectangle
    for row, row_keys in by_row.items():
        start = 0
        for i in range(1, len(row_keys) + 1):
            if i < len(row_keys) and row_keys[i][1] == row_keys[i - 1][1] + 1:
                continue
            run = row_keys[start:i]
            start = i
            rectangle = open_runs.pop((run[0][1], run[-1][1], row - 1), None)
            if rectangle is None:
                rectangle = []
                rectangles.append(rectangle)
            rectangle.extend(run)
            open_runs[run[0][1], run[-1][1], row] = rectangle
    return rectangles
