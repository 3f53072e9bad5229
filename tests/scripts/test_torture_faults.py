"""Faults of the night among the runs of a batch, by scripts/bench/torture_faults.py, which also makes many."""

import random
import shutil
import sys
from pathlib import Path

import pytest
from conftest import s3_server_or_skip, write_slide
from test_infer import section

from scripts.bench import torture_faults


@pytest.mark.slow
def test_a_fault_of_each_kind_loses_nothing(tmp_path: Path) -> None:
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs a C compiler and Linux, to make reads fail")
    slide = write_slide(tmp_path / "s.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1, 4))
    torture_faults.prepare_processes(tmp_path)
    with s3_server_or_skip(tmp_path) as store:
        bench = torture_faults.prepare(slide, tmp_path / "work", 0, store)
        for number, (name, fault) in enumerate(torture_faults.FAULTS.items()):
            bench.command = list(torture_faults.MORE)[number % 2]
            assert torture_faults.tried(bench, fault, name) == ""


def test_what_is_lost_is_named(tmp_path: Path) -> None:
    for folder in ("peace-tile-slides", "out"):
        (tmp_path / folder / "a").mkdir(parents=True)
        (tmp_path / folder / "a/summary.json").write_text("{}")
        (tmp_path / folder / "manifest.csv").write_text("slide,status\na,done\n")
    (tmp_path / "peace-tile-slides/a/patches.csv").write_text("x")
    bench = torture_faults.Bench(tmp_path, tmp_path / "a.tiff", random.Random(0))
    # What is there before a try is removed, so the fault here makes what it leaves.
    kept = tmp_path / "kept"
    shutil.move(bench.out, kept)

    def loses(bench: torture_faults.Bench) -> list[str]:
        shutil.copytree(kept, bench.out)
        return []

    assert torture_faults.tried(bench, loses, "lost") == "lost: patches.csv: missing"
