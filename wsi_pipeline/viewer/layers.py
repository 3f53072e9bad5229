"""The map's layers as tiles on the slide's own deep-zoom geometry: what a pixel's centre lies on is what it shows."""

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.results.figures.palette import COLOURS, LARGEST_DEVIATION, UNCERTAINTY_COLOURS
from wsi_pipeline.results.multiscales import STATUS_COLOURS
from wsi_pipeline.results.opened import Result
from wsi_pipeline.results.store import MAP_TITLES
from wsi_pipeline.tiling.cell_status import Status

Kind = Literal["probability", "of_class", "deviation", "classes"]
"""Of a layer: the probability of IDC, that of another class, the deviation between models, or a class a cell."""

# The arrays of a store that the page can show, with what each is; `layers_of` adds those of other classes.
LAYERS: dict[str, tuple[str, str, Kind]] = {
    "heatmap": ("heatmap", MAP_TITLES["heatmap"], "probability"),
    "patch_heatmap": ("patch_heatmap", MAP_TITLES["patch_heatmap"], "probability"),
    "uncertainty": ("uncertainty", MAP_TITLES["uncertainty"], "deviation"),
    "status": ("labels/status", "what became of each cell", "classes"),
    "tissue": ("labels/tissue", "tissue and what was rejected of it", "classes"),
}
# What names of layers of other classes begin with: a class may be called as one of the above.
OF_CLASS = "class:"
# Colour maps to choose from. All grow evenly in lightness and can be read with any colour vision. Those of matplotlib
# that hold colours of tissue (magma, plasma, inferno) are left out.
COLORMAPS = (COLOURS.name, "viridis", "cividis")
# The colours of deviations, which are never to be taken for probabilities.
DEVIATION = "deviation"
TISSUE_COLOURS = {1: (0, 114, 178, 110), 2: (230, 159, 0, 170)}
TISSUE_NAMES = {1: "tissue", 2: "rejected tissue"}
# Over a slide, what was scored is left clear, so that its map is seen; glass is dark, so that the two are told apart.
PAGE_STATUS_COLOURS = {int(status): rgba for status, rgba in STATUS_COLOURS.items()} | {
    int(Status.BACKGROUND): (0, 0, 0, 110),
    int(Status.SCORED): (0, 0, 0, 0),
}


# Tiles take little time before they take little room.
PNG_LEVEL = 1
# How much a probability of 0 covers of what one of 1 does, where low ones are to leave the tissue to be seen.
FAINTEST = 0.2
# In tiles, of what is nowhere: a number that no class has.
_NOWHERE = 255


@dataclass(eq=False)
class Layer:
    """One array of a result's store with the level-0 plane of its cells. From any thread."""

    name: str
    title: str
    kind: Kind
    plane: Plane
    shapes: Sequence[tuple[int, ...]]
    """Rows and columns of its levels, the finest first."""

    read: Callable[[int], NDArray[Any]]
    """One of them."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _levels: dict[int, NDArray[Any]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the finest level."""
        return self.shapes[0][0], self.shapes[0][1]

    def level(self, index: int = 0) -> NDArray[Any]:
        """A level, read when it is first asked for; 0 is the finest. Raises ResultError."""
        with self._lock:
            if index not in self._levels:
                self._levels[index] = self.read(index)
            return self._levels[index]

    def at(self, x0: float, y0: float) -> Any:
        """The value of the cell that the level-0 point lies in; None outside."""
        x, y = self.plane.point_from_level0(x0, y0)
        rows, columns = self.shape
        if not (0 <= x < columns and 0 <= y < rows):
            return None
        return self.level()[int(y), int(x)]

    def cells_under(self, box: Box, plane: Plane) -> "CellsUnder":
        """The cells at the centres of the box's pixels.

        Of pixels larger than a cell, those of the coarser level whose cells are at most as large.
        """
        step = min(plane.downsample_x / self.plane.downsample_x, plane.downsample_y / self.plane.downsample_y)
        index = int(np.clip(np.floor(np.log2(max(step, 1.0))), 0, len(self.shapes) - 1))
        values, cells = self.level(index), self.plane.coarser(2**index, 2**index)
        x0 = plane.origin_x0 + (box.x + 0.5 + np.arange(box.width)) * plane.downsample_x
        y0 = plane.origin_y0 + (box.y + 0.5 + np.arange(box.height)) * plane.downsample_y
        columns = np.floor((x0 - cells.origin_x0) / cells.downsample_x).astype(np.int64)
        rows = np.floor((y0 - cells.origin_y0) / cells.downsample_y).astype(np.int64)
        top, left = (
            int(np.clip(found[0], 0, side)) for found, side in zip((rows, columns), values.shape, strict=True)
        )
        bottom, right = (
            int(np.clip(found[-1] + 1, 0, side))
            for found, side in zip((rows, columns), values.shape, strict=True)
        )
        return CellsUnder(values[top:bottom, left:right], rows - top, columns - left)


