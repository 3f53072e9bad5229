"""Which slides an earlier process began and never ended, by its events."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wsi_pipeline.jobs.events import EVENTS
from wsi_pipeline.jobs.unended import begun_and_never_ended


def gone() -> int:
    """The id of a process that was."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def begin(pid: int | None = None) -> dict[str, Any]:
    return {"event": "batch_started", "host": os.uname().nodename, "pid": gone() if pid is None else pid}


def write(out: Path, name: str, *events: dict[str, Any]) -> None:
    (out / EVENTS).mkdir(parents=True, exist_ok=True)
    (out / EVENTS / f"{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def slide(kind: str, name: str, order: int) -> dict[str, Any]:
    return {"event": kind, "slide": name, "order": order}


@pytest.mark.parametrize(
    ("first", "found"),
    [
        ([slide("slide_started", "a", 2)], {"a"}),
        ([slide("slide_started", "a", 2), slide("slide", "a", 3)], set()),
        ([slide("slide_started", "a", 2), slide("slide_waits", "a", 3)], set()),
        ([slide("slide_started", "a", 2), {"event": "batch_interrupted", "order": 3}], set()),
        ([slide("slide_started", "a", 2), {"event": "batch_broken_off", "order": 3}], set()),
        ([slide("slide_started", "a", 2), slide("slide", "a", 3), slide("slide_started", "b", 4)], {"b"}),
    ],
)
def test_what_was_begun_and_has_no_end_is_found(
    tmp_path: Path, first: list[dict[str, Any]], found: set[str]
) -> None:
    assert begun_and_never_ended(tmp_path) == set()
    write(tmp_path, "1", begin(), *first)
    assert begun_and_never_ended(tmp_path) == found


def test_what_ended_later_elsewhere_did_end_and_what_is_worked_on_may(tmp_path: Path) -> None:
    write(tmp_path, "1", begin(), slide("slide_started", "a", 2), slide("slide_started", "b", 3))
    write(tmp_path, "2", begin(), slide("slide_started", "a", 4), slide("slide", "a", 5))
    assert begun_and_never_ended(tmp_path) == {"b"}
    write(tmp_path, "3", begin(os.getppid()), slide("slide_started", "c", 6))
    assert begun_and_never_ended(tmp_path) == {"b"}


def test_files_of_one_process_on_an_object_store_are_one_story(tmp_path: Path) -> None:
    write(tmp_path, "x-000000", begin(), slide("slide_started", "a", 2))
    write(tmp_path, "x-000001", slide("slide", "a", 3), slide("slide_started", "b", 4))
    assert begun_and_never_ended(tmp_path) == {"b"}
