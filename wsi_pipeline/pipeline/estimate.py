"""What a batch would come to, before it is run: patches, time and disk, from an overview of each slide and a probe.

The overview is the real one. The probe does the real work on the first patches of the first slide that has any, for a
few seconds; time and disk of the other slides follow from its rates.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import SlideError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.pipeline.config import InferConfig, TileConfig
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import Block, Plan
from wsi_pipeline.tiling.overview import Overview, make_overview
from wsi_pipeline.tiling.patches import cut_patches

PROBE_S = 3.0
PROBE_PATCHES = 1024
# x0, y0 and tissue share of a patch in the store; coarser levels of a pyramid add a third to the finest.
PATCH_ROW_BYTES = 12
PYRAMID = 4 / 3

OnPatches = Callable[[NDArray[np.uint8]], int]
"""Does a run's work on uint8 patches [n, patch_px, patch_px, 3]; gives the bytes that they leave on the disk."""


@dataclass(frozen=True)
class Estimate:
    """Of one slide: its patches and blocks, the seconds that it takes one worker, and the bytes it leaves."""

    patches: int
    blocks: int
    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class Rate:
    """What the probe found: seconds and bytes a patch."""

    seconds: float
    disk_bytes: float


class Estimator:
    """Estimates one slide after another; the first one with patches is the probe."""

    def __init__(
        self,
        config: TileConfig | InferConfig,
        cell_bytes: int,
        pictures: int,
        on_patches: OnPatches | None,
    ):
        """`cell_bytes` are those of a map's cell in all arrays; `pictures` how many the size of a thumbnail.

        Without `on_patches` no patch is read.
        """
        self._config, self._cell_bytes, self._pictures = config, cell_bytes, pictures
        self._on_patches = on_patches
        self._rate: Rate | None = None

    def __call__(self, entry: SlideEntry) -> Estimate:
        """Raises a WsiError when the slide cannot be worked on."""
        if entry.refused:
            raise SlideError(entry.refused)
        began = time.perf_counter()
        slide = open_slide(entry.path, entry.mpp, entry.name)
        overview = make_overview(slide, self._config.overview, self._config.grid)
        picture_bytes, picture_seconds = _picture(overview)
        fixed = time.perf_counter() - began + picture_seconds * (self._pictures - 1)
        plan = overview.plan
        patches = int(plan.scored.sum())
        if self._on_patches and self._rate is None and patches:
            self._rate = _probe(slide, plan, self._on_patches)
        rate = self._rate or Rate(0.0, 0.0)
        cells = plan.grid.map_size
        disk = (
            cells.width * cells.height * self._cell_bytes * PYRAMID
            + overview.labels.size * PYRAMID
            + plan.kept.sum() * PATCH_ROW_BYTES
            + picture_bytes * self._pictures
            + rate.disk_bytes * patches
        )
        blocks = sum(1 for _ in plan.blocks())
        return Estimate(patches, blocks, fixed + rate.seconds * patches, int(disk))


def estimator_of_tiling(config: TileConfig, export: bool) -> Estimator:
    """Estimates `tile-slides`."""

    def export_patches(patches: NDArray[np.uint8]) -> int:
        return sum(_png_bytes(patch) for patch in patches)

    return Estimator(config, 0, 1, export_patches if export else None)


def estimator_of_inference(config: InferConfig, classifier: Classifier) -> Estimator:
    """Estimates `infer-slide`; the config's grid is the model's."""

    def classify(patches: NDArray[np.uint8]) -> int:
        classifier.scores_and_spread(patches)
        return 0

    maps = 2 if len(classifier.models) > 1 or (config.context and classifier.models[0].context) else 1
    return Estimator(config, 4 * maps + 1, 3, classify)


def _probe(slide: Slide, plan: Plan, on_patches: OnPatches) -> Rate:
    """Work on patches for some seconds; the first batch, which warms up, is not counted."""
    plane, done, disk = plan.grid.plane, 0, 0
    seconds = 0.0
    for warm, block in enumerate([*_first(plan, 1), *_first(plan, 8)]):
        began = time.perf_counter()
        cut = cut_patches(slide.read_readable(block.read_box, plane), block, plan.grid)
        patches = cut.rgb[:PROBE_PATCHES]
        read = (time.perf_counter() - began) * len(patches) / max(1, len(cut.rgb))
        began = time.perf_counter()
        written = on_patches(patches)
        if warm:
            seconds += read + time.perf_counter() - began
            done, disk = done + len(patches), disk + written
        if seconds > PROBE_S or done >= PROBE_PATCHES:
            break
    return Rate(seconds / max(1, done), disk / max(1, done))


def _first(plan: Plan, count: int) -> list[Block]:
    return list(islice(plan.blocks(), count))


def _picture(overview: Overview) -> tuple[int, float]:
    """Bytes of the thumbnail as PNG, and the seconds that writing it takes."""
    began = time.perf_counter()
    size = _png_bytes(overview.thumbnail.rgb)
    return size, time.perf_counter() - began


def _png_bytes(rgb: NDArray[np.uint8]) -> int:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "png")
    return file.tell()
