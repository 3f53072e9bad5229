"""How weights move: optimiser, learning rate, moving average, half precision."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.learning.training.options import PlateauOptions, TrainOptions

_OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
}


def make_optimiser(network: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser that the options name, over all weights of the network."""
    # Decay pulls on the kernels; pulling on norms and biases would only blur them.
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    make: Any = _OPTIMISERS[options.optimiser]
    try:
        optimiser: torch.optim.Optimizer = make(groups, lr=options.learning_rate, **options.optimiser_options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimiser '{options.optimiser}' cannot be made with {options.optimiser_options}: {error}; "
            "correct optimiser_options in the config"
        ) from error
    return optimiser


def learning_rate(epoch: float, options: TrainOptions, scores: Sequence[float] = ()) -> float:
    """The learning rate at a moment, in epochs since the start: warm-up, then as the schedule says.

    `scores` are what the epochs so far reached, higher being better; the schedule 'plateau' goes by them.
    """
    restarts = options.restarts if options.schedule == "cosine" else ()
    edges = [0, *(restart for restart in restarts if restart < options.epochs), options.epochs]
    start = max(edge for edge in edges[:-1] if edge <= epoch)
    length = min(edge for edge in edges[1:] if edge > start) - start
    if epoch - start < options.warmup_epochs:
        return options.learning_rate * (epoch - start + 0.01) / (options.warmup_epochs + 0.01)
    if options.schedule == "constant":
        return options.learning_rate
    if options.schedule == "plateau":
        return options.learning_rate * plateau_factor(scores, options.plateau)
    done = (epoch - start - options.warmup_epochs) / max(length - options.warmup_epochs, 1e-9)
    return options.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def plateau_factor(scores: Sequence[float], options: PlateauOptions) -> float:
    """What the learning rate is multiplied by after epochs of these scores.

    >>> plateau_factor([0.7, 0.8, 0.8, 0.79], PlateauOptions(patience=2, factor=0.5))
    0.5
    """
    best, waited, factor = -math.inf, 0, 1.0
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited == options.patience:
            factor, waited = max(factor * options.factor, options.least), 0
    return factor


def epochs_since_best(scores: Sequence[float]) -> int:
    """How many epochs have passed since the first of the highest score.

    >>> epochs_since_best([0.7, 0.8, 0.8, 0.79])
    2
    """
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """How the moving average takes in new weights; it keeps less at first, when they are far from good."""

    @torch.no_grad()
    def update(averages: list[torch.Tensor], currents: list[torch.Tensor], count: torch.Tensor) -> None:
        steps = int(count)
        keep = min(decay, (1 + steps) / (10 + steps))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - keep)
            else:
                average.copy_(current)  # counters of batches

    return update


def half_precision(device: torch.device) -> torch.dtype:
    """The half precision to train in there: bfloat16, or float16 on a GPU that computes no bfloat16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def loss_scaler(device: torch.device, options: TrainOptions) -> torch.amp.GradScaler:
    """Keeps small gradients above float16's least; does nothing where float16 is not used."""
    wanted = options.bf16 and half_precision(device) is torch.float16
    return torch.amp.GradScaler(device.type, enabled=wanted)
