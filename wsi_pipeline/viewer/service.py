"""What the page asks for, of one OUT: slides, tiles, layers, outlines, reviews. Knows nothing of HTTP."""

import hashlib
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image

from wsi_pipeline.base.errors import SlideError, UsageError, WsiError
from wsi_pipeline.base.files import OutPath, names, read_whole
from wsi_pipeline.base.options import options_from_dict
from wsi_pipeline.results.figures.palette import COLOURS
from wsi_pipeline.results.geojson import ORIGIN0
from wsi_pipeline.results.regions import DelineateOptions, IdcRegion, delineate
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.viewer.deep_zoom import COARSEST_LEVEL, TILE_PX
from wsi_pipeline.viewer.grading_sheet import GradingSheet
from wsi_pipeline.viewer.layers import (
    COLORMAPS,
    DEVIATION,
    colour_stops,
    layer_tile,
    legend,
)
from wsi_pipeline.viewer.open_results import OpenResult, open_stamped, stamp_of
from wsi_pipeline.viewer.pictures import Predictor
from wsi_pipeline.viewer.pixels import (
    CACHE_BYTES,
    BoundedCache,
    OpenSlides,
    jpeg_bytes,
    slide_tile,
)
from wsi_pipeline.viewer.review import Review
from wsi_pipeline.viewer.run_folders import RunFolders

# Results whose maps are kept in memory, and cells that `values` sends at most.
KEPT_RESULTS = 32
MOST_CELLS = 4_000_000
# On an object store, where each look takes several requests, a result is not looked at again within so many seconds.
FRESH_S = 5.0
PICTURES = (
    "tissue.png",
    "heatmap.png",
    "overlay.png",
    "uncertainty.png",
    "report.png",
    "fields.png",
    "report.pdf",
)
ASSOCIATED = ("macro", "label")
NO_CELL = "outside"


