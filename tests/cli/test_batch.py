"""Batches of real slides by real processes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import write_slide
from test_cluster import Cluster
from test_cluster import own_cluster as own_cluster

from wsi_pipeline.cli import infer_slide, tile_slides
from wsi_pipeline.jobs.events import EVENTS, LOCKS

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
    begun = {event["slide"]: event["path"] for event in events(out) if event["event"] == "slide_started"}
    assert begun == {row["slide"]: row["path"] for row in rows}
    assert (
        events(out)[-1].items() >= {"event": "batch_ended", "done": 95, "failed": 5, "exit_code": 1}.items()
    )
    assert list((out / LOCKS).iterdir()) == []


def heatmaps(out: Path) -> dict[str, np.ndarray]:
    return {
        folder.name: np.asarray(zarr.open_array(folder / "slide.zarr/heatmap/0", mode="r")[...])
        for folder in sorted(out.iterdir())
        if (folder / "slide.zarr").exists()
    }


def same_maps(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k], equal_nan=True) for k in one)


FINE = "grid: {stride_px: 25, block_px: 256}\n"


@pytest.fixture(scope="module")
def mapped(
    one_slide: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Arguments of infer-slide on two small slides, a larger one and a broken one, and the maps of one process."""
    folder = tmp_path_factory.mktemp("mapped")
    slides = folder / "slides"
    slides.mkdir()
    (slides / "broken.tiff").write_text("dear pathologist")
    for name in ("s0", "s1"):
        shutil.copy(one_slide, slides / f"{name}.tiff")
    small_slide(slides / "large.tiff", side=800)
    (folder / "fine.yaml").write_text(FINE)
    arguments = [str(slides), "--device", "cpu", "--config", str(folder / "fine.yaml")]
    assert infer_slide.main([*arguments, "--out", str(folder / "single")]) == 1
    return arguments, heatmaps(folder / "single")