@dataclass(frozen=True, eq=False)
class CellsUnder:
    """Cells, and which of them each row and column of pixels shows: some may lie outside."""

    values: NDArray[Any]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def spread(self, numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A number for each pixel from one for each cell; _NOWHERE where there is none."""
        framed = np.pad(numbers, 1, constant_values=_NOWHERE)
        rows, columns = (
            np.clip(found + 1, 0, side + 1)
            for found, side in zip((self.rows, self.columns), numbers.shape, strict=True)
        )
        return np.ascontiguousarray(framed[rows][:, columns])


def layers_of(result: Result) -> dict[str, tuple[str, str, Kind]]:
    """Array, title and kind by the name of each layer that the result may have, in the order of the page's list."""
    of_classes: dict[str, tuple[str, str, Kind]] = {
        f"{OF_CLASS}{array.rpartition('/')[2]}": (array, f"probability of {name}", "of_class")
        for name, array in result.class_arrays.items()
    }
    return LAYERS | of_classes


def load_layer(
    result: Result, name: str, described: tuple[str, str, Kind], mpp0: tuple[float, float]
) -> Layer | None:
    """A layer of `layers_of`; None where the result has no such array. Raises ResultError where it cannot be read."""
    array, title, kind = described
    shapes = result.level_shapes(array)
    if not shapes:
        return None
    # Status has the map's own cells; what its metadata names is an image for viewers.
    (cell_x, cell_y), (x_um, y_um) = result.cells_um("heatmap" if name == "status" else array)
    plane = Plane(
        cell_x / mpp0[0], cell_y / mpp0[1], (x_um - cell_x / 2) / mpp0[0], (y_um - cell_y / 2) / mpp0[1]
    )
    return Layer(name, title, kind, plane, shapes, partial(result.level, array))


def layer_tile(
    layer: Layer,
    box: Box,
    plane: Plane,
    colormap: str,
    low: float,
    high: float,
    threshold: float | None,
    faint: bool = False,
) -> bytes:
    """A tile of the layer as a PNG of its colours, transparent where there is no value, or one below the threshold.

    faint: low probabilities cover little of what lies below, as on overlay.png.
    """
    cells = layer.cells_under(box, plane)
    values = cells.values
    if layer.kind == "classes":
        table, numbers = _class_table(layer.name), values.astype(np.uint8)
    else:
        table = _colour_table(DEVIATION if layer.kind == "deviation" else colormap)
        if faint and layer.kind != "deviation":
            table = table.copy()
            table[:_NOWHERE, 3] = np.linspace(255 * FAINTEST, 255, _NOWHERE).round()
        top = LARGEST_DEVIATION if layer.kind == "deviation" else 1.0
        shares = (values / top - low) / max(high - low, 1e-6)
        numbers = np.clip(np.nan_to_num(shares) * _NOWHERE, 0, _NOWHERE - 1).astype(np.uint8)
        hidden = ~np.isfinite(values)
        if threshold is not None:
            hidden |= np.nan_to_num(values, nan=-1.0) < threshold
        numbers[hidden] = _NOWHERE
    return _indexed_png(cells.spread(numbers), table)


def _indexed_png(numbers: NDArray[np.uint8], table: NDArray[np.uint8]) -> bytes:
    """A picture of the table's colours, RGBA [256, 4]: a quarter of the bytes, and of the time, of one in RGBA."""
    image, content = Image.fromarray(numbers).convert("P"), io.BytesIO()
    image.putpalette(np.ascontiguousarray(table[:, :3]).tobytes())
    image.save(content, format="PNG", compress_level=PNG_LEVEL, transparency=table[:, 3].tobytes())
    return content.getvalue()


def colour_stops(name: str, steps: int = 17) -> list[str]:
    """Colours of a colour map, or of "deviation", from its lowest value to its highest, as a page writes them."""
    table = _colour_table(name)[np.linspace(0, _NOWHERE - 1, steps).round().astype(int)]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in table.tolist()]


@cache
def _colour_table(name: str) -> NDArray[np.uint8]:
    own = {DEVIATION: UNCERTAINTY_COLOURS, COLOURS.name: COLOURS}
    colours = own.get(name) or matplotlib.colormaps[name]
    table = np.zeros((256, 4), np.uint8)
    table[:_NOWHERE] = colours(np.linspace(0, 1, _NOWHERE), bytes=True)
    return table


@cache
def _class_table(name: str) -> NDArray[np.uint8]:
    table = np.zeros((256, 4), np.uint8)
    colours = TISSUE_COLOURS if name == "tissue" else PAGE_STATUS_COLOURS
    for value, rgba in colours.items():
        table[value] = rgba
    return table


def legend(name: str) -> list[dict[str, Any]]:
    """Value, name and colour of each class of a layer of classes."""
    if name == "tissue":
        return [{"value": v, "name": TISSUE_NAMES[v], "rgba": list(c)} for v, c in TISSUE_COLOURS.items()]
    return [
        {"value": v, "name": Status(v).name.lower(), "rgba": list(c)} for v, c in PAGE_STATUS_COLOURS.items()
    ]
