"""Which patches of a slide, in which blocks: the plan that reading, classifying and stitching follow.

The planes here: the grid's plane, whose pixels are the wanted scale's; its cells, squares of `cell_px` grid
pixels, of which one is a value of the map. With patches side by side a cell is a patch. Where patches
overlap, or leave gaps, cells are the largest squares that every patch is made of: `gcd(patch_px, stride_px)`.

A block writes a rectangle of cells, one chunk of the store, and needs every patch that reaches into it, so
that any block can be done by itself: with overlap, neighbouring blocks share a rim of patches.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import ConfigError, ScaleError
from wsi_pipeline.base.geometry import Box, Plane, Size
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.slides.resample import axis_weights
from wsi_pipeline.slides.slide import PlaneReader, Slide


@options
class GridOptions:
    """Where patches lie and at which scale."""

    patch_px: Annotated[int, Field(gt=0)] | None = None
    """Side of a patch in pixels at `mpp`; none: the model card's."""

    stride_px: Annotated[int, Field(gt=0)] | None = None
    """Distance between patch starts; none: patch_px, side by side. Smaller: they overlap and are averaged."""

    cell_um: Annotated[float, Field(gt=0)] | None = None
    """Of `infer-slide`: side of a map's cell in um, a whole part of a patch's. Patches overlap for it, as
    many times more as cells are in a patch. None: as stride_px says."""

    mpp: Annotated[float, Field(gt=0)] | None = None
    """um per pixel of a patch, 0.25 is 40x; none: the model card's."""

    min_tissue: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a patch that must be tissue; 0.1 keeps the rims, where tumour often ends."""

    max_rejected: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a patch that artefacts may cover before it is not scored."""

    read_level: Literal["coarsest", "finer"] = "finer"
    """Which level of the pyramid is read where one has the wanted scale. coarsest: that one, the fastest way. finer:
    the next one that is at least twice as fine, averaged, as where no level has that scale: JPEG's marks are averaged
    away, and slides of 0.250 and 0.252 um per pixel give one map."""

    max_upsampling: Annotated[float, Field(ge=1)] = 2.1
    """How far a slide may be enlarged to reach `mpp`; 2.1 lets a 20x slide be cut at 40x, with a warning."""

    block_px: Annotated[int, Field(ge=256)] = 2048
    """Side of what is decoded at once, in pixels of the level read: 13 MB, tens of storage tiles. Its patches are one
    chunk of the map; those being written, four at most, are done twice after a kill."""


# A map of more cells than this a patch side would be larger than the slide's own low levels.
MAX_CELLS_PER_PATCH = 50


@dataclass(frozen=True)
class Grid:
    """Patch positions of a slide: `columns` by `rows`, each `stride_px` from the last, on `plane`."""

    plane: Plane
    patch_px: int
    stride_px: int
    columns: int
    rows: int
    # Whether a level of the plane's own scale is passed over for a finer one (GridOptions.read_level).
    finer: bool = False

    def reader(self, slide: Slide) -> PlaneReader:
        """What reads boxes of the grid's plane."""
        return slide.reader(self.plane, self.finer)

    @property
    def cell_px(self) -> int:
        """Side of a map cell in grid pixels."""
        return math.gcd(self.patch_px, self.stride_px)

    @property
    def patch_cells(self) -> int:
        """Cells along a patch."""
        return self.patch_px // self.cell_px

    @property
    def stride_cells(self) -> int:
        """Cells from one patch's start to the next's."""
        return self.stride_px // self.cell_px

    @property
    def map_size(self) -> Size:
        """Cells of the map that all patches make."""
        return Size(
            (self.columns - 1) * self.stride_cells + self.patch_cells,
            (self.rows - 1) * self.stride_cells + self.patch_cells,
        )

    @property
    def map_plane(self) -> Plane:
        """The plane of the cells."""
        return self.plane.coarser(self.cell_px, self.cell_px)

    def patch_box(self, column: int, row: int) -> Box:
        """The patch's pixels on the grid's plane; may reach over the slide's edge."""
        return Box(column * self.stride_px, row * self.stride_px, self.patch_px, self.patch_px)


