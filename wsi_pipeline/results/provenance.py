"""What a result was made of: the recipe, and its key."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wsi_pipeline
from wsi_pipeline.slides.slide import Slide

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.model import Model


def recipe_key(recipe: dict[str, Any]) -> str:
    """A short hash of everything that decides a result: slide, scale, options, model."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def store_attributes(recipe: dict[str, Any]) -> dict[str, Any]:
    """What the store says of its making: the recipe in full and its key."""
    return {"version": wsi_pipeline.__version__, **recipe, "recipe": recipe_key(recipe)}


def slide_info(slide: Slide) -> dict[str, Any]:
    """What a recipe must know of a slide: which it is, and at which scale it is taken."""
    return {
        "name": slide.name,
        "fingerprint": slide.fingerprint(),
        "size0": [slide.size0.width, slide.size0.height],
        "mpp": list(slide.mpp),
        "mpp_overridden": slide.mpp_overridden,
    }


def model_info(models: "Sequence[Model]") -> dict[str, Any]:
    """What a recipe must know of what maps a slide: `model`, or of an ensemble its `models` in their order."""
    named = [{"name": model.card.name, "sha256": model.sha256} for model in models]
    return {"model": named[0]} if len(named) == 1 else {"models": named}


def file_sha256(path: Path) -> str:
    """Of the whole file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
