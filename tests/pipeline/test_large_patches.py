"""Patches of 512 px, of every kind of package: the slide's map is what its file gives by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_slide
from made_packages import MEAN, STD, network, package, save_exported, save_onnx, save_torchscript
from test_other_classes import section

from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.models.model import load_model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.results.opened import open_result
from wsi_pipeline.slides.catalog import SlideEntry

SIDE = 512


@pytest.mark.parametrize("save", [save_torchscript, save_onnx, save_exported])
def test_a_map_of_patches_of_512_px(tmp_path: Path, save: Callable[..., Any]) -> None:
    image = section(330, 440).repeat(8, 0).repeat(8, 1)
    slide = write_slide(tmp_path / "a.tiff", image, mpp=(0.5, 0.5), factors=(1, 8))
    folder = package(
        tmp_path / "package", None, ("Other", "Tumor"), save, patch_size_pixels=SIDE, spacing_um_px=0.5
    )
    net = network(2)
    classifier = Classifier([load_model(folder, trust=True)], torch.device("cpu"), InferConfig().classify)
    result = open_result(
        infer_slide(SlideEntry(slide, "a"), tmp_path / "out", InferConfig(), classifier).folder
    )
    scored = np.argwhere(result.status == 1)
    assert len(scored) > 8
    for row, column in scored:
        pixels = image[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
        patch = (pixels / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        with torch.no_grad():
            expected = net(torch.from_numpy(patch.transpose(2, 0, 1)[None])).softmax(1)[0, 1]
        assert abs(result.map[row, column] - float(expected)) < 5e-5
    assert any(
        "not calibrated, and the threshold was chosen on nothing" in each
        for each in result.summary["warnings"]
    )
