"""Batches of real slides by real processes."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import write_slide

from wsi_pipeline.cli import infer_slide, tile_slides
from wsi_pipeline.events import EVENTS, LOCKS

BROKEN = {3: "empty", 20: "cut short", 50: "no slide", 77: "gone", 99: "no scale"}
BIN = Path(sys.executable).parent


def small_slide(path: Path, seed: int = 0, side: int = 192) -> Path:
    """Tissue on glass, 3 um/px."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 243, np.uint8)
    image[24:-24, 24:-24] = rng.integers(100, 190, (side - 48, side - 48, 1)) + np.array([30, 0, 20])
    return write_slide(path, image, mpp=(3.0, 3.0), factors=(1,), tile=64)


@pytest.fixture(scope="session")
def one_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_slide(tmp_path_factory.mktemp("slide") / "one.tiff")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "idc.yaml").write_text("grid: {patch_px: 50, mpp: 4.0}\n")
    return tmp_path / "idc.yaml"


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(out: Path) -> list[dict[str, object]]:
    files = sorted((out / EVENTS).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def break_slides(folder: Path, broken: dict[int, str]) -> None:
    for number, how in broken.items():
        path = folder / f"s{number:03}.tiff"
        whole = path.read_bytes()
        path.unlink()
        if how == "empty":
            path.touch()
        elif how == "cut short":
            path.write_bytes(whole[: len(whole) // 2])
        elif how == "no slide":
            path.write_text("dear pathologist")
        elif how == "no scale":
            write_slide(path, np.full((64, 64, 3), 200, np.uint8), mpp=None, factors=(1,))


def make_list(folder: Path, one_slide: Path, count: int, broken: dict[int, str]) -> Path:
    folder.mkdir()
    for i in range(count):
        shutil.copy(one_slide, folder / f"s{i:03}.tiff")
    break_slides(folder, broken)
    (folder / "list.csv").write_text("slide\n" + "".join(f"s{i:03}.tiff\n" for i in range(count)))
    return folder / "list.csv"


def test_of_a_hundred_slides_five_broken_ones_fail_each_with_its_reason(
    one_slide: Path, config: Path, tmp_path: Path
) -> None:
    listed, out = make_list(tmp_path / "slides", one_slide, 100, BROKEN), tmp_path / "out"
    arguments = [str(listed), "--out", str(out), "--config", str(config), "--workers", "2"]
    assert tile_slides.main(arguments) == 1
    rows = manifest(out)
    assert [row["slide"] for row in rows] == [f"s{i:03}" for i in range(100)]
    failed = {int(row["slide"][1:]): row["reason"] for row in rows if row["status"] == "failed"}
    assert failed.keys() == BROKEN.keys()
    assert len(set(failed.values())) == 5
    assert all(f"s{number:03}.tiff" in reason for number, reason in failed.items())
    done = [row for row in rows if row["status"] == "done"]
    assert len(done) == 95
    assert {row["attempt"] for row in rows} == {"1"}
    assert all((out / row["slide"] / "slide.zarr/zarr.json").exists() for row in done)
    assert len({row["worker"] for row in rows}) == 2
    assert [event["event"] for event in events(out)].count("slide") == 100
    assert (
        events(out)[-1].items() >= {"event": "batch_ended", "done": 95, "failed": 5, "exit_code": 1}.items()
    )
    assert list((out / LOCKS).iterdir()) == []


def heatmaps(out: Path) -> dict[str, np.ndarray]:
    return {
        folder.name: np.asarray(zarr.open_array(folder / "slide.zarr/heatmap/0", mode="r")[...])
        for folder in sorted(out.glob("s*"))
    }


def test_workers_make_the_maps_of_a_single_process(one_slide: Path, tmp_path: Path) -> None:
    broken = {1: "no slide"}
    listed = make_list(tmp_path / "slides", one_slide, 4, broken)
    single, several = tmp_path / "single", tmp_path / "several"
    for out, workers in ((single, []), (several, ["--workers", "2"])):
        arguments = [str(listed), "--out", str(out), "--device", "cpu", *workers]
        assert infer_slide.main(arguments) == 1
    maps = heatmaps(single)
    assert maps.keys() == {"s000", "s002", "s003"}
    for name, values in heatmaps(several).items():
        assert np.array_equal(values, maps[name], equal_nan=True)
    assert [row["status"] for row in manifest(several)] == ["done", "failed", "done", "done"]
