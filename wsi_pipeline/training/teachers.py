"""Trained models that a network learns from, beside the labels."""

from pathlib import Path

import torch

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.model import Model, load_model
from wsi_pipeline.training.options import TrainOptions


def load_teachers(options: TrainOptions, device: torch.device) -> tuple[Model, ...]:
    """The models that `options.teachers` names, on the device.

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
    return teachers


def describe_teachers(options: TrainOptions) -> list[dict[str, str]]:
    """Name and SHA-256 of each teacher, for the card."""
    found = [load_model(name) for name in options.teachers]
    return [
        {"file": Path(name).name, "sha256": t.sha256} for name, t in zip(options.teachers, found, strict=True)
    ]
