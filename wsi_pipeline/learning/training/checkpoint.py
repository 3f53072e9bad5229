"""Where a training stands after a whole epoch: last.pt, written whole or not at all."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from wsi_pipeline.base.errors import RecipeError
from wsi_pipeline.base.files import new_file

REMEDY = "give another --out, or remove it to start from the beginning"


def load_checkpoint(path: Path, recipe: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, on the device; None where there is no such file.

    Raises RecipeError when it is no checkpoint, or one of another recipe (options, data).
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        found = state["recipe"]
    except (RuntimeError, EOFError, UnpicklingError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: expected a checkpoint of this train-model; {REMEDY}") from error
    for part, wanted in recipe.items():
        if found.get(part) != wanted:
            raise RecipeError(
                f"{path}: found a training with other {part} ({_difference(found.get(part), wanted)}); {REMEDY}"
            )
    return state


def save_checkpoint(path: Path, recipe: dict[str, Any], state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) and the recipe it is of; a reader sees the old or the new.

    Raises OutputError.
    """
    with new_file(path) as file:
        try:
            torch.save({"recipe": recipe, **state}, file)
        except (
            RuntimeError
        ) as error:  # torch's own, of a file that could not be written: why is in its context
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _difference(found: Any, wanted: Any) -> str:
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return f"{found} instead of {wanted}"
    keys = [key for key in wanted | found if found.get(key) != wanted.get(key)]
    first = keys[0]
    more = f", and {len(keys) - 1} more" if keys[1:] else ""
    return f"{first}: {found.get(first)} instead of {wanted.get(first)}{more}"
