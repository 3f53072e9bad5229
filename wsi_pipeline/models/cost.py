"""What a network costs: its parameters, and the arithmetic of one patch."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Cost:
    """Of one network at one patch size."""

    # Weights that training moves.
    parameters: int
    # Millions of floating point operations a patch, two for a multiplication and its addition; convolutions
    # and linear layers only, of which a network is made.
    mflop: float


def network_cost(network: nn.Module, patch_px: int) -> Cost:
    """The cost of one patch of `patch_px` pixels a side; the network is left as it was.

    Not by torch's own FlopCounterMode, which gives the same and first imports the compiler: a second of every start.
    """
    parameter = next(network.parameters())
    training, operations = network.training, 0

    def counted(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal operations
        assert isinstance(layer.weight, torch.Tensor)
        operations += 2 * out.numel() * layer.weight[0].numel()

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(counted) for layer in layers]
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, patch_px, patch_px, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)
    return Cost(sum(p.numel() for p in network.parameters() if p.requires_grad), operations / 1e6)
