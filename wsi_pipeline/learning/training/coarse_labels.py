"""Labels drawn as coarse outlines: what a patch's neighbours say of it, and which labels of a batch to doubt."""

import csv
import logging
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.text import counted, from_spreadsheet
from wsi_pipeline.learning.datasets import LabelledPatches

log = logging.getLogger(__name__)

# Patches of grids are called by where they lie: those of the IDC set, and of `tile-slides --export`.
_PLACE = re.compile(r"_x(\d+)_y(\d+)_class")
# With fewer labelled neighbours at hand nothing is said of a patch.
LEAST_NEIGHBOURS = 3
_AROUND = tuple((dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy)


def labels_with_neighbours(side: LabelledPatches, share: float) -> NDArray[np.float32]:
    """Share of IDC that each patch's target says, float32 [N]: its label, and to a `share` its neighbours' mean label.

    Inside and outside of an outline nothing changes; at its rim, where a line drawn 200 um off turns a label, the
    target says so. A patch with fewer than LEAST_NEIGHBOURS of its eight at hand keeps its label, as does one whose
    name says no place.
    """
    labels = side.labels.astype(np.float32)
    places = [_PLACE.search(name) for name in side.names.tolist()]
    if not share or not any(places):
        return labels
    where = np.array([(int(place[1]), int(place[2])) if place else (-1, -1) for place in places])
    targets = labels.copy()
    for patient in np.unique(side.patients):
        rows = np.flatnonzero((side.patients == patient) & (where[:, 0] >= 0))
        label_at = {tuple(where[row]): labels[row] for row in rows.tolist()}
        if not (pitch := _pitch(where[rows])):
            continue
        for row in rows.tolist():
            x, y = where[row]
            around = [
                label_at[place]
                for dx, dy in _AROUND
                if (place := (x + dx * pitch, y + dy * pitch)) in label_at
            ]
            if len(around) >= LEAST_NEIGHBOURS:
                targets[row] += share * (np.mean(around) - targets[row])
    return targets


def _pitch(where: NDArray[np.int64]) -> int:
    """What lies between neighbours of a grid: the least distance between two columns or rows of these places, [N, 2].

    0 where there are not two.
    """
    steps = [np.diff(np.unique(where[:, axis])) for axis in (0, 1)]
    return int(min((step.min() for step in steps if len(step)), default=0))


def without_doubted(side: LabelledPatches, path: Path) -> LabelledPatches:
    """The side without the patches whose label is doubted, as a CSV with the column `name` names them.

    Raises DataError where it cannot be read, or names none of them.
    """
    doubted = np.isin(side.names, read_names(path))
    if len(side) and doubted.all():
        raise DataError(
            f"{path}: found all {counted(len(side), 'training patch')} doubted; leave some to learn from"
        )
    if not doubted.any():
        first = f", such as {side.names[0]}" if len(side.names) else ""
        raise DataError(
            f"{path}: found none of {counted(len(side), 'training patch')} named in it, expected names of this data"
            f"{first}; take the file that was made for it, or leave `doubted` out"
        )
    log.info(
        "%s: left out of the training %s of %d, whose label is doubted",
        *(path, counted(int(doubted.sum()), "patch"), len(side)),
    )
    return side.taken(np.flatnonzero(~doubted))


def read_names(path: Path) -> list[str]:
    """What the column `name` of a CSV holds. Raises DataError where it cannot be read, or has no such column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as a CSV of doubted patches ({error}); expected one with the column name: write "
            "it anew, or leave `doubted` out"
        ) from error
    if "name" not in columns:
        raise DataError(
            f"{path}: found the columns {', '.join(columns) or 'none'}, expected name; name it so in its first line"
        )
    return [from_spreadsheet((row["name"] or "").strip()) for row in rows]


def mean_of_trusted(losses: torch.Tensor, trusted: float) -> torch.Tensor:
    """Mean of the smallest `trusted` share of a batch's losses, float [N].

    What a network cannot learn with the rest is likelier to be labelled wrong (small-loss selection; Han et al.,
    Co-teaching, NeurIPS 2018; Shen and Sanghavi, ICML 2019). Of one network, where co-teaching has two.
    """
    count = max(round(len(losses) * trusted), 1)
    return torch.topk(losses, count, largest=False, sorted=False).values.mean()
