"""What the benchmark times: a slide, a scale, so many of its patches, and the pieces of infer-slide on them."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.base.errors import WsiError
from wsi_pipeline.base.options import options_from_dict
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.device import reader_threads
from wsi_pipeline.inference.engines.batching import BatchRunner
from wsi_pipeline.inference.engines.choice import Chosen
from wsi_pipeline.inference.stain_check import sample_patches
from wsi_pipeline.models.architectures.registry import core_of
from wsi_pipeline.models.model import Model, load_model, save_model
from wsi_pipeline.models.slide_input import SlideInput
from wsi_pipeline.models.stain import patch_densities
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import fill_store
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.results.store import PatchTable, SlideStore, StoreLayout, create_store
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.overview import make_overview
from wsi_pipeline.tiling.patches import patch_positions, read_blocks

# Level 0 of every slide here counts as 40x: patches of 0.25 and of 4 um/px are then pixels of a level as they are,
# which is all that a loop of read_region reads.
MPP0 = 0.25


@dataclass(frozen=True, eq=False)
class Case:
    """One slide at one scale, planned: the patches of its first blocks."""

    name: str
    path: Path
    plan: Plan
    config: InferConfig
    model: Model

    @property
    def patches(self) -> int:
        """Patches of the plan."""
        return int(self.plan.scored.sum())


@dataclass(frozen=True, eq=False)
class Setting:
    """A way to compute the network, by the name that the command line gave it, and its classifier for one case."""

    name: str
    classifier: Classifier


def model_at(mpp: float, work: Path) -> Model:
    """The shipped network as if trained at `mpp`, on stains as they are and deaf to slides: as a plain loop has it."""
    shipped = load_model("idc_default")
    options = {
        name: value for name, value in shipped.card.architecture_options.items() if name != "slide_condition"
    }
    card = replace(
        shipped.card,
        name=f"idc_default_at_{mpp:g}",
        mpp=mpp,
        stain_normalisation=0.0,
        architecture_options=options,
    )
    path = work / f"{card.name}.safetensors"
    save_model(path, core_of(shipped.network), card)
    return load_model(path)


def make_case(name: str, path: Path, model: Model, most_patches: int | None) -> Case:
    """The case of the first blocks that hold `most_patches` or more; None: of all."""
    config = InferConfig()
    grid = replace(config.grid, read_level="coarsest")  # what a plain loop reads
    config = replace(config, grid=grid_for_model(grid, model.card.patch_px, model.card.mpp))
    slide = open_slide(path, MPP0)
    return Case(
        name,
        path,
        first_blocks(slide, make_overview(slide, config.overview, config.grid).plan, most_patches),
        config,
        model,
    )


def settings_of(names: list[str], case: Case, device: torch.device) -> Iterator[Setting | str]:
    """Each setting that this installation can compute, or why it cannot.

    A name is a precision, 'bf16', or an engine and a precision, 'openvino:int8'.
    """
    for name in names:
        engine, _, precision = name.rpartition(":")
        options = {"precision": precision} | ({"engine": engine} if engine else {})
        try:
            chosen = options_from_dict(type(case.config.classify), options, name)
            classifier = _adapted(Classifier([case.model], device, chosen), case)
            classifier.scores_and_spread(
                np.zeros((2, case.model.card.patch_px, case.model.card.patch_px, 3), np.uint8)
            )
        except WsiError as error:
            yield f"{name}: {error}"
        else:
            yield Setting(name, classifier)


def without_network(case: Case) -> Setting:
    """As if a device computed the network in no time: what reading, cutting and writing can carry."""
    classifier = Classifier([case.model], torch.device("cpu"), case.config.classify)
    classifier.members[0]._chosen = _NO_NETWORK
    return Setting("no network", classifier)


class _OnePixel:
    """For a score, the red of one pixel of each patch."""

    name, precision, parallel_batches, batch_sizes = "no network", "fp32", 2, (2048,)

    def probabilities(self, batch: NDArray[np.uint8], _: SlideInput) -> NDArray[np.float32]:
        return batch[:, 0, 0, 0] / np.float32(255)


_NO_NETWORK = Chosen(BatchRunner(_OnePixel()), 0.0, 0)


def looked_at(case: Case) -> Slide:
    """The case's slide, newly opened, as infer-slide has it before it classifies: some patches were read already."""
    slide = open_slide(case.path, MPP0)
    sample_patches(slide, case.plan)
    return slide


def end_to_end(case: Case, slide: Slide, setting: Setting, store: SlideStore) -> None:
    """The classify stage of infer-slide: read, cut, classify, write to the store, which is a new one."""
    fill_store(store, slide, case.plan, setting.classifier, case.config)


def map_of(store: SlideStore) -> NDArray[np.float32]:
    """What was written, float32 [row, column]."""
    return np.asarray(store.array(f"{store.scores}/0"))


def decode(case: Case, slide: Slide, device: torch.device) -> int:
    """Read and cut alone, without a network, on as many threads as before one; the patches that were read.

    Nothing is kept, as infer-slide keeps nothing: memory that is touched for the first time takes as long as decoding.
    """
    threads = reader_threads(case.config.classify, device)
    return sum(len(patches) for patches in _decoded(case, slide, threads))


def patches_in_memory(case: Case, most: int) -> NDArray[np.uint8]:
    """The case's first patches, uint8 [n, S, S, 3], at most so many."""
    kept: list[NDArray[np.uint8]] = []
    for patches in _decoded(case, looked_at(case), 1):
        kept.append(patches)
        if sum(map(len, kept)) >= most:
            break
    return np.concatenate(kept)[:most].copy()


def new_store(case: Case, work: Path) -> SlideStore:
    """A store to fill, in place of an earlier one."""
    path = work / "bench.zarr"
    shutil.rmtree(path, ignore_errors=True)
    table = PatchTable(*patch_positions(case.plan), label=None)
    no_tissue, plane = np.zeros((1, 1), np.uint8), case.plan.grid.map_plane
    layout = StoreLayout(case.plan, (MPP0, MPP0), no_tissue, plane, table, ("heatmap",))
    return create_store(path, {"map_recipe": {}}, layout)


def first_blocks(slide: Slide, plan: Plan, most: int | None) -> Plan:
    """The plan with the patches of its first blocks alone, as many blocks as hold `most`, and none over the edge."""
    size, grid = slide.size_on(plan.grid.plane), plan.grid
    rows, columns = np.indices(plan.kept.shape)
    inside = (columns * grid.stride_px + grid.patch_px <= size.width) & (
        rows * grid.stride_px + grid.patch_px <= size.height
    )
    plan = replace(plan, kept=plan.kept & inside)
    if most is None:
        return plan
    kept, taken = np.zeros_like(plan.kept), 0
    for block in plan.blocks():
        if taken >= most:
            break
        kept[block.patches[:, 1], block.patches[:, 0]] = True
        taken += len(block.patches)
    return replace(plan, kept=kept)


def _adapted(classifier: Classifier, case: Case) -> Classifier:
    """The classifier for the case's slide, as the pipeline makes it."""
    sample = sample_patches(open_slide(case.path, MPP0), case.plan)
    return classifier.adapted(patch_densities(sample), sample)


def _decoded(case: Case, slide: Slide, threads: int) -> Iterator[NDArray[np.uint8]]:
    for _, cut in read_blocks(case.plan.blocks(), case.plan.grid, case.plan.grid.reader(slide), threads):
        yield cut.rgb