@dataclass(frozen=True, eq=False)
class Block:
    """What is read and written at once: patches, and the cells that they decide."""

    cells: Box
    """The cells it writes: a chunk of the store."""

    patches: NDArray[np.int32]
    """[n, 2] column and row of each patch to classify that reaches into `cells`, in row order."""

    read_box: Box
    """The pixels of the grid's plane that hold them all."""


@dataclass(frozen=True, eq=False)
class ScoredBlock:
    """A block whose patches are classified."""

    block: Block
    scores: NDArray[np.float32]
    """[n] of `block.patches`, probability of IDC, NaN where a patch could not be read."""

    spread: NDArray[np.float32] | None = None
    """[n], of several models: the standard deviation between their probabilities, NaN as `scores`."""

    others: NDArray[np.float32] | None = None
    """[n, other classes], where they are kept: the probability of each class beside IDC, NaN as `scores`."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The patches of one slide: positions, what covers them, what is to be scored."""

    grid: Grid
    tissue: NDArray[np.float32]
    """[rows, columns] share of each patch that is tissue, 0 to 1."""

    kept: NDArray[np.bool_]
    """[rows, columns] enough tissue."""

    rejected: NDArray[np.bool_]
    """[rows, columns] kept, but too much of it is artefact: not to be scored."""

    block_strides: int
    """Patch positions along a block."""

    @property
    def scored(self) -> NDArray[np.bool_]:
        """[rows, columns] to be classified."""
        return self.kept & ~self.rejected

    @property
    def chunk_cells(self) -> int:
        """Cells along a block, and along a chunk of the store."""
        return self.block_strides * self.grid.stride_cells

    def blocks(self) -> Iterator[Block]:
        """Every block with anything to classify, in row order."""
        size = self.grid.map_size
        scored = self.scored
        for y in range(0, size.height, self.chunk_cells):
            for x in range(0, size.width, self.chunk_cells):
                cells = Box(x, y, self.chunk_cells, self.chunk_cells).intersect(
                    Box(0, 0, size.width, size.height)
                )
                columns = _reaching(cells.x, cells.right, self.grid, self.grid.columns)
                rows = _reaching(cells.y, cells.bottom, self.grid, self.grid.rows)
                found = np.argwhere(scored[rows.start : rows.stop, columns.start : columns.stop])
                if len(found):
                    patches = (found[:, ::-1] + (columns.start, rows.start)).astype(np.int32)
                    yield Block(cells, patches, self._read_box(patches))

    def _read_box(self, patches: NDArray[np.int32]) -> Box:
        first, last = patches.min(axis=0), patches.max(axis=0)
        stride, patch = self.grid.stride_px, self.grid.patch_px
        width, height = (int(v) * stride + patch for v in last - first)
        return Box(int(first[0]) * stride, int(first[1]) * stride, width, height)


def plan_grid(slide: Slide, options: GridOptions) -> Grid:
    """The patch positions of a slide, so many that every pixel of the scanned area is covered.

    Raises ConfigError when patch and stride share no cell of sensible size, ScaleError when the slide would
    have to be enlarged more than `max_upsampling` times.
    """
    if options.patch_px is None or options.mpp is None:
        raise ConfigError(
            "the grid lacks patch_px or mpp, and there is no model card to say them; set grid.patch_px and grid.mpp"
        )
    patch, mpp = options.patch_px, options.mpp
    stride = options.stride_px or patch
    cells = patch // math.gcd(patch, stride)
    if cells > MAX_CELLS_PER_PATCH:
        raise ConfigError(
            f"stride_px {stride} and patch_px {patch} share only a factor of {math.gcd(patch, stride)}, so "
            f"that the map would have {cells} cells along a patch; expected at most {MAX_CELLS_PER_PATCH}: "
            f"choose a stride that divides patch_px"
        )
    plane = slide.plane_at(mpp)
    enlarged = max(slide.mpp) / mpp
    if enlarged > options.max_upsampling:
        raise ScaleError(
            f"{slide.path}: its finest level has {slide.mpp[0]:g} x {slide.mpp[1]:g} um per pixel; patches at "
            f"{mpp:g} would be enlarged {enlarged:.1f} times, at most {options.max_upsampling:g} is allowed "
            f"(max_upsampling); choose a grid of coarser mpp"
        )
    size = slide.size_on(plane)
    columns, rows = (_positions(length, patch, stride) for length in (size.width, size.height))
    return Grid(plane, patch, stride, columns, rows, finer=options.read_level == "finer")


