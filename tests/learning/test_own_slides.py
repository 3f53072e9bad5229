"""docs/own_slides.md, step by step, on generated slides whose outlines are known."""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from scripts.sample_slide.make_sample_slide import make_sample_slide
from wsi_pipeline.models.model import load_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "own_slides.md"


def commands() -> list[list[str]]:
    """The words of each command on the page, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_each_command_of_the_page_runs_and_the_model_knows_the_outlined_tumour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "outlines").mkdir()
    for seed in (1, 2, 3):
        slide = make_sample_slide(
            tmp_path / "slides" / f"s{seed}.tiff", 3.2, 2.6, mpp=1.0, seed=seed, workers=1
        )
        shutil.move(slide.with_name(f"s{seed}_truth.geojson"), tmp_path / "outlines" / f"s{seed}.geojson")
        slide.with_name(f"s{seed}_truth.png").unlink()
    assert [words[0] for words in commands()] == [
        "tile-slides",
        "explore-patches",
        "train-model",
        "evaluate-model",
        "evaluate-model",
        "infer-slide",
    ]
    try:
        for program, *arguments in commands():
            main = importlib.import_module(f"wsi_pipeline.cli.{program.replace('-', '_')}").main
            device = ["--device", "cpu"] if program not in ("tile-slides", "explore-patches") else []
            assert main([*arguments, *device]) == 0, (program, arguments)
    finally:
        torch.set_num_threads(before)
    card = load_model(tmp_path / "runs/own/own_slides.safetensors").card
    assert (card.patch_px, card.mpp, card.training["by"]) == (50, 4.0, "slide")
    assert card.training["pretrained"][0]["file"] == "idc_default.safetensors"
    assert "nothing is cross-fitted: one slide alone" in card.metrics["note"]
    assert card.metrics["val"]["auroc"] > 0.9
    assert "No intervals: 1 slide" in (tmp_path / "evaluation/index.html").read_text()
    for seed in (1, 2, 3):
        folder = tmp_path / "maps" / f"s{seed}"
        assert '"own_slides"' in (folder / "summary.json").read_text()
        assert (folder / "report.png").stat().st_size > 10_000
