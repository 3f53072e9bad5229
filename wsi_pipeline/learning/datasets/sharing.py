"""Several processes of one machine hold one data set between them: each decodes its share, all map one file.

Without this, each of eight processes that train on eight GPUs would decode everything and keep a copy of it.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError


class Readers(Protocol):
    """The processes of one machine that read one data set; all of them make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""

    @property
    def count(self) -> int:
        """How many they are."""

    def all_say(self, value: Any) -> list[Any]:
        """What each of them says, by rank; returns when all have said it."""


@dataclass(frozen=True)
class OneReader:
    """One process alone."""

    rank: int = 0
    count: int = 1

    def all_say(self, value: Any) -> list[Any]:
        """What this one says."""
        return [value]


ONE_READER = OneReader()


def share_of(total: int, readers: Readers) -> slice:
    """This process's share of `total` rows: side by side, so that each file is opened by few.

    >>> share_of(10, OneReader(1, 3))
    slice(3, 6, None)
    """
    return slice(total * readers.rank // readers.count, total * (readers.rank + 1) // readers.count)


def shared_zeros(shape: Sequence[int], folder: Path, readers: Readers) -> NDArray[np.uint8]:
    """Zeros, uint8 of that shape, that all readers write into and see: one reader's are plain memory.

    Those of several are a file in `folder` that every reader has mapped and that no longer has a name, so that
    nothing is left of it when the last one ends, however it ends. Raises DataError where it cannot be made.
    """
    if readers.count == 1:
        return np.zeros(shape, np.uint8)
    place = _make_file(int(np.prod(shape)), folder) if readers.rank == 0 else None
    place = readers.all_say(place)[0]
    if isinstance(place, DataError):
        raise place
    array: NDArray[np.uint8] = np.memmap(place, np.uint8, "r+", shape=tuple(shape))
    readers.all_say(None)  # every reader has it open
    if readers.rank == 0:
        Path(place).unlink()
    return array


def _make_file(size: int, folder: Path) -> str | DataError:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, place = tempfile.mkstemp(dir=folder, prefix=".shared.")
        try:
            # Its room is taken now: a mapped file that finds the disk full later ends the process with a signal.
            os.posix_fallocate(handle, 0, size)
        except BaseException:
            Path(place).unlink()
            raise
        finally:
            os.close(handle)
    except OSError as error:
        return DataError(
            f"{folder}: patches that the processes of this machine share cannot be put there "
            f"({error.strerror or error}); make room for {size / 1e9:.1f} GB, or set XDG_CACHE_HOME to another folder"
        )
    return place