def start(command: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BIN / command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_work_on(out: Path, slide: str) -> int:
    """The id of the process that works on the slide, once its map is begun."""
    lock, end = out / LOCKS / f"{slide}.lock", time.monotonic() + 120
    while not (lock.exists() and (out / slide / "tissue.png").exists()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return int(json.loads(lock.read_text())["pid"])


def lives(pid: int) -> bool:
    """Whether the process runs; one that was killed and that nobody asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_worker_costs_its_slide_an_attempt_and_no_bit_of_its_map(
    mapped: tuple[list[str], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    arguments, maps = mapped
    run = start("infer-slide", *arguments, "--out", tmp_path, "--workers", "2")
    os.kill(wait_for_work_on(tmp_path, "large"), signal.SIGKILL)
    said, complaint = run.communicate()
    assert run.returncode == 1, complaint
    assert same_maps(heatmaps(tmp_path), maps)
    assert {row["slide"]: (row["status"], row["attempt"]) for row in manifest(tmp_path)} == {
        "broken": ("failed", "1"),
        "large": ("done", "2"),
        "s0": ("done", "1"),
        "s1": ("done", "1"),
    }
    assert "large: its worker was killed by signal 9" in said
    assert [e["attempt"] for e in events(tmp_path) if e["event"] == "worker_lost"] == [1]


def test_a_cluster_with_a_worker_killed_makes_the_maps_of_a_single_process(
    mapped: tuple[list[str], dict[str, np.ndarray]], own_cluster: Cluster, tmp_path: Path
) -> None:
    arguments, maps = mapped
    out = tmp_path / "out"
    for _ in range(2):
        own_cluster.add_worker()
    run = start("infer-slide", *arguments, "--out", out, "--scheduler", own_cluster.file)
    os.kill(wait_for_work_on(out, "large"), signal.SIGKILL)
    _, complaint = run.communicate()
    assert run.returncode == 1, complaint
    assert same_maps(heatmaps(out), maps)
    rows = {row["slide"]: row for row in manifest(out)}
    assert (rows["large"]["status"], rows["large"]["attempt"]) == ("done", "2")
    assert {rows[name]["status"] for name in ("s0", "s1")} == {"done"}
    assert rows["broken"]["status"] == "failed"
    assert all(row["worker"].startswith("tcp://") for row in rows.values())


@pytest.mark.parametrize(("workers", "presses"), [([], 1), (["--workers", "2"], 1), (["--workers", "2"], 2)])
def test_after_ctrl_c_nothing_runs_on_and_the_same_command_goes_on(
    config: Path, tmp_path: Path, workers: list[str], presses: int
) -> None:
    slide, out = small_slide(tmp_path / "large.tiff", side=1200), tmp_path / "out"
    other = small_slide(tmp_path / "other.tiff")
    arguments = [str(slide), str(other), "--out", str(out), "--config", str(config), "--export"]
    run = start("tile-slides", *arguments, *workers)
    pid = wait_for_work_on(out, "large")
    for _ in range(presses):
        run.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, complaint = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "the same command goes on from here" in complaint
    assert "Traceback" not in complaint
    end = time.monotonic() + 5
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(pid)
    if presses == 1:
        assert list((out / LOCKS).iterdir()) == []
        assert events(out)[-1]["event"] == "batch_interrupted"
    assert tile_slides.main(arguments) == 0
    assert {row["slide"] for row in manifest(out)} == {"large", "other"}
    assert {row["status"] for row in manifest(out)} <= {"done", "skipped"}
    assert not list(out.rglob("*.part"))


def test_two_processes_on_one_out_do_each_slide_once(one_slide: Path, config: Path, tmp_path: Path) -> None:
    listed, out = make_list(tmp_path / "slides", one_slide, 12, {}), tmp_path / "out"
    runs = [start("tile-slides", listed, "--out", out, "--config", config) for _ in range(2)]
    for run in runs:
        _, complaint = run.communicate()
        assert run.returncode == 0, complaint
    done = [event["slide"] for event in events(out) if event.get("status") == "done"]
    assert sorted(done) == [f"s{i:03}" for i in range(12)]
    # Who starts after the other has done a slide skips it, and its row says so.
    assert [row["slide"] for row in manifest(out)] == [f"s{i:03}" for i in range(12)]
    assert {row["status"] for row in manifest(out)} <= {"done", "skipped"}
    assert list((out / LOCKS).iterdir()) == []


def test_shards_share_an_out_and_its_manifest(one_slide: Path, config: Path, tmp_path: Path) -> None:
    listed, out = make_list(tmp_path / "slides", one_slide, 5, {3: "empty"}), tmp_path / "out"
    arguments = [str(listed), "--out", str(out), "--config", str(config)]
    assert tile_slides.main([*arguments, "--shard", "1/2"]) == 0
    assert {row["slide"] for row in manifest(out)} == {"s000", "s002", "s004"}
    assert tile_slides.main([*arguments, "--shard", "2/2"]) == 1
    assert {row["slide"]: row["status"] for row in manifest(out)} == {
        "s000": "done",
        "s002": "done",
        "s004": "done",
        "s001": "done",
        "s003": "failed",
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shard", "3/2"], "--shard 3/2: expected i/n"),
        (["--shard", "9/9"], "no slides left"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no scheduler"),
    ],
)
def test_bad_batch_arguments_run_nothing(
    one_slide: Path,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsi_pipeline.jobs.cluster.CONNECT_S", 1.0)
    assert tile_slides.main([str(one_slide), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_lists_names_scales_and_patients_reach_the_results(
    one_slide: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text(
        f"slide,name,mpp,patient\n{one_slide},patient 7,2.5,Anna\n{one_slide},,,\n{one_slide},no match,,\n"
    )
    arguments = [str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--config", str(config)]
    assert tile_slides.main([*arguments, "--patient-pattern", "^o(n)e"]) == 0
    assert "3 slides of 2 patients; of 1 the patient is not known: --patient-pattern does not fit" in (
        capsys.readouterr().err
    )
    summaries = {
        name: json.loads((tmp_path / "out" / name / "summary.json").read_text())
        for name in ("patient 7", "one")
    }
    assert summaries["patient 7"]["mpp"] == [2.5, 2.5]
    assert summaries["one"]["mpp"] == [3.0, 3.0]
    assert [(row["slide"], row["patient"]) for row in manifest(tmp_path / "out")] == [
        ("patient 7", "Anna"),
        ("one", "n"),
        ("no match", ""),
    ]
