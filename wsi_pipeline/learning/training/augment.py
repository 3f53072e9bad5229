"""A batch of patches as other sections, turns, stains and scanners would have shown it."""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F

from wsi_pipeline.base.options import Field, options
from wsi_pipeline.learning.training.looks import LookOptions

# Optical density of haematoxylin, eosin and a third, orthogonal enough to invert: one row a stain, R, G, B.
# Ruifrok and Johnston, Anal Quant Cytol Histol 2001; 23: 291.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))

Share = Annotated[float, Field(ge=0, le=1)]


@options
class AugmentOptions:
    """How far a training patch may wander from what was scanned. All zero leaves patches as they are."""

    turns: bool = True
    """Flipped and turned by quarters: a section has no upper side."""

    flips: bool = False
    """Where there are no turns: flipped left to right and up to down, never turned."""

    resampled: Share = 0.5
    """Share of the patches resampled: turned, scaled, sheared, shifted. The rest stay sharp."""

    angle_deg: Annotated[float, Field(ge=0, le=180)] = 180.0
    """Turned by up to so many degrees either way."""

    scale: Share = 0.15
    """Scaled by up to this factor either way: a slide's scale is known to a few percent, nuclei vary more."""

    shear_deg: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Sheared by up to so many degrees either way."""

    shift_px: Annotated[float, Field(ge=0)] = 4.0
    """Shifted by up to so many pixels: a map's grid falls anywhere on the tissue."""

    stain_strength: Share = 0.3
    """Each stain's strength changes by up to this share."""

    stain_tint: Share = 0.03
    """Each stain gains or loses up to this optical density everywhere."""

    colour: Share = 0.03
    """Each of R, G, B gains or loses up to this optical density: the scanner's lamp and white balance."""

    brightness: Share = 0.04
    """All of R, G, B together gain or lose up to this optical density."""


class Views(NamedTuple):
    """How each of N patches is to be seen, drawn on the host so that every device draws alike."""

    # float32 [N, 3, 3]: what each patch's log light, R, G, B, is multiplied by.
    mix: torch.Tensor
    # float32 [N, 3, 1]: what is added to it then.
    add: torch.Tensor
    # How each eighth of the patches is turned: quarter turns, from 4 on flipped too. None: not at all.
    ways: tuple[int, ...] | None
    # float32 [n, 2, 3]: where the pixels of the first n patches come from, as `affine_grid` takes it. None: n is 0.
    affine: torch.Tensor | None


class SlideStains(NamedTuple):
    """How the slides of a batch are stained and lit, the same for all patches of one."""

    # float32 [slides, 3]: what the strength of each stain is multiplied by.
    strength: torch.Tensor
    # float32 [slides, 3]: what the optical density of R, G, B is multiplied by.
    density: torch.Tensor
    # float32 [slides, 3]: optical density that R, G, B gain.
    light: torch.Tensor


def draw_slide_stains(slides: int, looks: LookOptions, generator: torch.Generator) -> SlideStains:
    """Stains and light of so many slides; `generator` is one of the CPU."""
    strength = torch.exp(looks.stain_spread * torch.randn((slides, 3), generator=generator))
    density = torch.exp(looks.density_spread * torch.randn((slides, 3), generator=generator))
    return SlideStains(strength, density, looks.light * _uniform((slides, 3), generator))


def draw_views(
    count: int,
    patch_px: int,
    options: AugmentOptions,
    generator: torch.Generator,
    slides: SlideStains | None = None,
) -> Views:
    """Views of `count` patches of `patch_px` pixels a side; `generator` is one of the CPU.

    `slides` are the stains of each patch's slide, all arrays [count, 3]; none: only patches differ.
    """
    mix, add = _draw_stains(count, options, generator, slides)
    ways = _draw_turns(generator, quarters=options.turns) if options.turns or options.flips else None
    resampled = round(options.resampled * count)
    affine = _draw_affine(resampled, patch_px, options, generator) if resampled else None
    return Views(mix, add, ways, affine)


