"""How weights move: optimiser, learning rate, moving average, half precision."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.learning.training.options import PlateauOptions, TrainOptions
from wsi_pipeline.models.model import has_bf16

_OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
}

# Those with a fused form on a GPU in every torch that we take.
_FUSED_ON_CUDA = ("adamw", "adam", "sgd")
# Which form computes, which decides nothing of what comes out: of the device, not of the checkpoint.
_FORMS = ("fused", "foreach", "capturable")


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
    device = next(network.parameters()).device
    # One kernel a step on a GPU, which counts steps there; torch's default loops over weights in groups.
    wanted = device.type == "cuda" and options.optimiser in _FUSED_ON_CUDA
    fused = {"fused": True} if wanted and not {*_FORMS} & {*options.optimiser_options} else {}
    try:
        optimiser: torch.optim.Optimizer = make(
            groups, lr=options.learning_rate, **fused | options.optimiser_options
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimiser '{options.optimiser}' cannot be made with {options.optimiser_options}: {error}; "
            "correct optimiser_options in the config"
        ) from error
    return optimiser


def resume_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put the state of a checkpoint, of this device or another, into the optimiser."""
    groups = [
        found | {form: own[form] for form in _FORMS if form in own}
        for found, own in zip(state["param_groups"], optimiser.param_groups, strict=True)
    ]
    optimiser.load_state_dict(state | {"param_groups": groups})


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


class MovingAverage:
    """The moving average of a network's weights and buffers; it keeps less at first, when they are far from good.

    How many steps it has seen is counted on the host: a count on the device would have to be read at each step.
    """

    def __init__(self, network: nn.Module, decay: float):
        # The averaged network, of the same devices and memory format.
        self.module = copy.deepcopy(network)
        self._decay, self._steps = decay, 0
        self._pairs = list(zip(_tensors(self.module), _tensors(network), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's weights as they are now."""
        first, self._steps = self._steps == 0, self._steps + 1
        # Counters of batches are copied, and so is everything at the first step.
        copied = [pair for pair in self._pairs if first or not pair[0].is_floating_point()]
        averaged = [pair for pair in self._pairs if not first and pair[0].is_floating_point()]
        if copied:
            torch._foreach_copy_([mean for mean, _ in copied], [now for _, now in copied])
        if averaged:
            keep = min(self._decay, self._steps / (self._steps + 9))
            torch._foreach_lerp_([mean for mean, _ in averaged], [now for _, now in averaged], 1 - keep)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors and count, under the names that torch's AveragedModel gives them."""
        state = {f"module.{name}": values for name, values in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self._steps), **state}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        self._steps = int(state["n_averaged"])
        self.module.load_state_dict(
            {
                name.removeprefix("module."): values
                for name, values in state.items()
                if name.startswith("module.")
            }
        )


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    return [*(p.detach() for p in network.parameters()), *network.buffers()]


def half_precision(device: torch.device) -> torch.dtype:
    """The half precision to train in there: bfloat16, or float16 on a GPU that computes no bfloat16."""
    if device.type == "cuda" and not has_bf16(device):
        return torch.float16
    return torch.bfloat16


def loss_scaler(device: torch.device, options: TrainOptions) -> torch.amp.GradScaler:
    """Keeps small gradients above float16's least; does nothing where float16 is not used."""
    wanted = options.bf16 and half_precision(device) is torch.float16
    return torch.amp.GradScaler(device.type, enabled=wanted)
