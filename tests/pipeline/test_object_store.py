import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import read_at_once, write_slide
from test_infer import section

from wsi_pipeline.base.files import OutPath, names, out_path, zarr_store
from wsi_pipeline.cli import infer_slide, tile_slides

FINE = "grid: {stride_px: 25, block_px: 256}\nclassify: {precision: fp32}\n"


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "a.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "fine.yaml").write_text(FINE)
    return tmp_path / "fine.yaml"


def arrays(folder: OutPath) -> dict[str, np.ndarray[Any, Any]]:
    root = zarr.open_group(zarr_store(folder / "slide.zarr"), mode="r")
    return {
        name: np.asarray(array[...]) for name, array in root.members(None) if isinstance(array, zarr.Array)
    }


def test_results_on_s3_are_those_in_a_folder_also_after_a_kill(
    s3: dict[str, str], slide: Path, config: Path, tmp_path: Path
) -> None:
    def arguments(out: object) -> list[str]:
        return [str(slide), "--out", str(out), "--config", str(config), "--device", "cpu"]

    out = out_path("s3://maps/killed")
    command = [sys.executable, "-m", "wsi_pipeline.cli.infer_slide", *arguments(out)]
    process = subprocess.Popen(command, env=os.environ | s3, stdout=subprocess.DEVNULL)
    give_up, status = time.monotonic() + 120, out / "a/slide.zarr/labels/status/0/c"
    while time.monotonic() < give_up and process.poll() is None and len(out.fs.find(status.path)) < 5:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert (zarr.open_array(zarr_store(out / "a/slide.zarr/labels/status/0"), mode="r")[...] == 4).any()
    assert infer_slide.main(arguments(out)) == 0
    assert infer_slide.main(arguments(tmp_path / "maps")) == 0
    folders: list[OutPath] = [tmp_path / "maps/a", out / "a"]
    first, second = map(arrays, folders)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert values.tobytes() == second[name].tobytes(), name
    assert names(folders[0]) == names(folders[1])
    for name in ("heatmap.png", "tissue.png", "overlay.png", "regions.geojson"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    counts = [json.loads((folder / "summary.json").read_text())["counts"] for folder in folders]
    assert counts[0] == counts[1]
    rows = list(csv.DictReader((out / "manifest.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["done"]


def test_exported_patches_lie_on_s3_too_and_another_result_is_refused(
    s3: dict[str, str], slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "idc.yaml").write_text("grid: {patch_px: 50, mpp: 4.0}\n")
    arguments = [str(slide), "--out", "s3://maps/tiles", "--export", "--config", str(tmp_path / "idc.yaml")]
    with read_at_once():
        assert tile_slides.main(arguments) == 0
        assert tile_slides.main(arguments) == 0
    assert "skipped" in capsys.readouterr().out
    patches = json.loads(out_path("s3://maps/tiles/a/summary.json").read_text())["counts"]["patches"]
    folder = out_path("s3://maps/tiles/a/export/a/unlabelled")
    assert len(names(folder)) == patches > 100
    (tmp_path / "idc.yaml").write_text("grid: {patch_px: 100, mpp: 4.0}\n")
    assert tile_slides.main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().out
    assert tile_slides.main([*arguments, "--overwrite"]) == 0
    assert 0 < len(names(folder)) < patches  # none of the other result's is left


def test_a_store_that_cannot_be_written_is_said_before_anything_runs(
    s3: dict[str, str], slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tile_slides.main([str(slide), "--out", "s3://no-such-bucket/maps"]) == 2
    assert "no-such-bucket" in capsys.readouterr().err
    command = [sys.executable, "-m", "wsi_pipeline.cli.tile_slides", str(slide), "--out", "s3://maps/x"]
    environment = os.environ | s3 | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "your credentials" in said.stderr
    assert "Traceback" not in said.stderr
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # none at all is no OSError
        del environment[name]
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(slide.parent)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "your credentials" in said.stderr
    assert "Traceback" not in said.stderr
