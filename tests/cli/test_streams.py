"""A batch goes on whatever becomes of the streams that its lines go to, and whatever names its slides have."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import noise, write_slide

IDC = "grid: {patch_px: 50, mpp: 4.0}\n"


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two slides, and one between them whose name is no UTF-8."""
    folder = tmp_path / "slides"
    folder.mkdir()
    write_slide(folder / "a.tiff", noise(600, 600), mpp=(4.0, 4.0))
    for name in (b"m\xfcller.tiff", b"z.tiff"):
        os.link(folder / "a.tiff", os.path.join(os.fsencode(folder), name))  # noqa: PTH118
    (tmp_path / "c.yaml").write_text(IDC)
    return folder


def tile(slides: Path, *more: str, before: str = "", after: str = "", **environment: str) -> int:
    """tile-slides in a shell, so that its streams can be sent anywhere; gives the exit code."""
    command = f"{sys.executable} -m wsi_pipeline.cli.tile_slides"
    arguments = f'"{slides}" --out "{slides.parent}/out" --config "{slides.parent}/c.yaml"'
    script = f"set -o pipefail; {before} {command} {arguments} {' '.join(more)} {after}"
    shell = subprocess.run(["bash", "-c", script], env={**os.environ, **environment}, check=False)
    return shell.returncode


def rows(slides: Path) -> list[dict[str, str]]:
    with (slides.parent / "out/manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_name_that_is_no_utf8_is_done_and_named_and_spoils_no_later_run(slides: Path) -> None:
    assert tile(slides, after=f">{slides.parent}/log") == 0
    said = (slides.parent / "log").read_text(encoding="utf-8")
    assert "[2/3] m\\xfcller: " in said
    assert [(row["slide"], row["status"]) for row in rows(slides)] == [
        ("a", "done"),
        ("m\\xfcller", "done"),
        ("z", "done"),
    ]
    out = slides.parent / "out"
    summary = json.loads((out / "m\\xfcller/summary.json").read_bytes())
    assert summary["slide"] == f"{slides}/m\\xfcller.tiff"
    for events in (out / ".batch/events").iterdir():
        assert "\\udcfc" not in events.read_text(encoding="utf-8")
    assert tile(slides) == 0
    assert [row["status"] for row in rows(slides)] == ["skipped"] * 3


def test_an_out_that_an_earlier_version_spoilt_is_whole_again(slides: Path) -> None:
    events = slides.parent / "out/.batch/events"
    events.mkdir(parents=True)
    event = {"event": "slide", "slide": "m\udcfcller", "path": "/x/m\udcfcller.tiff", "status": "failed"}
    lines = [
        event | {"since": "2026-01-01", "finished": "2026-01-01"},
        {"event": "slide"},
        event | {"path": 7},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (events / "20260101-host-1.jsonl").write_text(text + "[" * 100_000 + "\n")
    (slides.parent / "out/manifest.csv").write_bytes(b"slide,path\n\xff\xfe,\x00\n")
    assert tile(slides) == 0
    assert [row["status"] for row in rows(slides)] == ["failed", "done", "done", "done"]


@pytest.mark.parametrize(
    ("before", "after", "environment"),
    [
        ("", ">/dev/full", {}),
        ("", ">/dev/full 2>/dev/full", {}),
        ("", ">&-", {}),
        ("", ">&- 2>&-", {}),
        ("", "| true", {}),
        ("", "2>&1 | head -c 10", {}),
        ("", "", {"PYTHONIOENCODING": "ascii"}),
        ("", "", {"PYTHONIOENCODING": "utf-8:strict"}),
    ],
)
def test_streams_that_are_full_closed_or_cannot_spell_a_name_stop_nothing(
    slides: Path, before: str, after: str, environment: dict[str, str]
) -> None:
    assert tile(slides, before=before, after=after, **environment) == 0
    assert [row["status"] for row in rows(slides)] == ["done"] * 3
