"""The commands that `monitor` prints, run as printed, on generated slides with reviews made as the page makes them."""

import importlib
import json
import shlex
from pathlib import Path

import pytest
import torch
from test_monitor import region_of, review_of

from scripts.sample_slide.make_sample_slide import make_sample_slide
from wsi_pipeline.cli.monitor import main
from wsi_pipeline.models.model import load_model


def run(program: str, *arguments: object, on_cpu: bool = True) -> int:
    module = importlib.import_module(f"wsi_pipeline.cli.{program.replace('-', '_')}")
    return int(module.main([*map(str, arguments), *(["--device", "cpu"] if on_cpu else [])]))


@pytest.mark.slow
def test_from_reviews_to_a_new_model_and_its_comparison_with_the_old_by_the_lines_printed(tmp_path, capsys):
    slides, out = [], tmp_path / "the maps"
    for seed in (1, 2, 3):
        slides.append(make_sample_slide(tmp_path / f"s{seed}.tiff", 2.5, 2, mpp=2.0, seed=seed, workers=1))
    config = tmp_path / "quick.yaml"
    config.write_text("fields: {count: 0}\nexports: []\n")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run("infer-slide", *slides, "--out", out, "--config", config) == 0
        for slide in slides[:2]:
            review(out / slide.stem, slide.with_name(f"{slide.stem}_truth.geojson"))
        assert main([str(out)]) == 0
        assert "Reviewed slides of 2 patients: train-model needs 3 at the least" in capsys.readouterr().out
        review(out / slides[2].stem, slides[2].with_name("s3_truth.geojson"))
        assert main([str(out)]) == 0
        printed = capsys.readouterr().out
        lines = json.loads((out / "monitor.json").read_text())["retraining"]["lines"]
        assert [line.split()[0] for line in lines] == ["tile-slides", "train-model", "evaluate-model"]
        for line in lines:
            assert f"  {line}\n" in printed
            program, *arguments = shlex.split(line)
            assert run(program, *arguments, on_cpu=program != "tile-slides") == 0, line
    finally:
        torch.set_num_threads(before)
    work = tmp_path / "the maps_retrained"
    card = load_model(work / "model/own_slides.safetensors").card
    assert (card.patch_px, card.mpp) == (50, 4.0)
    assert card.training["pretrained"][0]["file"] == "idc_default.safetensors"
    assert card.training["train"]["patients"] == 2
    assert (work / "evaluation/comparison.json").stat().st_size > 100


def review(folder: Path, truth: Path) -> None:
    """Tumour as it was drawn, and a stretch of the slide without any."""
    put = review_of(folder)
    put(region_of(folder), "accepted", source="IDC 1")
    for feature in json.loads(truth.read_text())["features"]:
        put(feature["geometry"], "redrawn")
    width, height = json.loads((folder / "summary.json").read_text())["size0"]
    corner = [[0, 0], [width, 0], [width, height * 0.3], [0, height * 0.3], [0, 0]]
    put({"type": "Polygon", "coordinates": [corner]}, "added", name="Normal")
