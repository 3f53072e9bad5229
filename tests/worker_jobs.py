"""Jobs for tests of many kinds of workers: the item's name says what becomes of it."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import DeviceLostError, ModelError
from wsi_pipeline.base.types import Progress
from wsi_pipeline.jobs import Busy


@dataclass(frozen=True)
class Doubling:
    """Doubles numbers; items of other kinds meet with the fates that their names say."""

    folder: Path

    def open(self, worker: int) -> "Doubler":
        with (self.folder / "opened").open("a") as file:
            file.write(f"{worker} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
        return Doubler(self.folder)


class Doubler:
    def __init__(self, folder: Path):
        self.folder = folder
        self.lost = False

    def __call__(self, item: str, report: Progress) -> int:
        fate, _, number = item.rpartition(" ")
        with (self.folder / f"{item}.tries").open("a") as file:
            file.write(f"{os.getpid()}\n")
        tries = len((self.folder / f"{item}.tries").read_text().splitlines())
        report(0, 2)
        if fate == "kills" or (fate == "kills once" and tries == 1):
            time.sleep(0.1)  # until it is heard that it was begun
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "busy once" and tries == 1:
            raise Busy("someone has it")
        if fate == "exits":
            os._exit(3)
        if fate == "sleeps":
            time.sleep(600)
        if fate == "meets another":  # who works at the same time, elsewhere
            until = time.monotonic() + 60
            while len(list(self.folder.glob("meets another *.tries"))) < 2:
                assert time.monotonic() < until, "nobody else came"
                time.sleep(0.02)
        if fate == "waits for the file":
            while not (self.folder / "go").exists():
                time.sleep(0.02)
                report(1, 2)
        if fate == "loses its GPU" or (fate == "loses its GPU once" and tries == 1):
            self.lost = True
        if self.lost:  # whatever it is asked for, from then on
            raise DeviceLostError(
                "cuda:0 does no more work for this process: CUDA error: illegal memory access"
            )
        if fate == "raises":
            raise OSError(28, "No space left on device", f"/full/{number}")
        if fate == "raises oddly":
            raise OddError(1, 2)
        report(2, 2)
        return 2 * int(number)

    def prefetch(self, items: Sequence[str]) -> None:
        with (self.folder / "prefetched").open("a") as file:
            file.writelines(f"{item}\n" for item in items[1:2])

    def close(self) -> None:
        with (self.folder / "closed").open("a") as file:
            file.write(f"{os.getpid()}\n")


class OddError(Exception):
    """One that does not survive pickling."""

    def __init__(self, first: int, second: int):
        super().__init__(f"odd {first} {second}")


@dataclass(frozen=True)
class Refusing:
    """Cannot be opened."""

    def open(self, worker: int) -> Any:
        raise ModelError("no such model")


@dataclass(frozen=True)
class FailingStart:
    """Kills the worker that opens it."""

    def open(self, worker: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Ears:
    """Remembers what it heard."""

    heard: list[tuple[Any, ...]] = field(default_factory=list)

    def started(self, item: str, attempt: int, worker: str) -> None:
        self.heard.append(("started", item, attempt))

    def progressed(self, item: str, done: int, total: int) -> None:
        self.heard.append(("progressed", item, done, total))

    def lost(self, item: str, attempt: int, reason: str) -> None:
        self.heard.append(("lost", item, attempt, reason))

    def waits(self, item: str, reason: str) -> None:
        self.heard.append(("waits", item, reason))

    def stands(self, reason: str) -> None:
        self.heard.append(("stands", reason))