class Viewer:
    """One OUT and the folders its slides lie in. From any thread."""

    def __init__(self, out: OutPath, slides: list[Path], model: str = "idc_default", device: str = "auto"):
        self.out, self._folders = out, slides
        self.predictor = Predictor(model, device)
        self.tiles = BoundedCache(CACHE_BYTES)
        self._runs, self._lock = RunFolders(out), threading.Lock()
        self._slides = OpenSlides()
        self._kept: OrderedDict[str, OpenResult] = OrderedDict()

    def close(self) -> None:
        """Close all slides."""
        self._slides.close()

    # --- the list -------------------------------------------------------------------------------------------

    def listing(self) -> dict[str, Any]:
        """All slides, and the batch."""
        with self._lock:
            return {"out": str(self.out), **self._runs.listing()}

    def state(self) -> str:
        """What changes when anything in the list does."""
        with self._lock:
            return self._runs.state()

    # --- one slide ------------------------------------------------------------------------------------------

    def opened(self, slide_id: str) -> OpenResult:
        """The slide's result, kept while it does not change. Raises ResultError."""
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(slide_id)
            if kept is not None and not isinstance(self.out, Path) and now - kept.looked_at < FRESH_S:
                self._kept.move_to_end(slide_id)
                return kept
        folder = self._runs.folder(slide_id)
        stamp = stamp_of(folder)
        with self._lock:
            kept = self._kept.get(slide_id)
            if kept is not None and kept.stamp == stamp:
                self._kept.move_to_end(slide_id)
                kept.looked_at = now
                return kept

        def begun_from() -> str | None:
            with self._lock:
                return self._runs.slide_path(slide_id)

        opened = open_stamped(folder, stamp, self._folders, begun_from)
        opened.looked_at = now
        with self._lock:
            self._kept[slide_id] = opened
            while len(self._kept) > KEPT_RESULTS:
                self._kept.popitem(last=False)
        return opened

    def info(self, slide_id: str) -> dict[str, Any]:
        """All that the page needs to show a slide."""
        opened = self.opened(slide_id)
        with self._slide(opened) as (slide, why_not):
            pictures_beside = slide.associated if slide else []
        result, summary, zoom = opened.result, opened.summary, opened.zoom
        drawn = "regions.geojson" in names(result.folder) and "threshold" in summary
        regions = [_region_feature(region) for region in result.regions] if drawn else []
        layers = []
        for name in opened.known_layers:
            try:
                layer = opened.layer(name)
            except UsageError:
                continue
            cell = layer.plane.downsample_x * opened.mpp0[0], layer.plane.downsample_y * opened.mpp0[1]
            rows, columns = layer.shape
            layers.append(
                {
                    "name": name,
                    "title": layer.title,
                    "kind": layer.kind,
                    "cell_um": list(cell),
                    "rows": rows,
                    "columns": columns,
                    "legend": legend(name) if layer.kind == "classes" else None,
                }
            )
        return {
            "id": slide_id,
            "name": result.name,
            "complete": result.is_complete,
            "width0": zoom.size0.width,
            "height0": zoom.size0.height,
            "mpp_x": opened.mpp0[0],
            "mpp_y": opened.mpp0[1],
            "mpp_overridden": bool(summary.get("mpp_overridden")),
            "has_slide": why_not is None,
            "why_not": why_not,
            "tile_size": TILE_PX,
            "levels": zoom.levels,
            "stamp": opened.stamp,
            "layers": layers,
            "map_kind": summary.get("map_kind"),
            "threshold": summary.get("threshold"),
            "threshold_low": _delineated(opened).threshold_low,
            "colormaps": list(COLORMAPS),
            "default_colormap": COLOURS.name,
            "colormap_stops": {name: colour_stops(name) for name in (*COLORMAPS, DEVIATION)},
            "regions": {"type": "FeatureCollection", "features": regions},
            "fields": self._fields(opened) if drawn else [],
            "numbers": {key: value for key, value in summary.items() if key not in _HIDDEN},
            "warnings": summary.get("warnings", []),
            "model": _model_of(opened),
            "pictures": {
                name.removesuffix(".png").replace(".pdf", " (PDF)"): f"/api/slides/{slide_id}/pictures/{name}"
                for name in PICTURES
                if name in names(result.folder)
            },
            "associated": pictures_beside,
        }

    def prepare(self, slide_id: str) -> None:
        """Make what a page of the slide will ask for, the coarsest tiles of slide and map. Raises WsiError."""
        level = min(COARSEST_LEVEL, self.opened(slide_id).zoom.levels - 1)
        self.layer(slide_id, "heatmap", level, 0, 0, COLOURS.name, 0.0, 1.0, None, faint=True)
        self.tile(slide_id, level, 0, 0)

    def tile(self, slide_id: str, level: int, column: int, row: int) -> tuple[bytes, str]:
        """A tile of the slide as a JPEG, and its ETag. Raises UsageError where there is none, SlideError."""
        opened = self.opened(slide_id)
        zoom = opened.zoom
        if zoom.box(level, column, row) is None:
            raise UsageError("there is no such tile")
        key = ("slide", slide_id, opened.stamp, level, column, row)

        def finer(*at: int) -> bytes:
            return self.tile(slide_id, *at)[0]

        def make() -> bytes:
            with self._slide(opened) as (slide, why_not):
                if slide is None:
                    raise SlideError(why_not)
                try:
                    return slide_tile(slide, zoom, level, column, row, finer)
                except SlideError:
                    # A handle that failed once may refuse all later reads.
                    self._slides.forget(slide.path)
                    raise

        return self.tiles.get(key, make), _tag(key)

    def layer(
        self,
        slide_id: str,
        name: str,
        level: int,
        column: int,
        row: int,
        colormap: str,
        low: float,
        high: float,
        threshold: float | None,
        faint: bool = False,
    ) -> tuple[bytes, str]:
        """A tile of a layer as a PNG on the slide's own geometry, and its ETag. Raises UsageError."""
        opened = self.opened(slide_id)
        layer, zoom = opened.layer(name), opened.zoom
        if (box := zoom.box(level, column, row)) is None:
            raise UsageError("there is no such tile")
        if colormap not in COLORMAPS:
            raise UsageError(f"found colour map {colormap[:50]!r}, expected one of {', '.join(COLORMAPS)}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError("'low' and 'high': expected numbers, the first the lower one")
        key = (
            "layer",
            slide_id,
            opened.stamp,
            name,
            level,
            column,
            row,
            colormap,
            low,
            high,
            threshold,
            faint,
        )
        plane = zoom.plane(level)

        def make() -> bytes:
            return layer_tile(layer, box, plane, colormap, low, high, threshold, faint)

        return self.tiles.get(key, make), _tag(key)

    def at(self, slide_id: str, x0: float, y0: float, shown: str | None = None) -> dict[str, Any]:
        """What the map says at a level-0 point; `shown`: with the value of another class's layer of that name."""
        opened = self.opened(slide_id)
        found: dict[str, Any] = {}
        for key, name in (("probability", "heatmap"), ("patch_probability", "patch_heatmap")):
            found[key] = _number(_value(opened, name, x0, y0))
        found["uncertainty"] = _number(_value(opened, "uncertainty", x0, y0))
        if shown is not None and opened.layer(shown).kind == "of_class":
            found["of_class"] = _number(_value(opened, shown, x0, y0))
        status = _value(opened, "status", x0, y0)
        found["status"] = NO_CELL if status is None else Status(int(status)).name.lower()
        return found

    def values(self, slide_id: str) -> tuple[bytes, dict[str, str]]:
        """The map's cells, little-endian float32 by row, and headers that say where they lie."""
        layer = self.opened(slide_id).layer("heatmap")
        rows, columns = layer.shape
        if rows * columns > MOST_CELLS:
            raise UsageError(
                f"the map has {rows * columns:,} cells, at most {MOST_CELLS:,} are sent; ask /at"
            )
        plane = layer.plane
        return np.ascontiguousarray(layer.level(), "<f4").tobytes(), {
            "X-Rows": str(rows),
            "X-Cols": str(columns),
            "X-Cell-Px": f"{plane.downsample_x!r},{plane.downsample_y!r}",
            "X-Origin": f"{plane.origin_x0!r},{plane.origin_y0!r}",
        }

    def outlines(self, slide_id: str, threshold: float) -> dict[str, Any]:
        """The regions at another threshold, made in memory; the run's own stay as they are. Raises UsageError."""
        if not 0 < threshold <= 1:
            raise UsageError("'threshold': expected a number above 0 and at most 1")
        opened = self.opened(slide_id)
        layer = opened.layer("heatmap")
        options = replace(_delineated(opened), threshold=threshold)
        regions = delineate(
            layer.level(),
            layer.plane,
            opened.mpp0,
            threshold,
            options,
            opened.tissue,
            opened.zoom.size0,
        )
        return {
            "threshold": threshold,
            "regions": {"type": "FeatureCollection", "features": [_region_feature(r) for r in regions]},
            "idc_mm2": sum(region.area_mm2 for region in regions),
            "n": len(regions),
        }

    def picture(self, slide_id: str, name: str) -> bytes:
        """A picture of the run folder. Raises UsageError where there is none."""
        folder = self._runs.folder(slide_id)
        if name not in PICTURES or name not in names(folder):
            raise UsageError("there is no such picture")
        return read_whole(folder / name)

    def thumbnail(self, slide_id: str, side: int = 256) -> bytes:
        """The overlay, or the tissue picture, small, as a JPEG."""
        folder = self._runs.folder(slide_id)
        there = names(folder)
        name = next((n for n in ("overlay.png", "tissue.png") if n in there), None)
        if name is None:
            raise UsageError("there is no picture of this slide yet")

        def make() -> bytes:
            with Image.open(BytesIO(read_whole(folder / name))) as image:
                image.thumbnail((side, side))
                return jpeg_bytes(np.asarray(image.convert("RGB")))

        return self.tiles.get(("thumbnail", slide_id, stamp_of(folder), side), make)

    def associated(self, slide_id: str, name: str) -> bytes:
        """The slide's macro or label picture as a JPEG: it may show a patient's name. Raises UsageError."""
        opened = self.opened(slide_id)
        with self._slide(opened) as (slide, why_not):
            if slide is None or name not in ASSOCIATED or name not in slide.associated:
                raise UsageError(why_not or "the slide has no such picture")
            return jpeg_bytes(slide.read_associated(name))

    # --- what people say ------------------------------------------------------------------------------------

    def review(self, slide_id: str) -> Review:
        """The slide's review."""
        opened = self.opened(slide_id)
        origin0 = self._origin0(opened)
        return Review(opened.result.folder, opened.zoom.size0, origin0, opened.summary.get("map_key"))

    def grading(self, slide_id: str) -> GradingSheet:
        """The slide's grading sheet."""
        opened = self.opened(slide_id)
        fields = self._fields(opened)
        return GradingSheet(opened.result.folder, {f["id"]: f["usable_mm2"] for f in fields})

    def predict_at(self, slide_id: str, x0: float, y0: float) -> dict[str, Any]:
        """What the model says of the patch centred on a level-0 point."""
        opened = self.opened(slide_id)
        computed = opened.result.store_attributes.get("computed") or {}
        mine = {model.sha256 for model in self.predictor.classifier.models}
        same = {model.get("sha256") for model in opened.models} == mine
        stain = opened.summary.get("stain") if same else None
        heads = computed.get("heads", []) if same else []
        with self._slide(opened) as (slide, why_not):
            if slide is None:
                raise SlideError(why_not)
            return self.predictor.of_place(slide, x0, y0, stain, heads)

    # --- parts ----------------------------------------------------------------------------------------------

    @contextmanager
    def _slide(self, opened: OpenResult) -> Iterator[tuple[Slide, None] | tuple[None, str]]:
        """The slide, open in the block, or why it cannot be shown."""
        with ExitStack() as stack:
            try:
                if opened.place is None:
                    raise SlideError(opened.why_no_slide or "the slide cannot be found")
                mpp = opened.mpp0[0] if opened.summary.get("mpp_overridden") else None
                slide = stack.enter_context(self._slides.use(opened.place, mpp))
                if why_another := opened.why_another(slide):
                    raise SlideError(why_another)
            except WsiError as error:
                answer: tuple[Slide, None] | tuple[None, str] = None, str(error)
            else:
                answer = slide, None
            yield answer

    def _fields(self, opened: OpenResult) -> list[dict[str, Any]]:
        if "regions.geojson" not in names(opened.result.folder):
            return []
        found = []
        for drawn in opened.result.fields:
            found.append(
                {
                    "id": drawn.name,
                    "x0": drawn.x0,
                    "y0": drawn.y0,
                    "radius_x0": drawn.radius_x0,
                    "radius_y0": drawn.radius_y0,
                    "diameter_um": drawn.radius_x0 * 2 * opened.mpp0[0],
                    "usable_mm2": drawn.usable_mm2,
                    "mean_probability": drawn.mean_probability,
                    "region": drawn.region_name,
                }
            )
        return found

    def _origin0(self, opened: OpenResult) -> tuple[float, float]:
        """The level-0 point that QuPath counts from: as the run wrote it."""
        try:
            collection = json.loads(read_whole(opened.result.folder / "regions.geojson"))
            x0, y0 = collection[ORIGIN0]
            return float(x0), float(y0)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return 0.0, 0.0


# What the page has no use for, or reads elsewhere.
_HIDDEN = ("map_recipe", "report_recipe", "slide")


def _delineated(opened: OpenResult) -> DelineateOptions:
    """How the run delineated its regions."""
    recipe = (opened.summary.get("report_recipe") or {}).get("options") or {}
    return options_from_dict(DelineateOptions, dict(recipe.get("delineate") or {}), "the run's options")


def _region_feature(region: IdcRegion) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": region.name,
        "geometry": shapely.geometry.mapping(region.polygon),
        "properties": {
            "id": region.name,
            "name": region.name,
            "class": "IDC",
            "area_mm2": region.area_mm2,
            "largest_mm": region.largest_mm,
            "nearest_mm": region.nearest_mm,
            "mean_probability": region.mean_probability,
            "max_probability": region.max_probability,
        },
    }


def _model_of(opened: OpenResult) -> dict[str, Any] | None:
    if not opened.models:
        return None
    shown = ", ".join(str(model.get("name")) for model in opened.models)
    return {"name": shown, "sha256": opened.models[0].get("sha256")}


def _tag(key: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:20]


def _value(opened: OpenResult, layer: str, x0: float, y0: float) -> Any:
    try:
        return opened.layer(layer).at(x0, y0)
    except UsageError:
        return None


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)
