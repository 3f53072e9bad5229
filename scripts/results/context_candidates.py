"""Ways from each patch's score to what its neighbours make of it, that are tried beside those that ship.

Each takes mounts with their group (steps for a group are chosen on the others) and gives log odds of all evaluated
cells, one mount after another.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import convolve
from scipy.special import expit
from torch import nn

from wsi_pipeline.learning.datasets.labelled_slides import LabelledSlide
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.models.context import RingOptions, base_log_odds, log_odds_of

Floats = NDArray[np.float64]

COUPLINGS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)
ROUNDS = 20
# Neighbours across a corner are farther.
NEIGHBOURS = np.array([[0.5**0.5, 1, 0.5**0.5], [1, 0, 1], [0.5**0.5, 1, 0.5**0.5]])

MEAN = RingOptions(base_sigma=1.0, base_of="probability")
# Members are averaged; each is trained on so many batches of so many mounts.
MEMBERS, STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 3, 150, 6, 0.003, 0.1, 0.2


def random_field(slides: Sequence[LabelledSlide], groups: NDArray[np.int_]) -> Floats:
    """A conditional random field of two labels over the grid of scores, by mean field.

    The coupling is the one of COUPLINGS with the least cross-entropy on the other groups. Mean field: Koller and
    Friedman, Probabilistic Graphical Models, 2009, section 11.5.
    """
    labels = [(slide.labels[slide.evaluated] == 1).astype(int) for slide in slides]
    by_coupling = [
        [_mean_field(slide.patch_probability[0], coupling)[slide.evaluated] for slide in slides]
        for coupling in COUPLINGS
    ]
    chosen: list[Floats] = []
    for i, group in enumerate(groups):
        others = np.flatnonzero(groups != group)
        losses = [
            _cross_entropy(
                np.concatenate([odds[k] for k in others]), np.concatenate([labels[k] for k in others])
            )
            for odds in by_coupling
        ]
        chosen.append(by_coupling[int(np.argmin(losses))][i])
    return np.concatenate(chosen)


def _mean_field(probability: NDArray[np.float32], coupling: float) -> Floats:
    alone = log_odds_of(probability, RingOptions())
    scored = ~np.isnan(alone)
    odds = alone = np.where(scored, alone, 0.0)
    for _ in range(ROUNDS):
        agreement = convolve(np.where(scored, 2 * expit(odds) - 1, 0.0), NEIGHBOURS, mode="constant")
        odds = 0.5 * odds + 0.5 * (alone + coupling * agreement)  # damped, lest it swing
    return odds


def _cross_entropy(odds: Floats, labels: NDArray[np.int_]) -> float:
    logits = np.stack([np.zeros_like(odds), odds], axis=1)
    probability = metrics.calibrated(logits, metrics.fit_calibration(logits, labels)).clip(1e-6, 1 - 1e-6)
    return float(-np.where(labels == 1, np.log(probability), np.log1p(-probability)).mean())


class UNet(nn.Module):
    """Two scales over the grid; corrects the mean of the neighbours, and begins as that mean."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 3, padding=1)
        self.coarse = nn.Conv2d(8, 16, 3, padding=1)
        self.joined = nn.Conv2d(24, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 1, 1)
        self.dropout = nn.Dropout2d(DROPOUT)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Log odds [n, rows, columns] of maps [n, 3, rows, columns]: alone, mean of the neighbours, 1 where scored."""
        fine = torch.relu(self.fine(maps))
        coarse = torch.relu(self.coarse(self.dropout(F.avg_pool2d(fine, 2, ceil_mode=True))))
        wide = F.interpolate(coarse, fine.shape[-2:])
        joined = torch.relu(self.joined(self.dropout(torch.cat([fine, wide], dim=1))))
        odds: torch.Tensor = maps[:, 1] + self.last(joined)[:, 0]
        return odds


def u_net(slides: Sequence[LabelledSlide], groups: NDArray[np.int_]) -> Floats:
    """A small U-Net over log odds (Ronneberger 2015), strongly held back, trained on the mounts of other groups."""
    maps = [_channels(slide.patch_probability[0]) for slide in slides]
    found: dict[int, Floats] = {}
    for group in np.unique(groups):
        rest = np.flatnonzero(groups != group).tolist()
        networks = [
            _trained([maps[i] for i in rest], [slides[i].labels for i in rest], seed)
            for seed in range(MEMBERS)
        ]
        for i in np.flatnonzero(groups == group).tolist():
            with torch.inference_mode():
                odds = torch.stack([network(maps[i][None])[0] for network in networks]).mean(dim=0)
            found[i] = odds.numpy().astype(np.float64)[slides[i].evaluated]
    return np.concatenate([found[i] for i in range(len(slides))])


def _channels(probability: NDArray[np.float32]) -> torch.Tensor:
    """Float32 [3, rows, columns]."""
    alone = log_odds_of(probability, MEAN)
    scored = ~np.isnan(alone)
    mean = np.zeros_like(alone)
    mean[scored] = base_log_odds(alone, MEAN)
    return torch.from_numpy(np.stack([np.nan_to_num(alone), mean, scored]).astype(np.float32))


def _trained(maps: list[torch.Tensor], labels: list[NDArray[np.uint8]], seed: int) -> UNet:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = UNet().train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, STEPS)
    known = [torch.from_numpy(values.astype(np.int64)) for values in labels]
    for _ in range(STEPS):
        losses = []
        for i in random.choice(len(maps), min(BATCH, len(maps)), replace=False).tolist():
            turns, flipped = int(random.integers(4)), bool(random.integers(2))
            seen, said = (torch.rot90(values, turns, (-2, -1)) for values in (maps[i], known[i]))
            if flipped:
                seen, said = seen.flip(-1), said.flip(-1)
            counted = (seen[2] > 0) & ((said == 0) | (said == 1))
            if counted.any():
                odds = network(seen[None])[0][counted]
                losses.append(F.binary_cross_entropy_with_logits(odds, said[counted].float()))
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network.eval()
