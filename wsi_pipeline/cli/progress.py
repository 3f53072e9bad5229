"""Progress of a batch: bars on a terminal, a line now and then in a log."""

import sys
import time
from typing import NoReturn

from tqdm import tqdm

from wsi_pipeline.base.text import counted, on_one_line

# A log gets a line of progress this often.
LOG_EVERY_S = 30.0


class SlideProgress:
    """Progress through one slide: a bar on a terminal, a line now and then in a log."""

    def __init__(self, name: str):
        self._name = name
        self._bar: tqdm[NoReturn] | None = None
        self._start = self._logged = time.monotonic()

    def __enter__(self) -> "SlideProgress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` patches."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=total, desc=self._name, unit=" patches", leave=False, initial=done)
            self._bar.update(done - self._bar.n)
        elif (now := time.monotonic()) - self._logged > LOG_EVERY_S:
            self._logged = now
            print(
                f"{self._name}: {done:,} of {counted(total, 'patch')}, {now - self._start:.0f} s", flush=True
            )


class Running:
    """A slide that is worked on: how far it is, and how fast."""

    def __init__(self, name: str):
        self.name = name
        self._start = time.monotonic()
        self._first: int | None = None
        self.done, self.total = 0, 0

    def progressed(self, done: int, total: int) -> None:
        """`done` of `total` patches."""
        if self._first is None:  # what an earlier run left does not count as fast
            self._first, self._start = done, time.monotonic()
        self.done, self.total = done, total

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def rate(self) -> float:
        """Patches a second since it was begun."""
        seconds = time.monotonic() - self._start
        return (self.done - (self._first or 0)) / seconds if seconds > 0 else 0.0

    def __str__(self) -> str:
        if not self.total:
            return self.name
        rate = f", {self.rate:,.0f} patches/s" if self.rate else ""
        return f"{self.name} {self.share:.0%}{rate}"


class BatchProgress:
    """Progress across the slides of a batch and within those that are worked on."""

    def __init__(self, total: int):
        self._total = total
        self._ended = self._failed = self._worked = 0
        self._running: dict[str, Running] = {}
        self._bars: dict[str, tqdm[NoReturn]] = {}
        self._start = self._logged = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._all: tqdm[NoReturn] | None = None
        if self._terminal and total > 1:
            self._all = tqdm(total=total, desc="slides", unit=" slides", leave=False, position=0)

    def started(self, name: str) -> None:
        """A slide is begun."""
        self._running[name] = Running(name)

    def progressed(self, name: str, done: int, total: int) -> None:
        """`done` of `total` patches of a slide that was begun."""
        running = self._running.setdefault(name, Running(name))
        running.progressed(done, total)
        if self._terminal:
            if name not in self._bars:
                places = {bar.pos for bar in self._bars.values()}
                free = next(i for i in range(1, len(places) + 2) if -i not in places and i not in places)
                self._bars[name] = tqdm(
                    total=total, desc=name, unit=" patches", leave=False, initial=done, position=free
                )
            self._bars[name].update(done - self._bars[name].n)
        else:
            self._tell()

    def tick(self) -> None:
        """Time has passed: a log gets its line, whether anything has moved or not."""
        if not self._terminal:
            self._tell()

    @property
    def running(self) -> list[str]:
        """The slides that are worked on, with how far each is."""
        return [str(slide) for slide in self._running.values()]

    def left(self, name: str) -> None:
        """A slide is no longer worked on, and not ended."""
        self._running.pop(name, None)
        if bar := self._bars.pop(name, None):
            bar.close()

    def ended(self, name: str, line: str, failed: bool, worked: bool) -> None:
        """A slide is done, failed or, where it was not worked on, skipped; `line` says so."""
        self.left(name)
        self._ended += 1
        self._failed += failed
        self._worked += worked
        text = f"[{self._ended}/{self._total}] {line}"
        if self._all:
            self._all.update(1)
            self._all.set_postfix_str(self._left() + (f", {self._failed} failed" if self._failed else ""))
        self.say(text)

    def say(self, text: str) -> None:
        """A line of its own on stdout, above the bars; whatever names stand in it, it is one line."""
        text = on_one_line(text)
        if self._all or self._bars:
            tqdm.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """No more bars."""
        for bar in [*self._bars.values(), *([self._all] if self._all else [])]:
            bar.close()

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes, if it goes on as it went; None before anything is known."""
        running = sum(slide.share for slide in self._running.values())
        worked = self._worked + running
        if not worked:
            return None
        rest = self._total - self._ended - running
        return (time.monotonic() - self._start) / worked * rest

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._logged > LOG_EVERY_S:
            self._logged = now
            running = "; ".join(self.running) or "none"
            failed = f", {self._failed} failed" if self._failed else ""
            print(
                f"{self._ended} of {counted(self._total, 'slide')}{failed}; working on {running}; {self._left()}",
                flush=True,
            )

    def _left(self) -> str:
        left = self.seconds_left
        return "time left unknown" if left is None else f"about {span(left)} left"


def span(seconds: float) -> str:
    """A length of time for people: '40 s', '12 min', '3 h 20 min', '2 d 4 h'.

    >>> span(40), span(750), span(12_000), span(190_000)
    ('40 s', '12 min', '3 h 20 min', '2 d 4 h')
    """
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