def augmented(patches: torch.Tensor, views: Views) -> torch.Tensor:
    """Another view of each uint8 patch [N, S, S, 3], float32 of values 0 to 255; views lie on the same device.

    The batch is taken to be in random order: its first part is resampled, each eighth of it is turned another way.
    """
    values = _restained(patches.permute(0, 3, 1, 2).contiguous(), views)  # [N, 3, S, S]
    if views.ways:
        values = _turned(values, views.ways)
    if views.affine is not None:
        count = len(views.affine)
        values[:count] = _resampled(values[:count], views.affine)
    return values.permute(0, 2, 3, 1)


def _draw_turns(generator: torch.Generator, quarters: bool) -> tuple[int, ...]:
    ways: list[int] = torch.randperm(8, generator=generator).tolist()
    # Without quarters: flipped or turned by half: left to right, up to down, both.
    return tuple(ways if quarters else (way & ~1 for way in ways))


def _turned(images: torch.Tensor, ways: Sequence[int]) -> torch.Tensor:
    turned = torch.empty_like(images)
    for way, into, part in zip(ways, turned.tensor_split(8), images.tensor_split(8), strict=True):
        some = part.rot90(way % 4, dims=(2, 3))
        into.copy_(some.flip(2) if way >= 4 else some)
    return turned


def _draw_stains(
    n: int, options: AugmentOptions, generator: torch.Generator, slides: SlideStains | None
) -> tuple[torch.Tensor, torch.Tensor]:
    stains = torch.tensor(STAINS)
    stains = stains / stains.norm(dim=1, keepdim=True)
    strength = 1 + options.stain_strength * _uniform((n, 3), generator)
    if slides:
        strength = strength * slides.strength
    # To stain amounts, each scaled, and back to R, G, B: one 3x3 matrix a patch, for columns of R, G, B.
    mix = (torch.linalg.inv(stains) @ torch.diag_embed(strength) @ stains).transpose(1, 2)  # [N, 3, 3]
    if slides:
        mix = slides.density[:, :, None] * mix
    add = options.stain_tint * _uniform((n, 3), generator) @ stains  # [N, 3]
    add = (
        add + options.colour * _uniform((n, 3), generator) + options.brightness * _uniform((n, 1), generator)
    )
    if slides:
        add = add + slides.light
    # log10 of the options to natural: one exp a pixel is what this step costs.
    return mix, -math.log(10) * add[:, :, None]


def _restained(patches: torch.Tensor, views: Views) -> torch.Tensor:
    log = torch.baddbmm(views.add, views.mix, _log_light(patches.flatten(2)))  # [N, 3, S * S]
    return log.exp_().mul_(256).sub_(1).clamp_(0, 255).view(patches.shape)


def _log_light(values: torch.Tensor) -> torch.Tensor:
    """log((v + 1) / 256), the negative natural optical density, float32, of uint8 values of any shape."""
    if values.device.type == "cpu":
        # A look-up is cheaper than a logarithm here; on a GPU, its int32 index would only take memory.
        return torch.log((torch.arange(256) + 1) / 256)[values.int()]
    return values.float().add_(1).div_(256).log_()


def _draw_affine(n: int, size: int, options: AugmentOptions, generator: torch.Generator) -> torch.Tensor:
    angle = math.radians(options.angle_deg) * _uniform((n,), generator)
    zoom = torch.exp(math.log1p(options.scale) * _uniform((n,), generator))
    shift = 2 * options.shift_px / size * _uniform((n, 2), generator)  # in half sides, as grids count
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    right, down = -sin, cos  # where the second axis points
    if options.shear_deg:
        lean = torch.tan(math.radians(options.shear_deg) * _uniform((n,), generator))
        right, down = lean * cos - sin, lean * sin + cos
    return torch.stack([cos, right, shift[:, 0], sin, down, shift[:, 1]], dim=1).view(n, 2, 3)


def _resampled(images: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    # Mirrored at the edges: more of the same tissue, where a fill colour would be a cue.
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return 2 * torch.rand(shape, generator=generator) - 1  # [-1, 1)
