"""Where a training stands after a whole epoch: last.pt, written whole or not at all."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from wsi_pipeline.base.errors import RecipeError
from wsi_pipeline.base.files import new_file

# Of what differs, so many values are named.
MOST_NAMED = 3
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
    there, here = _flat(found), _flat(wanted)
    keys = [key for key in here | there if there.get(key) != here.get(key)]
    named = [f"{key}: {there.get(key)} instead of {here.get(key)}" for key in keys[:MOST_NAMED]]
    more = f", and {len(keys) - MOST_NAMED} more" if keys[MOST_NAMED:] else ""
    return ", ".join(named) + more


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Each value of dictionaries in dictionaries, by its dotted name."""
    if not isinstance(values, dict):
        return {name or "all": values}
    below = [_flat(value, f"{name}.{key}".removeprefix(".")) for key, value in values.items()]
    return {key: value for part in below for key, value in part.items()}
