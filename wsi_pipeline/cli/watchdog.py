"""A batch watched by the clock: how far it is every 30 s, and a line once nothing has moved for a minute.

What a batch waits for may never come: a read from a mount that hangs, a worker that is stopped or paused. Whoever
waits hears nothing of it, so a thread of its own looks.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# Looked at this often.
LOOK_EVERY_S = 1.0
# A batch in which nothing has moved for so long says what it waits for, and again each time it is twice as long.
STILL_S = 60.0
# So long after it was asked to stop a process ends, whatever it waits for.
GRACE_S = 10.0


class Watchdog:
    """A thread that looks at a batch until it is closed."""

    def __init__(self, tick: Callable[[], None], still: Callable[[float], None]):
        """`tick` is called every second, `still` with the seconds for which `moved` was not called."""
        self._tick, self._still = tick, still
        self._moved = time.monotonic()
        self._next = STILL_S
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def moved(self) -> None:
        """Something has happened."""
        self._moved, self._next = time.monotonic(), STILL_S

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join(LOOK_EVERY_S)

    def _watch(self) -> None:
        while not self._ended.wait(min(LOOK_EVERY_S, STILL_S / 4)):
            self._tick()
            seconds = time.monotonic() - self._moved
            if seconds >= self._next:
                self._next *= 2
                self._still(seconds)


@contextmanager
def ending_in_time(end: Callable[[], None]) -> Iterator[None]:
    """GRACE_S after the first SIGINT or SIGTERM in the block `end` is called, from a thread, if it still runs.

    Also after the block: at its exit Python waits for threads, of which one may read what never comes. Python handles
    signals in the main thread, between two instructions: not while that thread waits for a read that hangs.
    The signal's number also goes to a pipe, which this thread reads. Elsewhere than in the main thread nothing is
    watched.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    asked = threading.Event()

    def listen() -> None:
        while (said := os.read(ear, 1)) and said[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        if said:
            asked.set()
            time.sleep(GRACE_S)
            end()

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if not asked.is_set():
            with suppress(ValueError):
                signal.set_wakeup_fd(before)
            os.close(mouth)  # ends the thread's read
