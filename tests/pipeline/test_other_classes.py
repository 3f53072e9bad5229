"""Of a network of several classes: one is mapped, the others are layers of the store."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import noise
from made_packages import MEAN, STD, package
from ome_zarr_models.v05.image import Image
from torch import nn

from wsi_pipeline.base.errors import RecipeError, ResultError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.models.model import load_model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.results.opened import Result, open_result
from wsi_pipeline.results.store import class_folders
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.tiling.grid import GridOptions

MakeSlide = Callable[..., Path]
CPU = torch.device("cpu")
ALONE = ClassifyOptions(other_classes=False, precision="fp32")
EACH = ClassifyOptions(precision="fp32")
SIDE = 50


def section(height: int = 600, width: int = 900) -> np.ndarray:
    """Sharply textured tissue on glass, unlike from patch to patch."""
    h, w = height - 200, width - 200
    image, grain = (
        np.full((height, width, 3), 243, np.uint8),
        np.random.default_rng(2).integers(0, 50, (h, w, 1)),
    )
    colours = noise(h // 9 + 1, w // 9 + 1).repeat(9, 0).repeat(9, 1)[:h, :w].astype(int) // 4
    image[100:-100, 100:-100] = colours + grain + np.array([110, 60, 100])
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return package(
        tmp_path / "package", None, ("Stroma", "Tumor", "in situ"), patch_size_pixels=SIDE, spacing_um_px=4.0
    )


def run(slide: Path, out: Path, model: str | Path, options: ClassifyOptions = EACH, **how: Any) -> Result:
    config = InferConfig(
        grid=GridOptions(block_px=256, stride_px=how.pop("stride_px", None)),
        classify=options,
    )
    classifier = Classifier([load_model(model)], CPU, options)
    return open_result(infer_slide(SlideEntry(slide, "a"), out, config, classifier, RunOptions(**how)).folder)


def by_hand(folder: Path, image: np.ndarray, x0: np.ndarray, y0: np.ndarray) -> np.ndarray:
    """Softmax of what the package's file gives of the patches at these corners, [n, 3]."""
    script: nn.Module = torch.jit.load(folder / "torchscript_model.pt")
    rows = []
    for x, y in zip(x0, y0, strict=True):
        patch = (image[y : y + SIDE, x : x + SIDE] / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        with torch.no_grad():
            rows.append(script(torch.from_numpy(patch.transpose(2, 0, 1)[None])).softmax(1).numpy()[0])
    return np.asarray(rows)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_each_layer_is_what_the_network_gives_by_hand(
    make_slide: MakeSlide, tmp_path: Path, folder: Path, engine: Any
) -> None:
    image = section()
    slide = make_slide("a.tiff", image, mpp=(4.0, 4.0), factors=(1,))
    result = run(slide, tmp_path / "out", folder, replace(EACH, engine=engine))
    assert result.classes == ("Stroma", "in situ")
    table = result.patches
    expected, cells = by_hand(folder, image, table.x0, table.y0), (table.y0 // SIDE, table.x0 // SIDE)
    assert len(expected) > 50
    for number, found in ((0, result.class_map("Stroma")), (1, result.map), (2, result.class_map("in situ"))):
        assert np.ptp(expected[:, number]) > 0.005
        assert np.abs(found[cells] - expected[:, number]).max() < 5e-5
        assert (np.isnan(found) == (result.status != 1)).all()


@pytest.mark.parametrize("stride", [None, 25])
def test_classes_come_to_1_and_the_mapped_one_is_as_without_the_others(
    make_slide: MakeSlide, tmp_path: Path, folder: Path, stride: int | None
) -> None:
    slide = make_slide("a.tiff", section(), mpp=(4.0, 4.0), factors=(1,))
    result = run(slide, tmp_path / "each", folder, stride_px=stride)
    scored = ~np.isnan(result.map)
    total = result.map + sum(result.class_map(name) for name in result.classes)
    assert scored.sum() > 50
    assert np.abs(total[scored] - 1).max() < 1e-6
    alone = run(slide, tmp_path / "alone", folder, ALONE, stride_px=stride)
    assert np.array_equal(alone.map, result.map, equal_nan=True)
    assert alone.classes == ()
    with pytest.raises(ResultError, match="has no class 'Stroma'; it has none beside the mapped one"):
        alone.class_map("Stroma")


def test_layers_are_ome_zarr_images_with_levels_of_their_own(
    make_slide: MakeSlide, tmp_path: Path, folder: Path
) -> None:
    import zarr

    slide = make_slide("a.tiff", section(), mpp=(4.0, 4.0), factors=(1,))
    result = run(slide, tmp_path / "out", folder, stride_px=10)
    layer = "classes/in_situ"
    group = zarr.open_group(result.folder / "slide.zarr" / layer, mode="r")
    Image.from_zarr(group)
    assert dict(group.attrs)["ome"]["multiscales"][0]["name"] == "probability of in situ"
    assert result.cells_um(layer) == result.cells_um("heatmap")
    assert result.level_shapes(layer) == result.level_shapes("heatmap")
    assert len(result.level_shapes(layer)) > 1
    assert np.isfinite(result.level(layer, 1)).any()


def test_a_run_that_was_broken_off_goes_on_bit_equal(
    make_slide: MakeSlide, tmp_path: Path, folder: Path
) -> None:
    slide = make_slide("a.tiff", section(1200, 1600), mpp=(4.0, 4.0), factors=(1,))
    whole, calls = run(slide, tmp_path / "whole", folder, stride_px=25), 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(slide, tmp_path / "part", folder, stride_px=25, progress=stop)
    part = open_result(tmp_path / "part/a")
    assert np.isnan(part.class_map("Stroma")[whole.status == 1]).any()
    first_done: list[int] = []

    def listen(done: int, total: int) -> None:
        first_done.append(done)

    part = run(slide, tmp_path / "part", folder, stride_px=25, progress=listen)
    assert first_done[0] > 0
    for name in whole.classes:
        assert np.array_equal(part.class_map(name), whole.class_map(name), equal_nan=True)
    assert np.array_equal(part.map, whole.map, equal_nan=True)


def test_with_and_without_the_others_are_two_maps(
    make_slide: MakeSlide, tmp_path: Path, folder: Path
) -> None:
    slide = make_slide("a.tiff", section(), mpp=(4.0, 4.0), factors=(1,))
    run(slide, tmp_path / "out", folder, ALONE)
    with pytest.raises(RecipeError, match="other_classes: false there, true here"):
        run(slide, tmp_path / "out", folder)
    assert run(slide, tmp_path / "out", folder, overwrite=True).classes == ("Stroma", "in situ")


def test_two_classes_have_no_layers_and_an_ensemble_has_none(
    make_slide: MakeSlide, tmp_path: Path, folder: Path
) -> None:
    binary = package(tmp_path / "two", None, ("Other", "Tumor"), patch_size_pixels=SIDE, spacing_um_px=4.0)
    slide = make_slide("a.tiff", section(), mpp=(4.0, 4.0), factors=(1,))
    result = run(slide, tmp_path / "out", binary)
    assert result.classes == ()
    assert not (result.folder / "slide.zarr/classes").exists()
    ensemble = Classifier([load_model(binary), load_model(folder)], CPU, EACH)
    assert ensemble.other_classes == ()
    scores, spread = ensemble.scores_and_spread(np.full((3, SIDE, SIDE, 3), 150, np.uint8))
    assert scores.shape == (3,)
    assert spread is not None


def test_no_patch_to_classify_gives_layers_without_values(folder: Path) -> None:
    found = Classifier([load_model(folder)], CPU, EACH).start(np.empty((0, SIDE, SIDE, 3), np.uint8)).result()
    assert found.others is not None
    assert (found.scores.shape, found.others.shape) == ((0,), (0, 2))


def test_every_class_has_a_folder_of_its_own() -> None:
    names = (
        "x-4",
        "x",
        "../up",
        "X",
        "Stroma",
        "stroma",
        "",
        "a" * 90,
        "腫瘍",
        "__x",
        "in situ",
        "in_situ",
        "STROMA-2",
    )
    folders = class_folders(names)
    assert tuple(folders) == names
    assert len({folder.casefold() for folder in folders.values()}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", folder) for folder in folders.values())
