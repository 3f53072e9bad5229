"""Which of a slide's storage tiles each patch is made of."""

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.slides.slide import PlaneReader
from wsi_pipeline.tiling.grid import Grid


def storage_tiles(
    grid: Grid, reader: PlaneReader, columns: NDArray[np.integer], rows: NDArray[np.integer]
) -> NDArray[np.int32]:
    """int32 [n, 4]: the first and last storage tile, along x and then along y, of the patches at these positions.

    As `reader` reads them, of the level that it reads; parts outside of the level count as its edge.
    """
    level = reader.slide.levels[reader.level]
    tile = reader.slide.tile_sizes[reader.level]
    along_x = _tiles_along(
        (columns * grid.stride_px, grid.patch_px),
        (grid.plane.downsample_x, grid.plane.origin_x0),
        (level.plane.downsample_x, level.plane.origin_x0),
        (tile.width, level.size.width),
        min(reader.step) < 1,
    )
    along_y = _tiles_along(
        (rows * grid.stride_px, grid.patch_px),
        (grid.plane.downsample_y, grid.plane.origin_y0),
        (level.plane.downsample_y, level.plane.origin_y0),
        (tile.height, level.size.height),
        min(reader.step) < 1,
    )
    return np.stack([*along_x, *along_y], axis=1).astype(np.int32)


def _tiles_along(
    patches: tuple[NDArray[np.integer], int],
    grid: tuple[float, float],
    level: tuple[float, float],
    sizes: tuple[int, int],
    enlarged: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last tile along one axis of patches (start, length), by planes (downsample, origin) and their sizes."""
    (start, length), (tile_px, level_px) = patches, sizes

    def on_level(pixels: NDArray[np.integer]) -> NDArray[np.float64]:
        return np.asarray((grid[1] + pixels * grid[0] - level[1]) / level[0], float)

    first = np.floor(on_level(start) + 1e-6) - enlarged  # linear weights reach one pixel further
    past = np.ceil(on_level(start + length) - 1e-6) + enlarged
    low, high = (np.clip(edge, 0, level_px - 1).astype(np.int64) for edge in (first, past - 1))
    return low // tile_px, high // tile_px
