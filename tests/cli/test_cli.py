import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import noise, write_slide
from test_infer import section

from wsi_pipeline.cli import infer_slide, tile_slides
from wsi_pipeline.models.model import build_network, load_model, save_model

IDC = "grid: {patch_px: 50, mpp: 4.0}\n"


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "good.tiff", section(), mpp=(4.0, 4.0))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "idc.yaml").write_text(IDC)
    return tmp_path / "idc.yaml"


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tile(*arguments: object) -> int:
    return tile_slides.main([str(a) for a in arguments])


def test_bad_slides_fail_with_a_line_each_and_spare_the_others(
    shared: Path, slide: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = sorted(p for p in (shared / "data/bad").iterdir() if p.name != "five_tiles_corrupt.svs")
    assert tile(*bad[:3], slide, *bad[3:], "--out", tmp_path / "out", "--config", config) == 1
    rows = manifest(tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed"] * 3 + ["done"] + ["failed"] * (len(bad) - 3)
    for row, path in zip([r for r in rows if r["status"] == "failed"], bad, strict=True):
        assert path.name in row["reason"]
        assert "Traceback" not in row["reason"]
        assert "unexpected" not in row["reason"]
    said = capsys.readouterr()
    assert "good: " in said.out
    assert f"{len(bad)} of {len(bad) + 1} slides failed" in said.err
    assert (tmp_path / "out/good/slide.zarr").is_dir()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("zero_bytes.svs", 1),
        ("unopenable.tiff", 1),
        ("webp_unsupported.tiff", 1),
        ("truncated.svs", 1),
        ("unreadable.svs", 1),
        ("mpp_100x_too_small.tiff", 2),
        ("five_tiles_corrupt.svs", 0),
    ],
)
def test_each_bad_file_alone_ends_with_its_exit_code(
    shared: Path, tmp_path: Path, name: str, code: int
) -> None:
    assert tile(shared / "data/bad" / name, "--out", tmp_path) == code


