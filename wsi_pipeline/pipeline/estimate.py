"""What a batch would come to, before it is run: patches, time and disk, from an overview of each slide and a probe.

The overview is the real one. The probe does the real work on the first patches of the first slide that has any, for a
few seconds; time and disk of the other slides follow from its rates.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.pipeline.config import InferConfig, TileConfig
from wsi_pipeline.pipeline.identity import map_key_of, patches_report, wanted_map, wanted_patches
from wsi_pipeline.pipeline.infer import why_draw_map
from wsi_pipeline.pipeline.maps import choose_map
from wsi_pipeline.pipeline.run import inside_of
from wsi_pipeline.pipeline.slide_jobs import InferJob, TileJob, check_entry
from wsi_pipeline.pipeline.tile import whose_slide, why_tile_again
from wsi_pipeline.results.provenance import file_sha256
from wsi_pipeline.results.run_folder import Standing, standing_of
from wsi_pipeline.results.store import SlideStore
from wsi_pipeline.slides.annotations.cell_labels import drawn_on_slide, inside_on_slide
from wsi_pipeline.slides.annotations.files import labels_beside
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.export_draw import export_recipe
from wsi_pipeline.tiling.grid import Block, Plan
from wsi_pipeline.tiling.inside import within
from wsi_pipeline.tiling.overview import Overview, make_overview
from wsi_pipeline.tiling.patch_labels import label_patches
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
    """Of one slide: its patches and blocks, the seconds that it takes one worker, and the bytes it leaves.

    `standing`: what an earlier run left of it; where no patch is left to do, nothing else is estimated.
    """

    patches: int
    blocks: int
    seconds: float
    disk_bytes: int
    standing: Standing = Standing.NEW


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
        out: OutPath,
        standing: Callable[[Slide, SlideEntry], Standing],
        check_plan: Callable[[Slide, Plan], None] | None = None,
        inside: Path | None = None,
    ):
        """`cell_bytes` are those of a map's cell in all arrays; `pictures` how many the size of a thumbnail.

        Without `on_patches` no patch is read. `standing` says what an earlier run left of a slide in `out`,
        `check_plan` raises what a run would once the slide's patches are planned. `inside`: as of RunOptions.
        """
        self._out, self._standing, self._check_plan, self._inside = out, standing, check_plan, inside
        self._config, self._cell_bytes, self._pictures = config, cell_bytes, pictures
        self._on_patches = on_patches
        self._rate: Rate | None = None

    def __call__(self, entry: SlideEntry) -> Estimate:
        """Raises a WsiError when the slide cannot be worked on."""
        check_entry(entry, self._out)
        began = time.perf_counter()
        slide = open_slide(entry.path, entry.mpp, entry.name, mpp_if_missing=entry.mpp_if_missing)
        standing = self._standing(slide, entry)
        if standing in (Standing.DONE, Standing.TO_DRAW):
            return Estimate(0, 0, 0.0, 0, standing)
        overview = make_overview(slide, self._config.overview, self._config.grid)
        if drawn := inside_of(self._inside, slide):
            overview = within(overview, inside_on_slide(drawn, slide, self._config.annotations), slide.mpp)
        if self._check_plan:
            self._check_plan(slide, overview.plan)
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
        return Estimate(patches, blocks, fixed + rate.seconds * patches, int(disk), standing)


def estimator_of_tiling(job: TileJob) -> Estimator:
    """Estimates `tile-slides`."""
    config, folder = job.config, job.annotations

    def outlines(slide: Slide) -> Path | None:
        return labels_beside(folder, slide.path, slide.name) if folder else None

    def standing(slide: Slide, entry: SlideEntry) -> Standing:
        found = outlines(slide)
        wanted = wanted_patches(slide, config, file_sha256(found) if found else None)
        folder = job.out / slide.name
        exported = export_recipe(config.export, whose_slide(entry)) if job.export else None

        def why(store: SlideStore) -> str | None:
            return why_tile_again(folder, patches_report(map_key_of(store), slide, config, exported))

        standing = standing_of(folder, wanted.differences, job.overwrite, why)
        return Standing.BEGUN if standing is Standing.TO_DRAW else standing  # there may be patches to export

    def check_labels(slide: Slide, plan: Plan) -> None:
        if found := outlines(slide):
            label_patches(plan, drawn_on_slide(found, slide, config.annotations), config.annotations)

    def export_patches(patches: NDArray[np.uint8]) -> int:
        return sum(_png_bytes(patch) for patch in patches)

    on_patches = export_patches if job.export else None
    return Estimator(config, 0, 1, on_patches, job.out, standing, check_labels)


def estimator_of_inference(job: InferJob) -> Estimator:
    """Estimates `infer-slide`. Raises as `InferJob.load`."""
    config, classifier = job.load(0)

    def standing(slide: Slide, _: SlideEntry) -> Standing:
        models, folder = classifier.models, job.out / slide.name
        shown = choose_map(models, config)

        def why(store: SlideStore) -> str | None:
            return why_draw_map(folder, store, slide, models, (config, shown))

        drawn = inside_of(job.inside, slide)
        differs = wanted_map(slide, models, config, shown, file_sha256(drawn) if drawn else None).differences
        return standing_of(folder, differs, job.overwrite, why)

    def classify(patches: NDArray[np.uint8]) -> int:
        classifier.scores_and_spread(patches)
        return 0

    maps = 2 if len(classifier.models) > 1 or (config.context and classifier.models[0].context) else 1
    return Estimator(config, 4 * maps + 1, 3, classify, job.out, standing, inside=job.inside)


def _probe(slide: Slide, plan: Plan, on_patches: OnPatches) -> Rate:
    """Work on patches for some seconds; the first batch, which warms up, is not counted."""
    read_box, done, disk = plan.grid.reader(slide), 0, 0
    seconds = 0.0
    for warm, block in enumerate([*_first(plan, 1), *_first(plan, 8)]):
        began = time.perf_counter()
        cut = cut_patches(read_box(block.read_box), block, plan.grid)
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
