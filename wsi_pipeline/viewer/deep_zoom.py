"""Deep-zoom geometry: which level-0 pixels a tile shows. Slide and map layers share it, so that they fall in place.

A pyramid of square tiles, each level half the next, the last at full size, the first of one pixel (Microsoft's Deep
Zoom, which OpenSeadragon reads; openslide-python's DeepZoomGenerator lays the same).
"""

import math
from dataclasses import dataclass

from wsi_pipeline.base.geometry import Box, Plane, Size

TILE_PX = 512
# Of one tile that holds the whole slide: the page asks for none below.
COARSEST_LEVEL = TILE_PX.bit_length() - 1


@dataclass(frozen=True)
class DeepZoom:
    """The pyramid of a slide of this level-0 size, without overlap between tiles."""

    size0: Size
    tile_px: int = TILE_PX

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return max(self.size0.width, self.size0.height, 1).bit_length() + (
            0 if _is_power(max(self.size0.width, self.size0.height)) else 1
        )

    def plane(self, level: int) -> Plane:
        """The plane of a level's pixels. They are a power of two level-0 pixels long."""
        step = float(2 ** (self.levels - 1 - level))
        return Plane(step, step)

    def size(self, level: int) -> Size:
        """Pixels of a level, the last column and row reaching beyond the slide where its size is not a multiple."""
        step = 2 ** (self.levels - 1 - level)
        return Size(math.ceil(self.size0.width / step), math.ceil(self.size0.height / step))

    def box(self, level: int, column: int, row: int) -> Box | None:
        """A tile's pixels on its level's plane; None where there is no such tile."""
        if not 0 <= level < self.levels or column < 0 or row < 0:
            return None
        size, side = self.size(level), self.tile_px
        box = Box(column * side, row * side, side, side).intersect(Box(0, 0, size.width, size.height))
        return None if box.is_empty else box


def _is_power(side: int) -> bool:
    return side > 0 and side & (side - 1) == 0
