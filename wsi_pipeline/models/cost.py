"""What a network costs: its parameters, and the arithmetic of one patch."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Of one network at one patch size."""

    # Weights that training moves.
    parameters: int
    # Millions of floating point operations a patch, two for a multiplication and its addition; convolutions
    # and matrix products only, of which a network is made.
    mflop: float


def network_cost(network: nn.Module, patch_px: int) -> Cost:
    """The cost of one patch of `patch_px` pixels a side; the network is left as it was."""
    parameter = next(network.parameters())
    training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, patch_px, patch_px, device=parameter.device))
    network.train(training)
    return Cost(
        sum(p.numel() for p in network.parameters() if p.requires_grad), counter.get_total_flops() / 1e6
    )
