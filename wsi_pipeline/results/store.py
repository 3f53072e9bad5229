"""The slide's zarr: created whole or not at all, filled a chunk at a time, readable by any OME-Zarr tool.

Layout (zarr format 3, OME-Zarr 0.5; DESIGN.md, section 5)::

    slide.zarr/          an image: the maps, so that a viewer pointed here shows them
      display/0,1,2..    float32 [channel, y, x], what that image is made of: the maps below, their cells repeated to
                         pixels of about 8 um (multiscales.py says why)
      heatmap/0,1,2..    float32 [y, x], probability of IDC, NaN = not scored
      patch_heatmap/0..  the same before the model's context step, each patch alone; only where it has a step
      uncertainty/0..    float32 [y, x], standard deviation between an ensemble's models; only of an ensemble
      classes/NAME/0..   float32 [y, x], probability of each class beside IDC; only of a network of more than two
      labels/status/0..  uint8: 0 background, 1 scored, 2 rejected, 3 unreadable, 4 planned; its image is
                         labels/status/display_0.., as large as display/0..
      labels/tissue/0..  uint8 at the tissue plane: 1 tissue, 2 tissue rejected by quality
      patches/           x0, y0 (int32, level-0 pixels), tissue (float32 share), label (int8 1, 0, -1; if annotated)

Of a store without maps (`tile-slides`), the image is the tissue.
"""

import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from wsi_pipeline.base.errors import OutputError, RecipeError
from wsi_pipeline.base.files import (
    OutPath,
    new_tree,
    read_trouble,
    sync_files,
    sync_tree,
    write_bytes,
    writing,
    zarr_store,
)
from wsi_pipeline.base.geometry import Box, Plane, Size
from wsi_pipeline.base.text import counted
from wsi_pipeline.results.multiscales import (
    display_factor,
    halve_mean,
    halve_nearest,
    image_label,
    level_count,
    multiscale,
    shown_as,
)
from wsi_pipeline.tiling.cell_status import Status, initial_status
from wsi_pipeline.tiling.grid import Block, Plan

STORE_NAME = "slide.zarr"
# The file that makes a folder a store; on an object store it is put last.
ROOT_FILE = "zarr.json"
ATTRIBUTES = "wsi_pipeline"
MAP_TITLE = "probability of IDC"
# The maps that a store may have, each with its title.
MAP_TITLES = {
    "heatmap": MAP_TITLE,
    "patch_heatmap": f"{MAP_TITLE}, each patch alone",
    "uncertainty": f"{MAP_TITLE}, standard deviation between models",
}
# Where the layers of other classes lie, each under its name as `class_layers` makes a path of it.
CLASSES = "classes"
# How viewers show each: colour, and highest value.
MAP_CHANNELS = {"heatmap": ("FFFF00", 1.0), "patch_heatmap": ("00FFFF", 1.0), "uncertainty": ("FF00FF", 0.5)}
CLASS_CHANNEL = ("FFFF00", 1.0)
# Chunks of arrays that are not written block by block: planes, and lists of patches.
FLAT_CHUNK = 1024
PATCH_CHUNK = 2**18
# Every chunk: the values, little-endian, in zstd's own default.
ZSTD_LEVEL = 0


@dataclass(frozen=True, eq=False)
class PatchTable:
    """The kept patches in row order: level-0 corners, tissue share 0 to 1, and label.

    The label is 1 IDC, 0 not, -1 not labelled; None where the slide has no outlines.
    """

    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    tissue: NDArray[np.float32]
    label: NDArray[np.int8] | None


@dataclass(frozen=True, eq=False)
class StoreLayout:
    """What a new store holds before anything is scored."""

    plan: Plan
    mpp0: tuple[float, float]
    """um per level-0 pixel, along x and y."""

    tissue: NDArray[np.uint8]
    """[row, column]: 0 none, 1 tissue, 2 tissue rejected by quality."""

    tissue_plane: Plane
    patches: PatchTable
    maps: tuple[str, ...] = ()
    """Names of MAP_TITLES: the maps to fill, beside which stands the status of their cells. None: patches and tissue
    alone. Where there is a patch_heatmap it is filled first; an uncertainty is filled with the same blocks."""
    classes: tuple[str, ...] = ()
    """Names of the classes beside IDC that have layers, filled with the same blocks."""