@pytest.mark.parametrize("command", [tile_slides, infer_slide])
def test_slides_none_of_which_is_there_run_nothing(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("slide\ngone.svs\nsub/gone too.svs\n")
    for arguments, named in (
        ([tmp_path / "a.svs"], "a.svs: no such file"),
        ([tmp_path / "list.csv"], "gone.svs and 1 more: no such file"),
        ([tmp_path / "a.svs", "--dry-run"], "a.svs: no such file"),
    ):
        assert command.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        assert named in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_slide_without_scale_is_refused_until_it_is_given(shared: Path, tmp_path: Path) -> None:
    slide = shared / "data/slides/jp2k_no_mpp.svs"
    assert tile(slide, "--out", tmp_path) == 2
    assert manifest(tmp_path)[0]["status"] == "failed"
    assert tile(slide, "--out", tmp_path, "--mpp", "0.5") == 0
    assert [row["status"] for row in manifest(tmp_path)] == ["done"]
    summary = json.loads((tmp_path / "jp2k_no_mpp/summary.json").read_text())
    assert summary["mpp"] == [0.5, 0.5]
    assert summary["mpp_overridden"]


def test_done_slides_are_skipped_and_other_results_refused(
    slide: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert tile(slide, "--out", out, "--config", config) == 0
    assert tile(slide, "--out", out, "--config", config) == 0
    assert [row["status"] for row in manifest(out)] == ["skipped"]
    config.write_text("grid: {patch_px: 100, mpp: 4.0}\n")
    assert tile(slide, "--out", out, "--config", config) == 2
    printed = capsys.readouterr()
    assert "failed: " in printed.out
    assert "--overwrite" in printed.out
    assert "1 of 1 slide failed; reasons in " in printed.err
    assert "but for 1 refused (reasons above), of which it keeps the earlier results" in printed.err
    assert [row["status"] for row in manifest(out)] == ["skipped"]  # the row of the result that lies there
    assert tile(slide, "--out", out, "--config", config, "--overwrite") == 0


def test_two_slides_of_one_name_do_not_share_a_folder(slide: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = write_slide(tmp_path / "other/good.tiff", noise(600, 600), mpp=(4.0, 4.0))
    assert tile(slide, twin, "--out", tmp_path / "out", "--config", config, "--overwrite") == 1
    rows = manifest(tmp_path / "out")
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert "same name" in rows[1]["reason"]


def test_another_slide_of_a_name_is_refused_naming_both_and_one_that_was_moved_keeps_one_row(
    slide: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name in ("other", "moved"):
        (tmp_path / name).mkdir()
    twin = write_slide(tmp_path / "other/good.tiff", noise(600, 600), mpp=(4.0, 4.0))
    moved = Path(shutil.copy(slide, tmp_path / "moved/good.tiff"))
    assert tile(slide, "--out", out, "--config", config) == 0
    for dry in ([], ["--dry-run"]):
        capsys.readouterr()
        assert tile(twin, "--out", out, "--config", config, *dry) == 2
        said = capsys.readouterr().out
        assert (
            f"another slide of this name: {slide} there, {twin} here; a CSV list gives slides names" in said
        )
    assert [(row["path"], row["status"]) for row in manifest(out)] == [
        (str(slide), "done"),
        (str(twin), "failed"),
    ]
    assert tile(moved, "--out", out, "--config", config) == 0
    assert [(row["path"], row["status"]) for row in manifest(out)] == [
        (str(twin), "failed"),
        (str(moved), "skipped"),
    ]
    assert tile(twin, "--out", out, "--config", config, "--overwrite") == 0
    assert [(row["path"], row["status"]) for row in manifest(out)] == [(str(twin), "done")]


def test_a_dry_run_prints_and_writes_nothing(
    slide: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert tile(slide, "--out", tmp_path / "out", "--config", config, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "patches in 1 block," in said
    assert "1 slide, 560 patches: about" in said
    assert "MB on the disk" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_says_what_is_done_and_what_is_refused(
    slide: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", tmp_path / "out", "--config", config]
    assert tile(slide, *arguments) == 0
    fine = write_slide(tmp_path / "fine.tiff", noise(600, 600), mpp=(4.0, 4.0))
    (tmp_path / "out/foreign").mkdir()
    (tmp_path / "out/foreign/export").touch()
    foreign = write_slide(tmp_path / "foreign.tiff", noise(600, 600), mpp=(4.0, 4.0))
    assert tile(slide, fine, foreign, *arguments, "--dry-run") == 1
    said = capsys.readouterr().out
    assert "good: done already by the same recipe: would be skipped" in said
    assert "foreign: would be refused: " in said
    assert "1 slide, " in said
    assert "0 begun before, 1 done already, 1 refused, 0 would fail" in said
    assert tile(foreign, *arguments, "--dry-run") == tile(foreign, *arguments) == 2


def test_a_scale_for_where_there_is_none_leaves_those_that_have_one(
    slide: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_slide(tmp_path / "bare.tiff", noise(600, 600), mpp=None)
    arguments = ["--out", tmp_path / "out", "--config", config]
    assert tile(slide, bare, *arguments, "--mpp-if-missing", "4") == 0
    said = capsys.readouterr().out
    assert said.count("the scale is") == 1
    assert "the scale is --mpp-if-missing 4: the file does not say its own" in said
    assert json.loads((tmp_path / "out/good/summary.json").read_text())["mpp_overridden"] is False
    assert tile(slide, "--out", tmp_path / "given", "--config", config, "--mpp", "5") == 0
    assert "the scale is --mpp 5: the file says 4 x 4 um per pixel" in capsys.readouterr().out


def test_what_is_passed_over_is_said_and_recorded(
    slide: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    slide.rename(folder / "good.tiff")
    for name in ("a.xml", "b.xml", "scan.isyntax"):
        (folder / name).touch()
    assert tile(folder, "--out", tmp_path / "out", "--config", config) == 0
    assert "passed over: 2 .xml, 1 .isyntax" in capsys.readouterr().err
    (events,) = (tmp_path / "out/.batch/events").iterdir()
    last = json.loads(events.read_text().splitlines()[-1])
    assert (last["event"], last["passed_over"]) == ("batch_ended", {".xml": 2, ".isyntax": 1})


def test_a_dry_run_of_inference_measures_the_model_and_tells_what_would_fail(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = [str(slide), str(tmp_path / "gone.svs"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert infer_slide.main([*arguments, "--dry-run"]) == 1
    said = capsys.readouterr().out
    assert "good: 560 patches in " in said
    assert "gone: would fail: " in said
    assert "1 would fail" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config", "gone.yaml"], "gone.yaml"),
        (["--annotations", "gone"], "--annotations gone: no such folder"),
    ],
)
def test_bad_arguments_run_nothing(
    slide: Path, tmp_path: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tile(slide, "--out", tmp_path / "out", *arguments) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "gone.safetensors"], "gone.safetensors"),
        (["--model", "no_such_name"], "idc_default"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--model", "idc_default", "--model", "idc_default"], "name it once"),
        (["--model", "idc_default", "--model", "gone.safetensors"], "gone.safetensors"),
    ],
)
def test_a_wrong_model_or_device_runs_nothing(
    slide: Path, tmp_path: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer_slide.main([str(slide), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_scale_than_the_models_runs_nothing(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("grid: {patch_px: 50, mpp: 0.25}\n")
    assert infer_slide.main([str(slide), "--out", str(tmp_path / "out"), "--config", str(wrong)]) == 2
    assert "the model card expects" in capsys.readouterr().err


def test_the_shipped_model_maps_a_real_slide(shared: Path, tmp_path: Path) -> None:
    slide = shared / "data/slides/breast_40x.svs"
    assert infer_slide.main([str(slide), "--out", str(tmp_path), "--device", "cpu"]) == 0
    summary = json.loads((tmp_path / "breast_40x/summary.json").read_text())
    assert summary["patch_mpp"] == 4.0
    assert summary["counts"]["cells"]["scored"] > 150
    assert summary["map_recipe"]["models"][0]["name"] == "idc_default"
    assert manifest(tmp_path)[0]["status"] == "done"


def test_two_models_map_a_slide_together(slide: Path, tmp_path: Path) -> None:
    shipped = load_model("idc_default")
    own = tmp_path / "own.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(shipped.card.architecture, **shipped.card.architecture_options)
    save_model(own, network, replace(shipped.card, name="own"))
    arguments = [str(slide), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert infer_slide.main([*arguments, "--model", "idc_default", "--model", str(own)]) == 0
    summary = json.loads((tmp_path / "out/good/summary.json").read_text())
    assert {model["name"] for model in summary["models"]} == {"idc_default", "own"}
    assert 0 < summary["uncertainty"]["mean"] < 0.5


def test_an_output_folder_that_cannot_be_made_is_said(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert tile(slide, "--out", tmp_path / "file/out") == 2
    assert "cannot be made" in capsys.readouterr().err


def test_a_log_has_lines_not_bars(slide: Path, config: Path, tmp_path: Path) -> None:
    command = [
        Path(sys.executable).parent / "tile-slides",
        slide,
        "--out",
        tmp_path / "out",
        "--config",
        config,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert run.stdout.startswith("[1/1] good: ")
    assert "\r" not in run.stdout + run.stderr


def test_tile_slides_does_not_wait_for_torch() -> None:
    code = "import sys, wsi_pipeline.cli.tile_slides; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_default_network_maps_a_slide_without_importing_torchvision(slide: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from wsi_pipeline.cli import infer_slide; code = infer_slide.main(sys.argv[1:]); "
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'torchvision')); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, slide, "--out", tmp_path / "out", "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert manifest(tmp_path / "out")[0]["status"] == "done"


def test_exported_patches_are_counted_and_labelled(shared: Path, tmp_path: Path) -> None:
    slides = shared / "data/slides"
    config = tmp_path / "idc.yaml"
    config.write_text(IDC)
    arguments = ["--annotations", slides, "--export", "--config", config, "--out", tmp_path / "out"]
    assert tile(slides / "breast_40x.svs", *arguments) == 0
    folder = tmp_path / "out/breast_40x"
    counts = json.loads((folder / "summary.json").read_text())["counts"]
    for label, name in ((0, "not_idc"), (1, "idc"), ("unlabelled", "unlabelled")):
        assert len(list((folder / f"export/breast_40x/{label}").glob("*.png"))) == counts["labels"][name]
    assert np.asarray(counts["unreadable"]) == 0