def plan_patches(
    slide: Slide,
    tissue: NDArray[np.bool_],
    rejected: NDArray[np.bool_],
    mask_plane: Plane,
    options: GridOptions,
) -> Plan:
    """The patches with enough tissue, in blocks aligned with the store's chunks.

    `tissue` and `rejected` are bool [row, column] on `mask_plane`. Raises as `plan_grid`.
    """
    grid = plan_grid(slide, options)
    share = patch_means(grid, tissue, mask_plane)
    kept = share >= options.min_tissue - 1e-6
    bad = kept & (patch_means(grid, rejected, mask_plane) > options.max_rejected)
    return Plan(grid, share, kept, bad, _block_strides(slide, grid, options))


def patch_means(grid: Grid, mask: NDArray[np.bool_], mask_plane: Plane) -> NDArray[np.float32]:
    """float32 [rows, columns], 0 to 1: the share of each patch that the mask covers, exact to the area.

    What lies outside of the mask counts as False.
    """
    padded = np.pad(mask, 1).astype(np.float32)
    first = mask_plane.from_level0(grid.plane.to_level0(grid.patch_box(0, 0)))
    step_x = grid.stride_px * grid.plane.downsample_x / mask_plane.downsample_x
    step_y = grid.stride_px * grid.plane.downsample_y / mask_plane.downsample_y
    across = axis_weights(
        grid.columns, first.left + 1, step_x, padded.shape[1], length=first.right - first.left
    )
    down = axis_weights(grid.rows, first.top + 1, step_y, padded.shape[0], length=first.bottom - first.top)
    means: NDArray[np.float32] = down @ padded @ across.T
    return np.clip(means, 0, 1)


def _positions(length_px: int, patch_px: int, stride_px: int) -> int:
    """Patches along a length: the first at 0, the last reaching its end or leaving no room for one more."""
    enough = max(0, math.ceil((length_px - patch_px) / stride_px)) + 1
    return min(enough, math.ceil(length_px / stride_px))


def _reaching(first_cell: int, past_cell: int, grid: Grid, count: int) -> range:
    """Patch positions along an axis whose cells meet [first_cell, past_cell)."""
    first = max(0, (first_cell - grid.patch_cells) // grid.stride_cells + 1)
    return range(first, min(count, math.ceil(past_cell / grid.stride_cells)))


def _block_strides(slide: Slide, grid: Grid, options: GridOptions) -> int:
    """Patch positions along a block of about `block_px`, ending where storage tiles end if any such fits."""
    index = grid.reader(slide).level
    level = slide.levels[index].plane
    stride_level_px = grid.stride_px * grid.plane.downsample_x / level.downsample_x
    # Where patches overlap, no more of them than would lie side by side: cut out, they fill as much memory.
    most = max(1, min(int(options.block_px / stride_level_px), options.block_px // grid.patch_px))
    tile = slide.tile_sizes[index].width
    for strides in range(most, most // 2, -1):
        tiles = strides * stride_level_px / tile
        if abs(tiles - round(tiles)) < 1e-6:
            return strides
    return most
