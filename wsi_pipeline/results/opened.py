"""A result, opened again: the map with its coordinates, regions, fields, numbers and pictures. Nothing here writes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.base.errors import RecipeError, ResultError, UsageError
from wsi_pipeline.base.files import OutPath, names, out_path, read_whole, tree_exists
from wsi_pipeline.base.types import FloatMap
from wsi_pipeline.results.fields import GradingField, HotSpot
from wsi_pipeline.results.geojson import field_outline, hot_spots_from_geojson, regions_from_geojson
from wsi_pipeline.results.outlines import Polygons
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.results.run_folder import OUTPUTS
from wsi_pipeline.results.store import MAP_TITLES, ROOT_FILE, STORE_NAME, PatchTable, SlideStore

if TYPE_CHECKING:  # both are extras
    import geopandas
    import xarray

T = TypeVar("T")

Layer = Literal["map", "patch_map", "uncertainty", "status"]
"""What `Result` has a value of for each cell, by the name of its attribute."""

PICTURE = ".png"
# The array of each layer in the store.
_ARRAYS: dict[Layer, str] = {
    "map": "heatmap",
    "patch_map": "patch_heatmap",
    "uncertainty": "uncertainty",
    "status": "labels/status",
}


@dataclass(frozen=True, kw_only=True)
class ResultRegion(IdcRegion):
    """A region of a result: `polygon` in level-0 pixels, `polygon_um` the same in micrometres."""

    polygon_um: Polygons


@dataclass(frozen=True)
class ResultField(GradingField):
    """A field of a result: its centre and radii in level-0 pixels, `circle_um` its outline in micrometres."""

    circle_um: shapely.Polygon


@dataclass(frozen=True)
class ResultHotSpot(HotSpot):
    """A hot spot of a result: its centre and radii in level-0 pixels, `circle_um` its outline in micrometres."""

    circle_um: shapely.Polygon


class Result:
    """What a run left of one slide; made by `open_result`, `infer_slide` and `tile_slide`.

    Values are read when they are first asked for, and kept; no file stays open. Arrays are [row, column] and read-only:
    copy one to change it. Micrometres count from the upper left corner of level 0, x to the right and y down.

    Of a run that was broken off, the map holds what was committed when it was read, and `regions`, `fields` and
    `summary` raise ResultError, as do the map and what belongs to it of a result of `tile_slide`, which has none.

    Example::

        result = wp.open_result("maps/sample")
        print(result.is_complete, result.map.shape, f"{np.nanmean(result.map):.2f}")
        print(result.summary["idc_mm2"], [region.name for region in result.regions])
    """

    def __init__(self, folder: OutPath):
        """Raises ResultError when `folder` is no run folder."""
        self.folder = folder
        """The run folder, OUT/<slide name>."""

        self.name = folder.name
        """The slide's name."""

        if not tree_exists(folder / STORE_NAME, ROOT_FILE):
            raise ResultError(_no_run_folder(folder))
        try:
            self._store = SlideStore(folder / STORE_NAME, read_only=True)
        except RecipeError as error:
            raise ResultError(
                f"{folder}: {STORE_NAME} is no store of this package, or damaged ({error.__cause__}); make the result "
                "again"
            ) from error

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r})"

    @property
    def is_complete(self) -> bool:
        """Whether its run came to the end."""
        return self._store.is_complete and "summary.json" in names(self.folder)

    @cached_property
    def map(self) -> FloatMap:
        """float32 [row, column], the probability of IDC that the run shows, 0 to 1; NaN where not scored."""
        return self._layer("map")

    @cached_property
    def x_um(self) -> NDArray[np.float64]:
        """float64 [column], micrometres: the centres of the map's cells."""
        (cell_x, _), (x_um, _) = self._cells
        return x_um + cell_x * np.arange(self.map.shape[1], dtype=np.float64)

    @cached_property
    def y_um(self) -> NDArray[np.float64]:
        """float64 [row], micrometres: the centres of the map's cells."""
        (_, cell_y), (_, y_um) = self._cells
        return y_um + cell_y * np.arange(self.map.shape[0], dtype=np.float64)

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge of the map in micrometres, as matplotlib's `imshow` takes its `extent`."""
        (cell_x, cell_y), (x_um, y_um) = self._cells
        rows, columns = self.map.shape
        left, top = x_um - cell_x / 2, y_um - cell_y / 2
        return left, left + columns * cell_x, top + rows * cell_y, top

    @cached_property
    def patch_map(self) -> FloatMap | None:
        """As `map`, each patch alone; None where the map that is shown has no context step."""
        return self._optional("patch_map")

    @cached_property
    def uncertainty(self) -> FloatMap | None:
        """float32 [row, column], the standard deviation between an ensemble's models, 0 to 0.5; None of one model."""
        return self._optional("uncertainty")

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes beside the mapped one whose probability is in the store too, in the card's order; none of two."""
        return tuple(self._store.class_layers)

    @property
    def class_arrays(self) -> dict[str, str]:
        """Of each of `classes` its array in the store, as `level` and `cells_um` take it."""
        return dict(self._store.class_layers)

    def class_map(self, name: str) -> FloatMap:
        """float32 [row, column], the probability of one of `classes`, each patch alone, 0 to 1; NaN where not scored.

        With those of the other classes and `patch_map` (or `map`, where that is none) it comes to 1. Raises ResultError
        where there is none of that name.
        """
        layers = self._store.class_layers
        if name not in layers:
            has = ", ".join(layers) or "none beside the mapped one"
            raise ResultError(f"{self.folder}: has no class '{name}'; it has {has}")
        values: FloatMap = self._read(lambda: self._store.array(f"{layers[name]}/0"))
        values.flags.writeable = False
        return values

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """uint8 [row, column], a `Status` a cell: 0 background, 1 scored, 2 rejected, 3 unreadable, 4 planned."""
        return self._layer("status")

    @cached_property
    def patches(self) -> PatchTable:
        """The patches planned, in row order: x0 and y0 (int32 [n], level-0 pixels of the upper left corner), tissue
        (float32 [n], share of the patch) and label (int8 [n], 1 IDC, 0 not; None where there were no outlines).
        """
        return self._read(self._store.patches)

    @cached_property
    def regions(self) -> tuple[ResultRegion, ...]:
        """The regions of IDC, the largest first: name, polygon, polygon_um, area_mm2, mean and max_probability."""
        return self._drawn[0]

    @cached_property
    def fields(self) -> tuple[ResultField, ...]:
        """The fields proposed for grading, the hottest first."""
        return self._drawn[1]

    @cached_property
    def hot_spots(self) -> tuple[ResultHotSpot, ...]:
        """The hot spot as circles with 1 and 2 mm2 of tissue; none where there is no region."""
        return self._drawn[2]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json says: counts, areas, seconds, versions, warnings (docs/outputs.md has its keys)."""
        summary = self._json("summary.json")
        if not isinstance(summary, dict):
            raise ResultError(f"{self.folder}: summary.json holds no keys and values; make the result again")
        return summary

    @property
    def pictures(self) -> dict[str, OutPath]:
        """The path of each picture that is there, by its name: report, overlay, heatmap, tissue, fields ..."""
        there = names(self.folder)
        pictures = [name for name in OUTPUTS if name.endswith(PICTURE) and name in there]
        return {name.removesuffix(PICTURE): self.folder / name for name in pictures}

    def data_array(self, layer: Layer = "map") -> "xarray.DataArray":
        """The map, or another layer ("patch_map", "uncertainty", "status"), as an xarray.DataArray.

        Its dimensions are y and x, with the centres of the cells in micrometres. Raises UsageError where xarray is not
        installed, ResultError where the result has no such layer.
        """
        package = _extra("xarray", "Result.data_array")
        values = getattr(self, layer) if layer in _ARRAYS else None
        if values is None:
            has = [name for name in _ARRAYS if self._has(name)]
            raise ResultError(f"{self.folder}: has no '{layer}'; it has {', '.join(has) or 'no map'}")
        unit = {"units": "um"}
        coordinates = {"y": ("y", self.y_um, unit), "x": ("x", self.x_um, unit)}
        title = MAP_TITLES.get(_ARRAYS[layer], layer)
        array: xarray.DataArray = package.DataArray(
            values, coordinates, ("y", "x"), name=layer, attrs={"long_name": title, "slide": self.name}
        )
        return array

    def geo_data_frame(self, unit: Literal["um", "level0"] = "um") -> "geopandas.GeoDataFrame":
        """The regions as a geopandas.GeoDataFrame, a row each, with polygons in micrometres or level-0 pixels.

        Its columns are name, area_mm2, mean_probability, max_probability and geometry. Raises UsageError where
        geopandas is not installed, or for another unit.
        """
        if unit not in ("um", "level0"):
            raise UsageError(f"unit '{unit}': expected 'um' or 'level0'")
        package = _extra("geopandas", "Result.geo_data_frame")
        columns = ("name", "area_mm2", "mean_probability", "max_probability")
        table = {name: [getattr(region, name) for region in self.regions] for name in columns}
        outlines = [region.polygon_um if unit == "um" else region.polygon for region in self.regions]
        frame: geopandas.GeoDataFrame = package.GeoDataFrame(table, geometry=outlines)
        return frame

    def level_shapes(self, array: str) -> list[tuple[int, ...]]:
        """Of an array of the store ("heatmap", "labels/tissue" ...), its levels' rows and columns, the finest first.

        None: it has no such array. Reads no values. Raises ResultError.
        """
        found: list[tuple[int, ...]] = []
        while self._store.has(name := f"{array}/{len(found)}"):
            found.append(self._read(lambda name=name: self._store.shape(name)))  # type: ignore[misc]
        return found

    def level(self, array: str, index: int) -> NDArray[Any]:
        """One of its levels as it lies in the store, read anew at each call. Raises ResultError."""
        return self._read(lambda: self._store.array(f"{array}/{index}"))

    def cells_um(self, array: str) -> tuple[tuple[float, float], tuple[float, float]]:
        """Size (x, y) of the cells of such an array, and the centre (x, y) of its first, in micrometres."""
        return self._read(lambda: self._store.cells_um(array))

    @property
    def store_attributes(self) -> dict[str, Any]:
        """What the store says of itself: map_key, map_recipe, computed, complete."""
        return dict(self._store.attributes)

    @cached_property
    def _cells(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Size (x, y) of the map's cells, and the centre (x, y) of the first, in micrometres."""
        self._check_map()
        return self._read(lambda: self._store.cells_um("heatmap"))

    @cached_property
    def _drawn(self) -> tuple[tuple[ResultRegion, ...], tuple[ResultField, ...], tuple[ResultHotSpot, ...]]:
        self._check_map()
        mpp0, collection = np.asarray(self.summary["mpp"]), self._json("regions.geojson")
        try:
            regions, fields = regions_from_geojson(collection)
            hot_spots = hot_spots_from_geojson(collection)
        except (ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
            raise ResultError(
                f"{self.folder}: regions.geojson is not as this version writes it ({type(error).__name__}: {error}); "
                "make the result again with overwrite"
            ) from error

        def in_um(polygon: Polygons) -> Polygons:
            scaled: Polygons = shapely.transform(polygon, lambda xy0: xy0 * mpp0)
            return scaled

        return (
            tuple(ResultRegion(**vars(region), polygon_um=in_um(region.polygon)) for region in regions),
            tuple(ResultField(**vars(field), circle_um=in_um(field_outline(field))) for field in fields),
            tuple(ResultHotSpot(**vars(spot), circle_um=in_um(field_outline(spot))) for spot in hot_spots),
        )

    def _has(self, layer: Layer) -> bool:
        return self._store.has(f"{_ARRAYS[layer]}/0")

    def _optional(self, layer: Layer) -> FloatMap | None:
        self._check_map()
        return self._layer(layer) if self._has(layer) else None

    def _layer(self, layer: Layer) -> NDArray[Any]:
        self._check_map()
        values = self._read(lambda: self._store.array(f"{_ARRAYS[layer]}/0"))
        values.flags.writeable = False
        return values

    def _check_map(self) -> None:
        if not self._has("map"):
            raise ResultError(
                f"{self.folder}: has no map: tile-slides made it, which plans patches; infer-slide maps the slide"
            )

    def _read(self, read: Callable[[], T]) -> T:
        """What is read of the store. Raises ResultError, with what zarr, its codecs or the file system raised."""
        try:
            return read()
        except Exception as error:
            raise ResultError(
                f"{self.folder}: {STORE_NAME} cannot be read ({type(error).__name__}: {error}); make the result again"
            ) from error

    def _json(self, name: str) -> Any:
        try:
            return json.loads(read_whole(self.folder / name))
        except FileNotFoundError as error:
            raise ResultError(
                f"{self.folder}: there is no {name}: the run was broken off, or the file removed; the same call again "
                "goes on from there"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise ResultError(
                f"{self.folder}: {name} cannot be read ({error}); make the result again"
            ) from error


def open_result(folder: str | OutPath) -> Result:
    """What `infer-slide`, `tile-slides` or their functions left of one slide in its run folder, OUT/<slide name>.

    `folder` may be on an object store ("s3://bucket/maps/biopsy"). Raises ResultError when it is no run folder,
    UsageError when the packages for that kind of store are not installed.

    Example::

        result = wp.open_result("maps/sample")
        print(result.pictures["report"])
    """
    return Result(out_path(folder) if isinstance(folder, str) else folder)


def _no_run_folder(folder: OutPath) -> str:
    """What is there instead of a run folder, and what to give."""
    expected = f"expected a run folder, OUT/<slide name>, with {STORE_NAME} in it"
    if not folder.exists():
        return f"{folder}: no such folder; {expected}"
    runs = (
        sorted(path.parent.name for path in folder.glob(f"*/{STORE_NAME}"))
        if isinstance(folder, Path)
        else []
    )
    if runs:
        more = ", ..." if len(runs) > 5 else ""
        return f"{folder}: holds run folders, expected one of them: {', '.join(runs[:5])}{more}"
    return f"{folder}: has no {STORE_NAME}; {expected}"


def _extra(package: str, wanted_by: str) -> Any:
    """The optional package. Raises UsageError that says how to get it."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise UsageError(
            f"{wanted_by} needs {package}, which is not installed: pip install {package}"
        ) from error
