"""Trained models that a network learns from, beside the labels."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.learning.training.options import TrainOptions
from wsi_pipeline.models.architectures.slide_condition import SlideConditioned, Slides
from wsi_pipeline.models.model import Model, idc_probability, load_model

# Quarter turns, from 4 on mirrored too; two of them differ most, and the first four tell most of it.
VIEWS = (0, 2, 5, 7, 1, 3, 4, 6)


def load_teachers(
    options: TrainOptions, device: torch.device, half: torch.dtype = torch.bfloat16
) -> tuple[Model, ...]:
    """The models that `options.teachers` names, on the device, ready to be asked under autocast to `half`.

    Raises ConfigError when one sees patches of another size or scale, ModelError when one cannot be loaded.
    """
    teachers = tuple(load_model(name) for name in options.teachers)
    for name, teacher in zip(options.teachers, teachers, strict=True):
        card = teacher.card
        if (card.patch_px, card.mpp) != (options.patch_px, options.mpp):
            raise ConfigError(
                f"teachers: {name} sees {card.patch_px} px at {card.mpp:g} um/px; the config says "
                f"{options.patch_px} px at {options.mpp:g} um/px: take teachers of the same patches"
            )
        teacher.network.to(device)
        if options.bf16:
            # Once: autocast would do it in each forward pass, as it keeps only what is being trained.
            for layer in teacher.network.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.to(half)
    return teachers


def teachers_answer(
    teachers: Sequence[Model], patches: torch.Tensor, views: int, slides: Slides | None = None
) -> torch.Tensor:
    """What teachers say of uint8 patches [N, S, S, 3] in the mean: probability of IDC, float32 [N].

    `views`, 1 to 8, are how many of the turned and mirrored views of each patch they are shown. Those that hear of
    their slide hear of all that the batch shows of each of `slides`.
    """
    everything = slides and Slides(
        slides.which, torch.ones_like(slides.counted), torch.ones_like(slides.known)
    )
    answers = []
    for way in VIEWS[:views]:
        view = patches.rot90(way % 4, dims=(1, 2))
        view = view.flip(1) if way >= 4 else view
        for teacher in teachers:
            told = (everything,) if everything and isinstance(teacher.network, SlideConditioned) else ()
            answers.append(idc_probability(teacher.network, teacher.card, view, *told))
    return torch.stack(answers).float().mean(0)


def describe_teachers(options: TrainOptions) -> list[dict[str, str]]:
    """Name and SHA-256 of each teacher, for the card."""
    found = [load_model(name) for name in options.teachers]
    return [
        {"file": Path(name).name, "sha256": t.sha256} for name, t in zip(options.teachers, found, strict=True)
    ]
