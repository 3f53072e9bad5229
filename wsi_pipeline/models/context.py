"""From what each patch says alone to what it says among its neighbours: a small learned step on the map.

The step looks at a cell through ever wider rings around it: weighted means of log odds and of probability
over the neighbours, and how much they differ. A few small perceptrons, averaged, correct a narrow mean
by what the rings say. Or it leaves that mean as it is, and only calibrates it: the Gaussian, which has nothing to
learn and nothing to learn wrongly. Means are over scored cells alone (normalised convolution; Knutsson and Westin, CVPR
1993), so that a value under a cell that was not scored never counts, and a map of any size will do. The rings
are round: turning or flipping the map turns or flips the result.

No torch here: the step is trained by train_context.py and applied wherever a map is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit, logit

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.types import FloatMap

Floats: TypeAlias = NDArray[np.float64]

# A calibration beyond these makes every probability 0, 1 or one half.
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
LogOddsShift = Annotated[float, Field(ge=-50, le=50)]

# Rings end where their weight has fallen to a hundredth.
TRUNCATE = 3.0


@options
class RingOptions:
    """How wide the step looks; all widths are standard deviations, on a card in patches."""

    sigmas: tuple[Annotated[float, Field(gt=0)], ...] = (0.7, 1.0, 1.5, 2.5, 4.0, 8.0, 16.0)
    """Of the means of log odds and of probability. 16 patches of the IDC set are 3.2 mm: how much of the section's
    tissue looks like carcinoma. In cross-validation it raised F1 from 0.848 to 0.859."""

    spread_sigmas: tuple[Annotated[float, Field(gt=0)], ...] = (1.0, 2.5)
    """Of the standard deviations of log odds: a sheet of carcinoma is even, a duct here and there is not."""

    base_sigma: Annotated[float, Field(gt=0)] = 1.0
    """Of the mean that the perceptrons correct, and of the Gaussian. Over 29 whole mounts, each scored by a network
    that had not seen its patient, wider means of patches of 200 um lose small foci (docs/results.md)."""

    base_of: Literal["log_odds", "probability"] = "log_odds"
    """Of what that mean is. Of log odds, one sure patch outweighs several that are not; of probability, no patch
    counts for more than one."""

    most_log_odds: Annotated[float, Field(gt=0)] = 6.0
    """Log odds of a patch alone are held within this, lest one sure patch outvote all its neighbours."""


@options
class ContextCard:
    """What must be known of a model's context step, a part of the model's card."""

    kind: Literal["rings", "gaussian"] = "rings"
    """Which step: rings, the perceptrons; gaussian, the mean of width `options.base_sigma` alone."""

    options: RingOptions = Field(default_factory=RingOptions)
    """What it sees of a patch's neighbours."""

    temperature: Temperature = 1.0
    """Calibration after the step: log odds are divided by it."""

    log_odds_shift: LogOddsShift = 0.0
    """Calibration, after the temperature: added to the log odds."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A cell of the map after the step counts as IDC from this probability on."""

    training: dict[str, Any] = Field(default_factory=dict)
    """The slides trained on, and how."""

    metrics: dict[str, Any] = Field(default_factory=dict)
    """What the step reached, beside the map before it."""


@dataclass(frozen=True, eq=False)
class ContextStep:
    """A context step ready to use.

    `weights`, float32, of m perceptrons of c channels and h hidden values: mean [c], std [c], weight1
    [m, c, h], bias1 [m, h], weight2 [m, h, h], bias2 [m, h], weight3 [m, h], bias3 [m]; a Gaussian has none. Raises
    ModelError where their shapes do not fit the card.
    """

    card: ContextCard
    weights: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        found = {name: tuple(values.shape) for name, values in self.weights.items()}
        members, hidden = (*found.get("bias1", ()), 0, 0)[:2]
        learned = self.card.kind == "rings"
        expected = weight_shapes(channel_count(self.card.options), hidden, members) if learned else {}
        if found != expected or (learned and not members):
            raise ModelError(
                f"the weights of the context step do not fit the card: found {found}, expected {expected}; "
                f"take weights and card of one training, or train the step again (train-context)"
            )


def weight_shapes(channels: int, hidden: int, members: int) -> dict[str, tuple[int, ...]]:
    """The arrays of a step of so many perceptrons, by name."""
    return {
        "mean": (channels,),
        "std": (channels,),
        "weight1": (members, channels, hidden),
        "bias1": (members, hidden),
        "weight2": (members, hidden, hidden),
        "bias2": (members, hidden),
        "weight3": (members, hidden),
        "bias3": (members,),
    }


def channel_count(options: RingOptions) -> int:
    """Values that the step sees of each cell."""
    return 2 + 2 * len(options.sigmas) + len(options.spread_sigmas)


