"""Processes killed with SIGKILL in every stage, by scripts/bench/torture.py, which also kills hundreds of times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_slide
from test_infer import section

from wsi_pipeline.results.commit import WRITERS

TORTURE = Path(__file__).resolve().parents[2] / "scripts/bench/torture.py"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["infer-slide", "tile-slides"])
def test_killed_at_any_instant_and_started_again_the_results_are_those_of_a_run_in_peace(
    tmp_path: Path, command: str
) -> None:
    slide = write_slide(tmp_path / "a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1, 4))
    arguments = [
        "--work",
        tmp_path / "work",
        "--kills",
        8,
        "--command",
        command,
        "--json",
        tmp_path / "json",
    ]
    run = subprocess.run(
        [sys.executable, TORTURE, slide, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "json").read_text())[command]
    assert found["wrong"] == 0
    assert found["kills"] >= 8
    assert found["blocks of the slide"] > 5
    at_once = WRITERS if command == "infer-slide" else 1
    assert found["blocks done twice"] <= at_once * found["kills"]
    # A stage may be over before the signal comes: not every one is hit by so few.
    assert len(found["kills by stage"]) >= 3
