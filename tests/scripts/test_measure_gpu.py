"""The bench for GPUs ends in time, whatever a section does, and says what it has not measured."""

import argparse
import json
import time
from pathlib import Path

import pytest

from scripts.bench import measure_gpu


def arguments(out: Path, **changes: object) -> argparse.Namespace:
    plain = {"out": out, "device": "cpu", "quick": True, "only": None, "seconds": 60.0, "limit": 60.0}
    return argparse.Namespace(**plain | changes)


def hangs(_: argparse.Namespace) -> dict[str, object]:
    try:
        time.sleep(30)
    except Exception:  # as the choice of an engine meets whatever a library raises
        return {"hung": True}
    return {}


def fails(_: argparse.Namespace) -> dict[str, object]:
    raise ValueError("no such kernel")


SECTIONS = {
    "machine": lambda args: (
        {"cores": 2, "processor": "p", "python": "3", "torch": "2", "date": "d", "commit": "c"}
        | {"jpeg tiles in C": True, "quick": args.quick}
    ),
    "fails": fails,
    "works": lambda _: {"all": 1},
    "hangs": hangs,
    "later": lambda _: {"all": 2},
}


def test_a_section_that_fails_spares_the_others_and_one_that_hangs_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_gpu, "SECTIONS", SECTIONS)
    began = time.monotonic()
    found = measure_gpu.run_sections(arguments(tmp_path, limit=1.0))
    assert time.monotonic() - began < 10
    assert "no such kernel" in found["fails"]["failed"]
    assert found["works"]["all"] == 1
    assert found["hangs"] == found["later"] == {"left out": "no time was left"}
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    assert "Not measured in this run: fails, hangs, later." in (tmp_path / "gpu.md").read_text()


def test_no_section_begins_too_late_and_those_not_asked_for_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_gpu, "SECTIONS", SECTIONS)
    found = measure_gpu.run_sections(arguments(tmp_path, only=["later"]))
    assert found["later"]["all"] == 2
    assert found["works"] == {"left out": "not asked for"}
    late = measure_gpu.run_sections(arguments(tmp_path, seconds=-1.0))
    assert all(section == {"left out": "no time was left"} for section in late.values())
