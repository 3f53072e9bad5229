"""The pixels of a box of a level, put together from storage tiles.

Where many tiles come at once their places are worked out together and copied in one call: sixteen threads that read do
nothing but wait for Python's lock if each tile costs some lines of Python.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Box, Size
from wsi_pipeline.slides.readers.jpeg_tiles import TileTargets, copy_rectangles, is_built

Tile = NDArray[np.uint8] | None  # None: cannot be decoded


class TileCanvas:
    """The pixels of a box, white until tiles are put there."""

    def __init__(self, box: Box, level: Size, tile: Size, out: NDArray[np.uint8] | None = None):
        self.inside = box.intersect(Box(0, 0, level.width, level.height))
        self.unreadable: list[Box] = []
        shape = (box.height, box.width, 3)
        self.rgb = np.empty(shape, np.uint8) if out is None else out
        if self.inside != box:
            self.rgb[:] = 255
        self._box, self._tile = box, tile

    def targets(self, tiles: Sequence[tuple[int, int]]) -> TileTargets:
        """Where what is inside of the box of tiles of these columns and rows goes."""
        xy, first, end = self._inside_of(tiles)
        places = np.zeros((len(tiles), 9), np.int64)
        places[:, :2] = tiles
        places[:, 3], places[:, 4] = self._starts(first), self._box.width * 3
        places[:, 5:7], places[:, 7:] = first - xy, end - first
        return TileTargets(places, [self.rgb])

    def put(self, tiles: Sequence[tuple[int, int]], pixels: Sequence[Tile]) -> None:
        """Put what is inside of the box of tiles of these columns and rows there."""
        if not len(tiles):
            return
        xy, first, end = self._inside_of(tiles)
        together: list[tuple[int, NDArray[np.uint8]]] = []
        for i, rgb in enumerate(pixels):
            (x, y), (left, top), (right, bottom) = xy[i].tolist(), first[i].tolist(), end[i].tolist()
            if rgb is not None and is_built() and rgb.flags.c_contiguous:
                together.append((i, rgb))
                continue
            box = self._box
            target = self.rgb[top - box.y : bottom - box.y, left - box.x : right - box.x]
            if rgb is None:
                self.unreadable.append(Box(left, top, right - left, bottom - top))
                target[:] = 255
            else:
                target[:] = rgb[top - y : bottom - y, left - x : right - x]
        if together:
            which = [i for i, _ in together]
            self._copy([rgb for _, rgb in together], first[which] - xy[which], first[which], end[which])

    def _copy(
        self,
        sources: list[NDArray[np.uint8]],
        wanted: NDArray[np.int64],
        first: NDArray[np.int64],
        end: NDArray[np.int64],
    ) -> None:
        """Copy the sources from these (x, y) of theirs on to where `first` lies here, as far as `end`."""
        pitches = np.array([rgb.shape[1] * 3 for rgb in sources], np.int64)
        rows = np.empty((len(sources), 7), np.int64)
        rows[:, 0], rows[:, 1] = np.arange(len(sources)), wanted[:, 1] * pitches + wanted[:, 0] * 3
        rows[:, 2], rows[:, 3], rows[:, 4] = pitches, self._starts(first), self._box.width * 3
        rows[:, 5], rows[:, 6] = (end[:, 0] - first[:, 0]) * 3, end[:, 1] - first[:, 1]
        copy_rectangles(rows, sources, self.rgb)

    def _starts(self, first: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bytes from the canvas's start to the pixels (x, y) of the level."""
        starts: NDArray[np.int64] = (
            (first[:, 1] - self._box.y) * self._box.width + first[:, 0] - self._box.x
        ) * 3
        return starts

    def _inside_of(
        self, tiles: Sequence[tuple[int, int]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each tile the first pixel (x, y), and of what is inside of the box the first pixel and the end."""
        inside, size = self.inside, np.array((self._tile.width, self._tile.height), np.int64)
        xy = np.array(tiles, np.int64).reshape(-1, 2) * size
        first = np.maximum(xy, (inside.x, inside.y))
        end = np.minimum(xy + size, (inside.right, inside.bottom))
        return xy, first, end