class SlideStore:
    """An open slide.zarr."""

    def __init__(self, path: OutPath, is_new: bool = False, read_only: bool = False):
        """A new one was just created: no block of it is written. `read_only`: nothing may be written to it.

        Raises RecipeError when what lies at `path` is no store of this package, OutputError where it cannot be read.
        """
        self.path = path
        self._is_new = is_new
        try:
            self._root = zarr.open_group(zarr_store(path), mode="r" if read_only else "r+", zarr_format=3)
            self.attributes: dict[str, Any] = dict(self._root.attrs[ATTRIBUTES])  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            if isinstance(error, OSError) and (trouble := read_trouble(path, error)):
                raise trouble from error
            raise RecipeError(
                f"{path}: not a slide store of this package ({error}); use another --out or --overwrite"
            ) from error
        self._arrays: dict[str, zarr.Array[Any]] = {}
        # What is filled block by block: where a context step follows, the heatmap comes after.
        self.scores = "patch_heatmap" if self._has("patch_heatmap") else "heatmap"

    @property
    def class_layers(self) -> dict[str, str]:
        """Of each class beside IDC that has a layer, in the card's order, the path of its layer in the store."""
        return {name: f"{CLASSES}/{folder}" for name, folder in self.attributes.get(CLASSES, {}).items()}

    @property
    def map_recipe(self) -> dict[str, Any] | None:
        """All that decides what it holds (pipeline/identity.py); None of a store of before there were map keys."""
        return self.attributes.get("map_recipe")

    @property
    def is_complete(self) -> bool:
        """Whether everything its recipe asks for is written."""
        return bool(self.attributes["complete"])

    def layout_differences(self, plan: Plan) -> list[str]:
        """In what the arrays themselves are not as `plan` would lay them out, value by value."""
        found = []
        size, kept = plan.grid.map_size, int(plan.kept.sum())
        if (rows := self._array("patches/x0").shape[0]) != kept:
            found.append(f"patches in the store: {rows} there, {kept} here")
        if not self._has(self.scores):
            return found
        scores, shape = self._array(f"{self.scores}/0"), (size.height, size.width)
        chunks = tuple(max(1, min(plan.chunk_cells, n)) for n in shape)
        for name, there, here in (("map", scores.shape, shape), ("chunks", scores.chunks, chunks)):
            if there != here:
                found.append(
                    f"{name} of the store: {there[1]} x {there[0]} cells there, {here[1]} x {here[0]} here"
                )
        return found

    def array(self, name: str) -> NDArray[Any]:
        """A whole array in memory, by its path in the store ('heatmap/0')."""
        array = self._array(name)
        if isinstance(self.path, Path) and array.ndim == 2 and _is_written_here(array):
            return _read_by_chunk(array, self.path / name)
        return np.asarray(array[...])

    def shape(self, name: str) -> tuple[int, ...]:
        """An array's shape, by its path in the store, without reading it."""
        return tuple(map(int, self._array(name).shape))

    def status(self, cells: Box) -> NDArray[np.uint8]:
        """uint8 [row, column] of `labels/status/0` there."""
        return np.asarray(self._array("labels/status/0")[_slices(cells)], np.uint8)

    def has(self, name: str) -> bool:
        """Whether there is such an array, by its path in the store."""
        return name in self._root

    def cells_um(self, name: str) -> tuple[tuple[float, float], tuple[float, float]]:
        """Size (x, y) of a map's cells, and the centre (x, y) of its first, in micrometres, by the map's name."""
        ome: Any = self._root[name].attrs["ome"]
        scale, translation = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        (height, width), (y, x) = scale["scale"], translation["translation"]
        return (width, height), (x, y)

    def patches(self) -> PatchTable:
        """The kept patches."""
        x0, y0, tissue = (self.array(f"patches/{name}") for name in ("x0", "y0", "tissue"))
        return PatchTable(x0, y0, tissue, self.array("patches/label") if self.has("patches/label") else None)

    def unfinished(self, blocks: Iterable[Block]) -> list[Block]:
        """Those of the blocks that are not committed: something in them is still planned."""
        if self._is_new:  # a large slide's status takes the better part of a second to read
            return list(blocks)
        status = self.array("labels/status/0")
        return [block for block in blocks if (status[_slices(block.cells)] == Status.PLANNED).any()]

    def write_block(
        self,
        cells: Box,
        values: NDArray[np.float32],
        status: NDArray[np.uint8],
        spread: NDArray[np.float32] | None = None,
        others: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        """Commit a chunk: its values, then its status, so that a chunk whose status says scored is.

        The values are on the disk before the status is written: that holds after a power cut too. `spread` goes to
        the store's uncertainty, which it must have, `others` to its `class_layers`, one each. Several threads may write
        different chunks. Raises OutputError.
        """
        self._is_new = False
        self._write_chunk(f"{self.scores}/0", cells, values)
        if spread is not None:
            self._write_chunk("uncertainty/0", cells, spread)
        for layer, of_class in zip(self.class_layers.values(), others, strict=True):
            self._write_chunk(f"{layer}/0", cells, of_class)
        self._write_chunk("labels/status/0", cells, status, durable=False)

    def write_heatmap(self, values: NDArray[np.float32]) -> None:
        """The whole map after the context step, [row, column]; the patch-alone map stays as it is."""
        with writing(self.path):
            self._array("heatmap/0")[...] = values

    def write_pyramid(self) -> None:
        """The coarser levels of the maps (mean of scored cells) and of status (upper left of four)."""
        names = {"heatmap", self.scores, "labels/status", *self.class_layers.values()}
        if self._has("uncertainty"):
            names.add("uncertainty")
        for name in sorted(names):
            reduce: Callable[[NDArray[Any]], NDArray[Any]] = (
                halve_nearest if name == "labels/status" else halve_mean
            )
            level = self.array(f"{name}/0")
            for index in range(1, self._level_count(name)):
                level = reduce(level)
                with writing(self.path):
                    self._array(f"{name}/{index}")[...] = level

    def write_display(self) -> None:
        """The images for viewers, of the maps and their coarser levels; none in a store of an earlier version."""
        if not self._has("display"):
            return
        maps = [name for name in MAP_TITLES if self._has(name)]
        for index in range(self._level_count("display")):
            with writing(self.path):
                for channel, name in enumerate(maps):
                    self._write_repeated(f"display/{index}", name, index, channel)
                self._write_repeated(f"labels/status/display_{index}", "labels/status", index)

    def _write_repeated(self, target: str, name: str, index: int, channel: int | None = None) -> None:
        """A level of an image for viewers: the cells of a level of `name`, each as often as it takes."""
        array, steps = self._array(target), self._level_count("display") - self._level_count(name)
        cells = self.array(f"{name}/{max(0, index - steps)}")
        repeat, (height, width) = 2 ** max(0, steps - index), array.shape[-2:]
        columns = np.arange(width) // repeat
        for top in range(0, height, FLAT_CHUNK):  # a row of chunks at a time: it is large
            rows = np.arange(top, min(top + FLAT_CHUNK, height)) // repeat
            place: tuple[Any, ...] = (slice(top, top + len(rows)), slice(None))
            array[place if channel is None else (channel, *place)] = cells[np.ix_(rows, columns)]

    def finish(self, computed: dict[str, Any], planned: NDArray[np.uint8]) -> None:
        """Say that it is complete, once all of it is on the disk; `computed` says on what (`store_attributes`).

        `planned` is the status of the map before anything was scored. Raises OutputError where a cell is not what the
        plan makes of it, or has no value though its status says that it was scored: it is planned again then, and the
        same command goes on there.
        """
        self._check_whole(planned)
        with writing(self.path):
            sync_tree(self.path)
            self.attributes |= {"computed": computed, "complete": True}
            self._root.attrs[ATTRIBUTES] = self.attributes
            sync_files([self.path / ROOT_FILE])

    def _check_whole(self, planned: NDArray[np.uint8]) -> None:
        status = self.array("labels/status/0")
        wanted = planned == Status.PLANNED
        done = np.isin(status, (Status.SCORED, Status.UNREADABLE))
        scored = status == Status.SCORED
        lost = wanted & (~done | (scored & ~np.isfinite(self.array(f"{self.scores}/0"))))
        for name in ("heatmap", *self.class_layers.values()):
            lost |= wanted & scored & ~np.isfinite(self.array(f"{name}/0"))
        strange = ~wanted & (status != planned)
        if not lost.any() and not strange.any():
            return
        with writing(self.path):
            self._array("labels/status/0")[...] = np.where(lost | strange, planned, status)
        raise OutputError(
            f"{self.path}: found {counted(int(lost.sum()), 'cell')} without a score and {int(strange.sum()):,} "
            f"that no plan has, expected each of {counted(int(wanted.sum()), 'planned cell')} done: did another "
            f"process, or a person, write there? They are planned again: run the same command, alone, and it goes on "
            f"with them"
        )

    def _write_chunk(self, name: str, cells: Box, values: NDArray[Any], durable: bool = True) -> None:
        """Write the chunk that begins where `cells` do.

        Not by way of zarr: for a few kilobytes that takes several times as long, most of it holding Python's lock, for
        which readers and network then wait.
        """
        array = self._array(name)
        chunk = np.full(array.chunks, array.fill_value, array.dtype.newbyteorder("<"))
        chunk[: cells.height, : cells.width] = values
        place = (cells.y // array.chunks[0], cells.x // array.chunks[1])
        path = self.path / name / array.metadata.encode_chunk_key(place)
        write_bytes(path, numcodecs.Zstd(ZSTD_LEVEL).encode(chunk), durable)

    def _level_count(self, name: str) -> int:
        return next(index for index in itertools.count() if f"{name}/{index}" not in self._root)

    def _has(self, name: str) -> bool:
        # Asked for its array: to open a group, zarr 3.1 needs an assert that `python -O` leaves out.
        return f"{name}/0" in self._root

    def _array(self, name: str) -> "zarr.Array[Any]":
        if name not in self._arrays:
            array = self._root[name]
            assert isinstance(array, zarr.Array)
            self._arrays[name] = array
        return self._arrays[name]


def create_store(
    path: OutPath,
    attributes: dict[str, Any],
    layout: StoreLayout,
    clear: Callable[[], None] | None = None,
) -> SlideStore:
    """A new store at `path`, which is there whole or not at all.

    `attributes` are those of provenance.py; what lay at `path` is replaced, and `clear` is called when that is gone and
    before the new store is there. Without maps to fill it is complete at once. Raises OutputError.
    """
    contents: dict[str, Buffer] = {}
    if layout.classes:
        attributes = attributes | {CLASSES: class_folders(layout.classes)}
    root = zarr.create_group(
        MemoryStore(contents),
        zarr_format=3,
        attributes={ATTRIBUTES: attributes | {"complete": not layout.maps}},
    )
    labels = root.create_group("labels")
    if layout.maps:
        _create_maps(root, labels.create_group("status"), layout)
    names = ["status", "tissue"] if layout.maps else ["tissue"]
    labels.attrs["ome"] = {"version": "0.5", "labels": names}
    _create_tissue(root, labels.create_group("tissue"), layout)
    _create_patches(root.create_group("patches"), layout.patches)
    with new_tree(path, {name: part.to_bytes() for name, part in contents.items()}, ROOT_FILE):
        if clear:
            clear()
    return SlideStore(path, is_new=True)


def _create_maps(root: zarr.Group, status: zarr.Group, layout: StoreLayout) -> None:
    """The layout's maps, float32 [row, column] of the map's cells with nothing scored yet, and their `status`."""
    plan, mpp0 = layout.plan, layout.mpp0
    levels, plane = level_count(plan.grid.map_size), plan.grid.map_plane
    heatmaps = {name: root.create_group(name) for name in MAP_TITLES if name in layout.maps}
    of_classes = {
        name: root.create_group(f"{CLASSES}/{folder}")
        for name, folder in class_folders(layout.classes).items()
    }
    planned = initial_status(plan)
    shape = planned.shape
    for index in range(levels):
        for heatmap in (*heatmaps.values(), *of_classes.values()):
            _create_array(heatmap, str(index), shape, np.float32, plan.chunk_cells, fill=np.nan)
        array = _create_array(status, str(index), shape, np.uint8, plan.chunk_cells)
        if index == 0:
            array[...] = planned
        shape = _half(shape)
    for name, heatmap in heatmaps.items():
        title = MAP_TITLES[name]
        heatmap.attrs["ome"] = shown_as(
            multiscale(title, plane, mpp0, levels), [(title, *MAP_CHANNELS[name])]
        )
    for name, heatmap in of_classes.items():
        title = f"probability of {name}"
        heatmap.attrs["ome"] = shown_as(multiscale(title, plane, mpp0, levels), [(title, *CLASS_CHANNEL)])
    _create_display(root, status, layout, list(heatmaps))


def class_folders(names: Sequence[str]) -> dict[str, str]:
    """Of each class its folder in the store: its name, where that is one for any file system; each another.

    >>> class_folders(("Stroma", "in situ", "a/b", "stroma"))
    {'Stroma': 'Stroma', 'in situ': 'in_situ', 'a/b': 'a_b', 'stroma': 'stroma-4'}
    """
    folders: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        folder = re.sub(r"[^A-Za-z0-9-]+", "_", name)[:64].strip("_")
        taken, plain = {other.casefold() for other in folders.values()}, folder or "class"
        while not folder or folder.casefold() in taken:
            folder, number = f"{plain}-{number}", number + 1
        folders[name] = folder
    return folders


def _create_display(root: zarr.Group, status: zarr.Group, layout: StoreLayout, maps: list[str]) -> None:
    """The images for viewers of the root and of `status`, empty until the maps are whole."""
    size, mpp0, levels = layout.plan.grid.map_size, layout.mpp0, _image_levels(layout)
    factor = display_factor(layout.plan.grid.map_plane, mpp0, size)
    plane = layout.plan.grid.map_plane.coarser(1 / factor, 1 / factor)
    display = root.create_group("display")
    shape: tuple[int, ...] = (size.height * factor, size.width * factor)
    for index in range(levels):
        _create_array(display, str(index), (len(maps), *shape), np.float32, FLAT_CHUNK, fill=np.nan)
        _create_array(status, f"display_{index}", shape, np.uint8, FLAT_CHUNK)
        # Halved while cells are repeated, this is exact; after that it is as the cells' own levels are.
        shape = _half(shape)
    image = multiscale(MAP_TITLE, plane, mpp0, levels, "display/", channels=True)
    root.attrs["ome"] = shown_as(image, [(MAP_TITLES[name], *MAP_CHANNELS[name]) for name in maps])
    meanings = {value: value.name.lower() for value in Status}
    status.attrs["ome"] = image_label(
        multiscale("status", plane, mpp0, levels, "display_"), "../../", meanings
    )


def _image_levels(layout: StoreLayout) -> int:
    """Levels of the root's image; OME-Zarr wants those of its labels to match."""
    if not layout.maps:
        return level_count(Size(layout.tissue.shape[1], layout.tissue.shape[0]))
    grid = layout.plan.grid
    factor = display_factor(grid.map_plane, layout.mpp0, grid.map_size)
    return level_count(grid.map_size) + factor.bit_length() - 1


def _create_tissue(root: zarr.Group, group: zarr.Group, layout: StoreLayout) -> None:
    """The mask, in as many levels as the root's image; where there are no maps, it is that image."""
    levels, tissue, plane, mpp0 = _image_levels(layout), layout.tissue, layout.tissue_plane, layout.mpp0
    group.attrs["ome"] = image_label(multiscale("tissue", plane, mpp0, levels), "../../")
    if not layout.maps:
        image = multiscale("tissue", plane, mpp0, levels, "labels/tissue/")
        root.attrs["ome"] = shown_as(image, [("tissue", "FFFFFF", 2.0)])
    for index in range(levels):
        _create_array(group, str(index), tissue.shape, np.uint8, FLAT_CHUNK)[...] = tissue
        tissue = halve_nearest(tissue)


def _half(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // 2) for n in shape)


def _create_patches(group: zarr.Group, patches: PatchTable) -> None:
    for column in fields(patches):
        values = getattr(patches, column.name)
        if values is not None:
            _create_array(group, column.name, values.shape, values.dtype, PATCH_CHUNK)[...] = values


def _create_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: Any, chunk: int, fill: float = 0
) -> "zarr.Array[Any]":
    chunks = tuple(max(1, min(chunk, n)) for n in shape)
    axes = ["patch"] if len(shape) == 1 else ["c", "y", "x"][-len(shape) :]
    if len(shape) == 3:
        chunks = (1, *chunks[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zero-length arrays: a slide without tissue has them
        return group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            fill_value=fill,
            compressors=ZstdCodec(level=ZSTD_LEVEL),
            dimension_names=axes,
        )


def _is_written_here(array: "zarr.Array[Any]") -> bool:
    """Whether its chunks are what `_write_chunk` writes."""
    codecs = [*array.filters, *array.compressors]
    return array.order == "C" and array.shards is None and [type(codec) for codec in codecs] == [ZstdCodec]


def _read_by_chunk(array: "zarr.Array[Any]", folder: Path) -> NDArray[Any]:
    """All of an array on a disk. Through zarr, a map of a million cells in small chunks takes ten times as long."""
    values, zstd = np.full(array.shape, array.fill_value, array.dtype), numcodecs.Zstd()
    rows, columns = array.chunks
    stored = array.dtype.newbyteorder("<")
    for row in range(-(-array.shape[0] // rows)):
        for column in range(-(-array.shape[1] // columns)):
            try:
                data = (folder / array.metadata.encode_chunk_key((row, column))).read_bytes()
            except FileNotFoundError:
                continue  # all of it is the fill value
            chunk = np.frombuffer(zstd.decode(data), stored).reshape(rows, columns)
            place = values[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
            place[...] = chunk[: place.shape[0], : place.shape[1]]
    return values


def _slices(box: Box) -> tuple[slice, slice]:
    return slice(box.y, box.bottom), slice(box.x, box.right)
