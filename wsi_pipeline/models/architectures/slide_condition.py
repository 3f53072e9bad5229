"""What a slide looks like, told to a network's last layer.

Within a slide the ranking of patches is nearly right; its level differs from patient to patient. So the mean of the
network's own last features over a sample of the slide's patches goes through a small perceptron, which scales the
features, sharpens or softens the logits, and shifts that of IDC: a linear modulation of features by a condition (FiLM;
Perez et al., AAAI 2018), the condition being the set's own mean (Zaheer et al., Deep Sets, NeurIPS 2017).

What comes out for a slide is nothing but another last layer (`SlideHead`), so that every engine can take it as an
input. All of it is bounded, and it fades out where a slide lies far from all training slides: far away, and where
nothing is known of a slide, the last layer is the network's own.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

# A mean over fewer patches says more of these patches than of the slide: no condition is taken from it.
LEAST_PATCHES = 8
# More say no more: a slide is sampled at so many patches.
MOST_PATCHES = 256
# How far the condition may go: features scaled by 1 +- SCALE, the logit by e ** +-TEMPERATURE and shifted by SHIFT.
SCALE, TEMPERATURE, SHIFT = 0.75, 0.5, 2.5
# It counts fully up to a distance of 1 from the training slides, and from this distance on not at all.
UNHEARD_FROM = 1.25
# A slide is as far as the farthest usual training slide where this share of them, each unknown to the rest, is nearer:
# the farthest few of a hundred may be odd ones themselves.
USUAL_SHARE = 0.98
# Training slides are told from the rest in so many groups.
GROUPS = 20
# Fewer slides say nothing of how features go together, nor can some of them be told from the rest.
LEAST_SLIDES = 10
# No distance is beyond this one, whatever the numbers.
FARTHEST = 1e6
# What a file says of a network is not believed without bounds: it could fill the memory.
MOST_HIDDEN = 2048


class SlideHead(NamedTuple):
    """A last layer for one slide."""

    # float32 [classes, features].
    weight: NDArray[np.float32]
    # float32 [classes].
    bias: NDArray[np.float32]


class Slides(NamedTuple):
    """Which slide each of N patches of a batch is of, for a network in training."""

    # int64 [N], from 0 to the count of slides less 1.
    which: torch.Tensor
    # float32 [N], which patches a slide's mean is taken over: 1, others 0.
    counted: torch.Tensor
    # float32 [slides], 0 where nothing is to be known of a slide, 1 elsewhere.
    known: torch.Tensor


class SlideConditioned(nn.Module):
    """A network whose last layer hears of the slide.

    `core` gives features, [N, features], by `features(x)` and has its last layer, linear, as `head`. Called without
    slides, logits [N, classes] are the core's own. `idc` is the place of IDC among the classes.
    """

    def __init__(self, core: nn.Module, hidden: int = 32, idc: int = 1) -> None:
        super().__init__()
        if not 1 <= hidden <= MOST_HIDDEN:
            raise ValueError(f"found slide_condition.hidden {hidden}, expected 1 to {MOST_HIDDEN}")
        self.core = core
        self.idc = idc
        head: nn.Linear = core.head  # type: ignore[assignment]
        width = head.in_features
        last = nn.Linear(hidden, width + 2)
        # Starts as no condition at all.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.condition = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), last)
        self.known = KnownSlides(width)

    def forward(self, x: torch.Tensor, slides: Slides | None = None) -> torch.Tensor:
        """Logits [N, classes] of normalised patches [N, 3, H, W]; those of a slide conditioned on its mean."""
        features = self.core.features(x)  # type: ignore[operator]
        if slides is None:
            return self.core.head(features)  # type: ignore[operator, no-any-return]
        features = features.float()  # [N, C]; means and bounds want more than half precision
        means = slide_means(features, slides)  # [slides, C]
        scale, temperature, shift = self._modulation(means, slides.known)
        logits = self.core.head(features * scale[slides.which])  # type: ignore[operator]
        logits = logits.float() * temperature[slides.which, None]
        return logits + shift[slides.which, None] * self._of_idc(logits)  # type: ignore[no-any-return]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the last layer is given, [N, C]."""
        return self.core.features(x)  # type: ignore[operator, no-any-return]

    def distance(self, means: torch.Tensor) -> torch.Tensor:
        """How far slides of these mean features, [slides, C], lie from the training slides: 1 is as far as they go."""
        return self.known.distance(means)

    @torch.inference_mode()
    def head_of(self, features: NDArray[np.float32]) -> SlideHead | None:
        """The last layer for a slide of which these are features of some patches, [n, C]; None: the network's own."""
        if len(features) < LEAST_PATCHES:
            return None
        head: nn.Linear = self.core.head  # type: ignore[assignment]
        means = torch.from_numpy(features.mean(axis=0, dtype=np.float64)).float()[None].to(head.bias.device)
        scale, temperature, shift = self._modulation(means, torch.ones(1, device=head.bias.device))
        bias = head.bias.float() * temperature + shift * self._of_idc(head.bias)
        return SlideHead((head.weight.float() * scale * temperature).cpu().numpy(), bias.cpu().numpy())

    @torch.inference_mode()
    def distance_of(self, features: NDArray[np.float32]) -> float | None:
        """As `distance`, of a slide of which these are features of some patches, [n, C]; None of too few."""
        if len(features) < LEAST_PATCHES:
            return None
        means = torch.from_numpy(features.mean(axis=0, dtype=np.float64)).float()[None]
        return float(self.distance(means.to(self.known.centre.device))[0])

    def own_head(self) -> SlideHead:
        """The network's own last layer, for slides of which nothing is known."""
        head: nn.Linear = self.core.head  # type: ignore[assignment]
        return SlideHead(head.weight.detach().float().cpu().numpy(), head.bias.detach().float().cpu().numpy())

    @torch.inference_mode()
    def know_slides(self, means: torch.Tensor) -> None:
        """Remember what the training slides look like, by their mean features [slides, C]."""
        self.known.learn(means)

    def _modulation(
        self, means: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale of the features [slides, C], of the logits [slides], and shift [slides]; 1, 1, 0 where not known."""
        # Nothing is learned from the distance: while a network is trained, no slide is far.
        unheard_from = self.known.unheard_from
        nearness = (unheard_from - self.distance(means.detach())) / (unheard_from - 1)
        trusted = known * nearness.clamp(0, 1)  # [slides]
        said = self.condition(means).float() * trusted[:, None]  # [slides, C + 2]
        return (
            1 + SCALE * torch.tanh(said[:, 2:]),
            torch.exp(TEMPERATURE * torch.tanh(said[:, 0])),
            SHIFT * torch.tanh(said[:, 1] / SHIFT),
        )

    def _of_idc(self, logits: torch.Tensor) -> torch.Tensor:
        one = torch.zeros(logits.shape[-1], device=logits.device)
        one[self.idc] = 1
        return one


class WithHead(nn.Module):
    """A core whose last layer is an input: logits [N, classes] of patches [N, 3, H, W], weight and bias."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """As a linear layer of that weight, [classes, C], and bias, [classes], gives them of the features."""
        return F.linear(self.core.features(x).to(weight.dtype), weight, bias)  # type: ignore[operator]


class Features(nn.Module):
    """What a core gives its last layer, [N, C], of patches [N, 3, H, W]: for engines that leave that layer out."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features."""
        return self.core.features(x)  # type: ignore[operator, no-any-return]


def with_slide_inputs(network: nn.Module) -> nn.Module:
    """The network as engines take it: with its last layer as inputs, where it hears of its slide."""
    return WithHead(network.core) if isinstance(network, SlideConditioned) else network


def head_inputs(network: nn.Module, head: SlideHead | None) -> tuple[NDArray[np.float32], ...]:
    """What `with_slide_inputs` of the network takes beside patches: weight and bias, or nothing."""
    return tuple(head or network.own_head()) if isinstance(network, SlideConditioned) else ()


class KnownSlides(nn.Module):
    """The training slides' mean features: their mean, how they vary together, how far the farthest usual one lies.

    Features go together, and a slide of another laboratory breaks that before any of them leaves its own range. So the
    distance is that of Mahalanobis (Lee et al., NeurIPS 2018, tell inputs unlike the training data by it).
    """

    centre: torch.Tensor
    whitening: torch.Tensor
    far: torch.Tensor
    unheard_from: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        # [width, width]: this times a deviation from the centre has a variance of 1 in each direction, by the
        # covariance that is taken for the slides'.
        self.register_buffer("whitening", torch.eye(width))
        # While a network is trained, no slide is far.
        self.register_buffer("far", torch.tensor(1e9))
        self.register_buffer("unheard_from", torch.tensor(UNHEARD_FROM))

    def distance(self, means: torch.Tensor) -> torch.Tensor:
        """Of mean features [slides, C], [slides]: the root mean square of their whitened deviations, over `far`."""
        apart = _distance(means, self.centre, self.whitening) / self.far.clamp_min(1e-3)
        return apart.nan_to_num(nan=FARTHEST).clamp_max(FARTHEST)

    def learn(self, means: torch.Tensor) -> None:
        """Take in the mean features of the training slides, [slides, C], two at the least."""
        self.unheard_from.fill_(UNHEARD_FROM)
        if len(means) < LEAST_SLIDES:
            self.centre.copy_(means.mean(dim=0))
            self.whitening.copy_(torch.diag(1 / means.std(dim=0).clamp_min(1e-3)))
            self.far.copy_(_distance(means, self.centre, self.whitening).max().clamp_min(1e-3))
            return
        centre, whitening = _centre_and_whitening(means)
        self.centre.copy_(centre)
        self.whitening.copy_(whitening)
        # Slides that a covariance was estimated from lie nearer by it than any others do.
        groups = min(GROUPS, len(means))
        group = torch.arange(len(means), device=means.device) % groups
        apart = [
            _distance(means[group == one], *_centre_and_whitening(means[group != one]))
            for one in range(groups)
        ]
        self.far.copy_(torch.cat(apart).quantile(USUAL_SHARE).clamp_min(1e-3))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As any module; of weights saved when features were told apart one by one, by their `spread` [C].

        With those a slide was unheard from a distance of 2 on, and stays so.
        """
        spread, whitening = state.get(prefix + "spread"), prefix + "whitening"
        if spread is not None and spread.shape == self.centre.shape and whitening not in state:
            state[whitening] = torch.diag(1 / state.pop(prefix + "spread").clamp_min(1e-3))
            state.setdefault(prefix + "unheard_from", torch.tensor(2.0))
        state.setdefault(prefix + "unheard_from", torch.tensor(UNHEARD_FROM))
        super()._load_from_state_dict(state, prefix, *rest)


def _distance(means: torch.Tensor, centre: torch.Tensor, whitening: torch.Tensor) -> torch.Tensor:
    return F.linear(means - centre, whitening).square().mean(dim=1).sqrt()


def _centre_and_whitening(means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean [C] and the whitening [C, C] of slides' mean features [slides, C]."""
    values = means.double()
    centre, spread = values.mean(dim=0), values.std(dim=0).clamp_min(1e-3)
    covariance = shrunk_covariance((values - centre) / spread)
    # Of slides that are all alike nothing would be left to divide by.
    covariance.diagonal().add_(1e-3)
    root = torch.linalg.cholesky(covariance)
    whitening = torch.linalg.solve_triangular(root, torch.diag(1 / spread), upper=False)
    return centre.to(means.dtype), whitening.to(means.dtype)


def shrunk_covariance(values: torch.Tensor) -> torch.Tensor:
    """The covariance [C, C] of values [N, C] whose mean is 0, drawn towards a multiple of the identity.

    As far as it takes for the least expected error: some hundred slides say little of the covariance of as many
    features. Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, Journal of
    Multivariate Analysis 88 (2004).
    """
    count, width = values.shape
    covariance = values.T @ values / count
    mean = covariance.diagonal().mean()
    apart = covariance - mean * torch.eye(width, dtype=values.dtype, device=values.device)
    error = (values.square().T @ values.square() / count - covariance.square()).sum() / count
    shrinkage = (error / apart.square().sum().clamp_min(1e-12)).clamp(0, 1)
    return covariance - shrinkage * apart


def slide_means(features: torch.Tensor, slides: Slides) -> torch.Tensor:
    """Mean over each slide's counted patches, [slides, C], of features [N, C]."""
    sums = features.new_zeros(len(slides.known), features.shape[1])
    sums = sums.index_add(0, slides.which, features * slides.counted[:, None])
    counts = features.new_zeros(len(slides.known)).index_add(0, slides.which, slides.counted)
    return sums / counts.clamp_min(1)[:, None]
