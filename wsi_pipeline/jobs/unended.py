"""Items that a process began and never ended: it may have died of them, and would again."""

import os
import socket
from typing import Any

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.jobs.events import events_by_process, order_of

# What ends a batch in order: an item that it left open is not what ended it.
_ENDS = ("batch_ended", "batch_interrupted", "batch_broken_off")


def begun_and_never_ended(out: OutPath) -> set[str]:
    """Names of slides whose last attempt was begun by a process that is no more and said nothing of their end.

    A process that was killed, or whose machine lost its power, leaves such slides too: which it was cannot be known.
    """
    open_since: dict[str, int] = {}
    ended: dict[str, int] = {}
    for events in events_by_process(out):
        begun: dict[str, int] = {}
        for event in events:
            kind, name = event.get("event"), event.get("slide")
            if kind in _ENDS:
                begun.clear()
            elif not isinstance(name, str):
                continue
            elif kind == "slide_started":
                begun[name] = order_of(event)
            elif kind in ("slide", "slide_waits"):
                begun.pop(name, None)
                ended[name] = max(ended.get(name, 0), order_of(event))
        if begun and not _may_run(events):
            for name, order in begun.items():
                open_since[name] = max(open_since.get(name, 0), order)
    return {name for name, order in open_since.items() if order > ended.get(name, 0)}


def _may_run(events: list[dict[str, Any]]) -> bool:
    """Whether the process that wrote them is on this machine and still there."""
    begun = next((event for event in events if event.get("event") == "batch_started"), {})
    pid = begun.get("pid")
    if begun.get("host") != socket.gethostname() or type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return pid != os.getpid()
