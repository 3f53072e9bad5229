"""A result that somebody looks at: what was read of it, its layers, and whether the slide at hand is its slide."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import ResultError, SlideOpenError, UsageError, WsiError
from wsi_pipeline.base.files import OutPath, names, version_of
from wsi_pipeline.base.geometry import Size
from wsi_pipeline.results.opened import Result
from wsi_pipeline.results.regions import TissueMask
from wsi_pipeline.results.run_folder import SUMMARY
from wsi_pipeline.results.store import ROOT_FILE, STORE_NAME
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.cell_status import Status
from wsi_pipeline.viewer.deep_zoom import DeepZoom
from wsi_pipeline.viewer.layers import Kind, Layer, layers_of, load_layer
from wsi_pipeline.viewer.pixels import find_slide

# What a result changes with.
CHANGES = (SUMMARY, f"{STORE_NAME}/{ROOT_FILE}", "regions.geojson")


@dataclass(eq=False)
class OpenResult:
    """A result that somebody looks at, with what was read of it."""

    result: Result
    summary: dict[str, Any]
    stamp: str
    """Changes when the result does."""

    looked_at: float = 0.0
    """When it was last seen not to have changed, by the monotonic clock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    layers: dict[str, Layer | None] = field(default_factory=dict)
    place: Path | None = None
    """Where its slide lies; None: `why_no_slide` says why it is not found."""

    why_no_slide: str | None = None
    _checked: Slide | None = None
    # Of its own: a slide that does not answer keeps nobody from the map.
    _check_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def mpp0(self) -> tuple[float, float]:
        """um per level-0 pixel, along x and y."""
        return float(self.summary["mpp"][0]), float(self.summary["mpp"][1])

    @property
    def zoom(self) -> DeepZoom:
        """The geometry of its tiles."""
        return DeepZoom(Size(*map(int, self.summary["size0"])))

    @cached_property
    def known_layers(self) -> dict[str, tuple[str, str, Kind]]:
        """Array, title and kind by the name of each layer that it may have."""
        return layers_of(self.result)

    def layer(self, name: str) -> Layer:
        """A layer, read once. Raises UsageError where there is none of that name, ResultError."""
        if name not in self.known_layers:
            raise UsageError(f"found layer {name[:50]!r}, expected one of {', '.join(self.known_layers)}")
        with self.lock:
            if name not in self.layers:
                self.layers[name] = load_layer(self.result, name, self.known_layers[name], self.mpp0)
            layer = self.layers[name]
        if layer is None:
            raise UsageError(f"this result has no layer '{name}'")
        return layer

    @property
    def models(self) -> list[dict[str, Any]]:
        """Of each model that made the map, what its recipe says: name, sha256, card."""
        models = (self.summary.get("map_recipe") or {}).get("models") or []
        return [model for model in models if isinstance(model, dict)]

    @property
    def tissue(self) -> TissueMask | None:
        """What outlines are cut to, as the run had it; None of a result without a tissue mask."""
        try:
            tissue, status = self.layer("tissue"), self.layer("status")
        except UsageError:
            return None
        return TissueMask(tissue.level() == 1, tissue.plane, status.level() == Status.BACKGROUND)

    def why_another(self, slide: Slide) -> str | None:
        """Why an open slide is not the one that was mapped; None where it is. Looked at once for each open slide."""
        with self._check_lock:
            return None if slide is self._checked else self._why_another(slide)

    def _why_another(self, slide: Slide) -> str | None:
        if slide.size0 != self.zoom.size0:
            found, expected = slide.size0, self.zoom.size0
            what = f"found {found.width:,} x {found.height:,} pixels, expected {expected.width:,} x {expected.height:,}"
        else:
            mapped = ((self.summary.get("map_recipe") or {}).get("slide") or {}).get("fingerprint")
            if mapped is None or slide.fingerprint() == mapped:
                self._checked = slide
                return None
            what = "found another content, expected that which was mapped"
        return f"{slide.path}: {what}: it is another slide; the pictures are shown"


def open_stamped(
    folder: OutPath, stamp: str, slides: list[Path], begun_from: Callable[[], str | None]
) -> OpenResult:
    """The result in a run folder as it stands, whose slide lies in one of the folders.

    begun_from: where the slide of a run that did not end lies, which only its summary would say. Raises ResultError.
    """
    result = Result(folder)
    if SUMMARY in names(folder):
        summary = result.summary
        recorded = str(summary["slide"])
    else:
        summary = _summary_of_store(result)
        recorded = begun_from() or ""
    opened = OpenResult(result, summary, stamp)
    try:
        if not recorded:
            raise SlideOpenError("its run did not end, and nothing else says where the slide lies")
        opened.place = find_slide(recorded, slides)
    except WsiError as error:
        opened.why_no_slide = str(error)
    return opened


def stamp_of(folder: OutPath) -> str:
    """Changes when what lies in the run folder does, and only then."""
    parts = [version_of(folder / name) or "" for name in CHANGES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _summary_of_store(result: Result) -> dict[str, Any]:
    """What is known of a slide whose run did not end. Raises ResultError."""
    recipe = result.store_attributes.get("map_recipe") or {}
    slide = recipe.get("slide")
    if not isinstance(slide, dict) or "size0" not in slide:
        raise ResultError(f"{result.folder}: the run did not get far enough to be shown; run it again")
    return {
        "slide": str(slide.get("name", "")),
        "size0": slide["size0"],
        "mpp": slide["mpp"],
        "map_recipe": recipe,
        "warnings": ["the run of this slide did not end: the map holds what was scored so far"],
    }