def apply_context(patch_probability: FloatMap, step: ContextStep, patch_cells: int = 1) -> FloatMap:
    """The map after the step: float32 [row, column], probability of IDC, NaN where `patch_probability` is.

    patch_probability: float32 [row, column], calibrated, each patch by itself, NaN where not scored.
    patch_cells: cells along a patch. Above 1 (overlapping patches), cells a patch apart make a map of their
    own, as coarse as those the step was trained on; the step is applied to each of these maps by itself.
    """
    result = np.full(patch_probability.shape, np.nan, np.float32)
    for y in range(patch_cells):
        for x in range(patch_cells):
            before = patch_probability[y::patch_cells, x::patch_cells]
            scored = ~np.isnan(before)
            if scored.any():
                odds = step_log_odds(log_odds_of(before, step.card.options), step)
                probability = expit(odds / step.card.temperature + step.card.log_odds_shift)
                result[y::patch_cells, x::patch_cells][scored] = probability
    return result


def log_odds_of(probability: FloatMap, options: RingOptions) -> Floats:
    """Log odds of probabilities, held within the options' bounds; NaN stays NaN."""
    most = options.most_log_odds
    odds: Floats = logit(np.clip(probability.astype(np.float64), expit(-most), expit(most)))
    return odds


def step_log_odds(log_odds: Floats, step: ContextStep) -> Floats:
    """Log odds [n] after the step, not yet calibrated, of the scored cells of a map [row, column]."""
    if step.card.kind == "gaussian":
        return base_log_odds(log_odds, step.card.options)
    base, rings = ring_features(log_odds, step.card.options)
    w = {name: values.astype(np.float64) for name, values in step.weights.items()}
    rings = (rings - w["mean"]) / w["std"]  # [n, c]
    corrections = []
    for m in range(len(w["bias3"])):
        hidden = np.maximum(_times(rings, w["weight1"][m]) + w["bias1"][m], 0)  # [n, h]
        hidden = np.maximum(_times(hidden, w["weight2"][m]) + w["bias2"][m], 0)  # [n, h]
        corrections.append(_times(hidden, w["weight3"][m]) + w["bias3"][m])  # [n]
    return np.asarray(base + np.mean(corrections, axis=0))


def ring_features(log_odds: Floats, options: RingOptions) -> tuple[Floats, Floats]:
    """What the step sees of each scored cell, in row order: the base [n], and the rings [n, channels].

    log_odds: [row, column], NaN where not scored.
    """
    scored = ~np.isnan(log_odds)
    odds = np.where(scored, log_odds, 0.0)
    chance = np.where(scored, expit(odds), 0.0)

    def mean(values: Floats, sigma: float) -> Floats:
        return neighbour_mean(values, scored, sigma)[scored]

    channels = [odds[scored], *(mean(odds, sigma) for sigma in options.sigmas)]
    channels += [chance[scored], *(mean(chance, sigma) for sigma in options.sigmas)]
    for sigma in options.spread_sigmas:
        variance = mean(odds**2, sigma) - mean(odds, sigma) ** 2
        channels.append(np.sqrt(np.maximum(variance, 0)))
    return base_log_odds(log_odds, options), np.stack(channels, axis=1)


def base_log_odds(log_odds: Floats, options: RingOptions) -> Floats:
    """The mean of `base_of` around each scored cell [n], as log odds, in row order; log_odds: [row, column]."""
    scored = ~np.isnan(log_odds)
    if options.base_of == "log_odds":
        return neighbour_mean(log_odds, scored, options.base_sigma)[scored]
    mean = neighbour_mean(expit(log_odds), scored, options.base_sigma)[scored]
    # Rounding must not carry a mean of 1s beyond what each may be.
    most = options.most_log_odds
    odds: Floats = logit(np.clip(mean, expit(-most), expit(most)))
    return odds


def neighbour_mean(values: Floats, scored: NDArray[np.bool_], sigma: float) -> Floats:
    """Gaussian-weighted mean over the scored cells around each scored cell; 0 where not scored.

    values: [row, column]; what it holds where not scored does not count. sigma: in cells.
    """
    weight = gaussian_filter(scored.astype(np.float64), sigma, mode="constant", truncate=TRUNCATE)
    total = gaussian_filter(np.where(scored, values, 0.0), sigma, mode="constant", truncate=TRUNCATE)
    mean: Floats = np.divide(total, weight, out=np.zeros(values.shape), where=scored)
    return mean


def _times(rows: Floats, weights: Floats) -> Floats:
    # Not by BLAS: its last bits change with the number of threads, and a map's must not.
    return np.asarray(np.einsum("nc,c...->n...", rows, weights))
