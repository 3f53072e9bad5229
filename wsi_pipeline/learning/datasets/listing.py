"""What labelled images there are, before any is decoded: one list, whatever the layout on the disk."""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.learning.datasets.scale import DataScale

By: TypeAlias = Literal["patient", "slide", "image"]
UNLABELLED = -1
# Decoding ahead: so many images a task, so that handing them over costs nothing.
IMAGES_A_TASK = 64


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a data set, in one order; arrays and tuples are as long as there are images."""

    # Which layout it is, in words for people.
    layout: str
    folder: Path
    # What messages call each image: its path under `folder`, or its place in an array or a sheet.
    names: tuple[str, ...]
    # int8: 1 positive (IDC, malignant), 0 negative, -1 unlabelled.
    labels: NDArray[np.int8]
    # Names; of sets without patients, each image's own name.
    patients: NDArray[np.str_]
    # What `patients` tells apart. Numbers of a set by image flatter: one patient may stand on both sides.
    by: By
    # The part (train, val, test ...) in which the set itself puts the image; "" where it has none.
    parts: NDArray[np.str_]
    # Decodes one image, uint8 [height, width, 3] RGB of any size; raises DataError. Called from threads.
    load: Callable[[int], NDArray[np.uint8]]
    # Changes with any image's name, size or time of change; "" where decoding is no work worth keeping.
    fingerprint: str = ""
    # The scale of the images; none where nothing says it.
    scale: DataScale | None = None

    def __len__(self) -> int:
        return len(self.names)


def named_by_pattern(listing: Listing, pattern: str) -> Listing:
    """The listing with the patients that a regular expression finds in each image's name.

    The patient is the group `patient`, else the first group, else all that matched. Raises DataError where the
    pattern is none, or fits a name not at all.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"patient_pattern {pattern!r}: no regular expression ({error})") from error
    group = "patient" if "patient" in expression.groupindex else min(expression.groups, 1)
    found = [expression.search(name) for name in listing.names]
    if unfit := [
        name for name, match in zip(listing.names, found, strict=True) if not (match and match[group])
    ]:
        raise DataError(
            f"{listing.folder}: patient_pattern {pattern!r} finds no patient in {len(unfit)} of {len(found)} "
            f"names, {unfit[0]} for one; correct it in the config"
        )
    patients = np.array([match[group] for match in found if match])
    return replace(listing, patients=patients, by="patient")


def decode_each(
    listing: Listing, indices: NDArray[np.int64], threads: int | None = None
) -> Iterator[tuple[int, NDArray[np.uint8] | DataError]]:
    """Each image of `indices`, or the error in its place, in their order, decoded ahead on threads."""

    def decode(task: NDArray[np.int64]) -> list[tuple[int, NDArray[np.uint8] | DataError]]:
        return [(index, _load(listing, index)) for index in task.tolist()]

    threads = threads or min(16, os.cpu_count() or 1)
    tasks = (indices[start : start + IMAGES_A_TASK] for start in range(0, len(indices), IMAGES_A_TASK))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting = [pool.submit(decode, task) for task in islice(tasks, 2 * threads)]
        while waiting:
            done = waiting.pop(0).result()
            waiting += [pool.submit(decode, task) for task in islice(tasks, 1)]
            yield from done


def _load(listing: Listing, index: int) -> NDArray[np.uint8] | DataError:
    try:
        return listing.load(index)
    except DataError as error:
        return error
