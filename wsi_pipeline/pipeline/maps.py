"""Which map a run shows, and at which scale: the model's card and the config together decide."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wsi_pipeline.base.errors import ConfigError, ScaleError
from wsi_pipeline.models.context import ContextStep
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.tiling.grid import GridOptions

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    from wsi_pipeline.models.model import Model


# The kinds of map, in the words of pictures and summary.
PATCH_BY_PATCH = "each patch alone"

IN_CONTEXT = "each patch among its neighbours (context step)"

MEAN_OF_MODELS = "each patch alone, mean of {} models"


@dataclass(frozen=True)
class ShownMap:
    """Which map a run shows: its kind in words, the step that makes it, and the threshold that belongs to it."""

    kind: str
    step: ContextStep | None
    threshold: float
    warnings: tuple[str, ...] = ()
    registered: tuple[str, ...] = ()
    """By model, NAME@VERSION of the registry, by which it was asked for; empty where it was not."""


def choose_map(models: "Sequence[Model]", config: InferConfig) -> ShownMap:
    """The map that `config` and the model's card ask for; its threshold is the config's, else the card's.

    Several models show the mean of what each says of each patch alone, and the threshold is the mean of their
    cards': a context step is trained on its own network's scores, and fits no mean.

    That probabilities of a package of other people's are not calibrated is a warning.

    Patches with gaps between them are shown alone, with a warning: their neighbours are not where those were
    that the step was trained on. `config.grid` is settled, as `grid_for_model` does.
    """
    registered = tuple(model.registered for model in models)
    warnings = [
        f"{model.card.name}: its probabilities are as its network gives them, not calibrated"
        + ("" if config.delineate.threshold else ", and the threshold was chosen on nothing")
        for model in models
        if model.card.is_package
    ]
    if len(models) > 1:
        cards = [model.card.threshold for model in models]
        threshold = config.delineate.threshold or sum(cards) / len(cards)
        kind = MEAN_OF_MODELS.format(len(models))
        return ShownMap(kind, None, threshold, tuple(warnings), registered)
    (model,) = models
    grid, step = config.grid, model.context if config.context else None
    if step and grid.stride_px and grid.patch_px and grid.stride_px > grid.patch_px:
        step = None
        warnings.append(
            f"each patch is shown alone: the model's context step needs patches side by side or overlapping, "
            f"stride_px {grid.stride_px} leaves gaps between patches of {grid.patch_px} px"
        )
    own = step.card.threshold if step else model.card.threshold
    threshold = own if config.delineate.threshold is None else config.delineate.threshold
    return ShownMap(IN_CONTEXT if step else PATCH_BY_PATCH, step, threshold, tuple(warnings), registered)


def grid_for_model(grid: GridOptions, patch_px: int, mpp: float) -> GridOptions:
    """The grid at the model's patch size and scale: the model card rules.

    Its `cell_um` is settled as a stride. Raises ScaleError when the config's grid says another, ConfigError for a cell
    that is no whole part of a patch.
    """
    if grid.patch_px not in (None, patch_px) or (grid.mpp and abs(grid.mpp / mpp - 1) > 1e-6):
        raise ScaleError(
            f"the config's grid says {grid.patch_px or patch_px} px at {grid.mpp or mpp:g} um/px; the model "
            f"card expects {patch_px} px at {mpp:g} um/px; leave grid.patch_px and grid.mpp out of the "
            f"config, or take a model of that scale"
        )
    if grid.cell_um is not None:
        grid = replace(grid, stride_px=_stride_for(grid, patch_px, mpp), cell_um=None)
    return replace(grid, patch_px=patch_px, mpp=mpp)


def _stride_for(grid: GridOptions, patch_px: int, mpp: float) -> int:
    """The distance between patches, in pixels, that makes cells of grid.cell_um."""
    assert grid.cell_um is not None
    stride = round(grid.cell_um / mpp)
    if stride < 1 or abs(stride * mpp / grid.cell_um - 1) > 1e-6 or patch_px % stride:
        whole = [divisor * mpp for divisor in range(patch_px, 0, -1) if patch_px % divisor == 0]
        listed = ", ".join(f"{size:g}" for size in whole[:6])
        raise ConfigError(
            f"cells of {grid.cell_um:g} um: expected a whole part of the model's patch of {patch_px * mpp:g} um: "
            f"{listed}"
        )
    if grid.stride_px not in (None, stride):
        raise ConfigError(
            f"cells of {grid.cell_um:g} um want stride_px {stride}, found {grid.stride_px}; give one of the two"
        )
    return stride
