"""A machine that has nothing but torch and the like, and what was packed, runs the bench for GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import pack_wheels
from scripts.bench.pack_wheels import LEFT_OUT, THERE, pinned, wanted_packages

ROOT = Path(__file__).resolve().parents[2]
# What is imported must be of these distributions, or of what the machine's own need.
GUARD = """
import json, os, sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

allowed, todo = set(json.loads(os.environ["PACKED"])), json.loads(os.environ["THERE"])
while todo:
    name = canonicalize_name(todo.pop())
    if name not in allowed:
        allowed.add(name)
        try:
            needs = [Requirement(line) for line in requires(name) or []]
        except ModuleNotFoundError:
            continue
        todo += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
hidden = {
    module for module, owners in packages_distributions().items()
    if not {canonicalize_name(owner) for owner in owners} & (allowed | {"wsi-pipeline", "setuptools"})
}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def test_what_setup_cfg_asks_for_is_packed_or_there_or_left_out_by_name() -> None:
    wanted = set(wanted_packages())
    assert {
        "defusedxml",
        "openslide-bin",
        "pydantic-core",
        "zarr",
    } <= wanted  # pydantic-core: what pydantic needs
    assert not wanted & (THERE | LEFT_OUT)
    assert all("==" in name for name in pinned(sorted(wanted)))
    with pytest.raises(ValueError, match="no version of nobody"):
        pinned(["nobody"])


@pytest.mark.slow  # processes that import torch
def test_the_bench_runs_in_the_packed_folder_on_what_was_packed(shared: Path, tmp_path: Path) -> None:
    code, guard, out = tmp_path / "code", tmp_path / "guard", tmp_path / "out"
    pack_wheels._copy_code(code)
    assert (code / "COMMIT").read_text().strip()
    slides = tmp_path / "shared" / "data" / "slides"
    slides.mkdir(parents=True)
    (slides / "breast_40x.svs").symlink_to(shared / "data/slides/cmu_1_small_region.svs")
    (tmp_path / "site.tar.xz").touch()
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    environment = os.environ | {
        "SITE": str(guard),
        "PACKED": json.dumps(wanted_packages()),
        "THERE": json.dumps(sorted(THERE)),
        "OUT": str(out),
        "PYTHON": sys.executable,
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": "1",
    }
    before = (code / "docs/performance.md").read_bytes()
    command = ["bash", "scripts/bench/gpu.sh", "--device", "cpu", "--quick"]
    sections = ["tests", "end to end", "decode", "copies"]
    run = subprocess.run(
        [*command, "--only", *sections],
        cwd=code,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = json.loads((out / "gpu.json").read_text())
    assert run.returncode == 0, [section["failed"] for section in found.values() if "failed" in section]
    assert found["tests"]["tests"] >= 24  # of every file that has such tests
    assert found["tests"]["failures"] == found["tests"]["errors"] == 0
    assert found["end to end"]["whole slide"]["patches_per_s"] > 0
    assert found["workers"] == {"left out": "not asked for"}
    page = (out / "gpu.md").read_text()
    assert "A proof that it runs" in page
    assert "| target |" not in page
    assert (
        "Not measured in this run: network, resnet, lineup, resampled, workers, decoders, training." in page
    )
    assert (code / "docs/performance.md").read_bytes() == before
    commands = (
        "import wsi_pipeline.cli.infer_slide, wsi_pipeline.pipeline.infer, wsi_pipeline.cli.train_model"
    )
    commands += (
        ", wsi_pipeline.learning.training.train, scripts.bench.measure_training, scripts.bench.bench_decoders"
    )
    path = {"PYTHONPATH": f"{code}:{guard}"}
    subprocess.run([sys.executable, "-c", commands], cwd=code, env=environment | path, check=True)
    refused = subprocess.run(
        [*command, "--docs", "docs/performance.md"],
        cwd=code,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "expected a whole run on a GPU" in refused.stdout
