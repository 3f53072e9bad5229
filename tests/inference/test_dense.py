import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from conftest import noise
from models import brightness_model
from test_patches import everything

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions, classify_blocks
from wsi_pipeline.models.architectures.fully_convolutional import dense_form
from wsi_pipeline.models.architectures.registry import build_network
from wsi_pipeline.models.model import Model
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.results.regions import DelineateOptions
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.grid import GridOptions, Plan
from wsi_pipeline.tiling.patches import cut_patches, readable_patches

MakeSlide = Callable[..., Path]
CPU = torch.device("cpu")
UNPADDED: dict[str, Any] = {
    "widths": [4, 6],
    "blocks": [2, 1],
    "strides": [1, 5],
    "padding": "none",
    "squeeze": 0,
}
PADDED: dict[str, Any] = {"widths": [4, 6], "blocks": [1, 1], "squeeze": 2}


def random_model(architecture: str = "residual_cnn", seed: int = 0, **options: Any) -> Model:
    """A network whose scores say something of every pixel of a patch, and differ from patch to patch."""
    torch.manual_seed(seed)
    network = build_network(architecture, **(options or UNPADDED))
    for name, value in network.state_dict().items():
        if "running_var" not in name and value.is_floating_point():
            value.normal_(0, 0.5)
    card = replace(brightness_model().card, name=architecture, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(card, network.eval().requires_grad_(False), str(seed) * 64)


def scored(
    slide: Slide, plan: Plan, models: Sequence[Model], dense: str
) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """All blocks' scores in one row, and the spread of each block."""
    options = ClassifyOptions(dense=dense)  # type: ignore[arg-type]
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    blocks = list(classify_blocks(plan.blocks(), plan.grid, read, Classifier(models, CPU, options), options))
    return np.concatenate([one.scores for one in blocks]), [one.spread for one in blocks]


def sparse(plan: Plan) -> Plan:
    """The plan with two in three patches, in patterns, and a corner of nothing."""
    rows, columns = np.indices(plan.kept.shape)
    return replace(plan, kept=plan.kept & ((rows * 5 + columns) % 3 != 0) & ((rows > 12) | (columns > 12)))


@pytest.mark.parametrize("stride", [5, 10, 20])
def test_a_network_without_padding_scores_whole_blocks_as_it_scores_patches(
    make_slide: MakeSlide, stride: int
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(230, 330)), block_px=256, stride_px=stride)
    plan = sparse(plan)
    assert len(list(plan.blocks())) > 3
    whole, _ = scored(slide, plan, [random_model()], "require")
    alone, _ = scored(slide, plan, [random_model()], "off")
    assert np.ptp(alone) > 0.05
    np.testing.assert_allclose(whole, alone, rtol=0, atol=1e-5)


def test_what_cannot_be_read_is_nan_and_nothing_else_is_touched(shared: Path) -> None:
    slide, plan = everything(shared / "data/bad/five_tiles_corrupt.svs", block_px=1024, stride_px=10)
    lost = next(
        block
        for block in plan.blocks()
        if slide.read_readable(block.read_box, plan.grid.plane).unreadable is not None
    )
    kept = np.zeros_like(plan.kept)
    kept[lost.patches[:, 1], lost.patches[:, 0]] = True
    plan = replace(plan, kept=kept)
    whole, _ = scored(slide, plan, [random_model()], "require")
    alone, _ = scored(slide, plan, [random_model()], "off")
    assert 0 < np.isnan(alone).sum() < len(alone)
    np.testing.assert_allclose(whole, alone, rtol=0, atol=1e-5)


def test_a_plain_network_of_one_output_without_padding_runs_over_blocks_too(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(200, 300)), block_px=256, stride_px=8)
    options = {"input_px": 50, "widths": [4, 6, 8], "padding": "valid", "dense": 16, "one_output": True}
    model = random_model("plain_cnn", **options)
    whole, _ = scored(slide, plan, [model], "require")
    alone, _ = scored(slide, plan, [model], "off")
    assert np.ptp(alone) > 0.05
    np.testing.assert_allclose(whole, alone, rtol=0, atol=1e-5)


def test_an_ensemble_runs_over_blocks_with_the_samemean_and_spread(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(200, 300)), block_px=256, stride_px=10)
    models = [random_model(seed=1), random_model(seed=2)]
    whole, spreads = scored(slide, plan, models, "require")
    alone, expected = scored(slide, plan, models, "off")
    np.testing.assert_allclose(whole, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(spreads), np.concatenate(expected), rtol=0, atol=1e-5)


def test_a_padded_network_is_refused_with_what_was_found(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(200, 300)), block_px=256, stride_px=8)
    with pytest.raises(
        ModelError, match=r"dense: found a map that differs by 0\.\d+ .* expected at most 0.001"
    ):
        scored(slide, plan, [random_model(**PADDED)], "require")


def test_a_padded_network_falls_back_to_patch_by_patch_and_says_so(
    make_slide: MakeSlide, caplog: pytest.LogCaptureFixture
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(200, 300)), block_px=256, stride_px=8)
    with caplog.at_level(logging.INFO, "wsi_pipeline.inference.classify"):
        fallen, _ = scored(slide, plan, [random_model(**PADDED)], "auto")
    assert "patch by patch: dense: found a map that differs" in caplog.text
    alone, _ = scored(slide, plan, [random_model(**PADDED)], "off")
    assert np.array_equal(fallen, alone)


@pytest.mark.parametrize(
    ("options", "stride", "why"),
    [
        (UNPADDED | {"clahe": {}}, 10, "evens the contrast of each patch"),
        (UNPADDED | {"input_px": 64}, 10, "resizes it"),
        (UNPADDED, 25, "needs 4 passes over each block and gains nothing"),
        ({}, 10, "Brightness has no form that runs over blocks"),
    ],
)
def test_what_cannot_run_over_blocks_is_refused_with_the_reason(
    make_slide: MakeSlide, options: dict[str, Any], stride: int, why: str
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(200, 300)), stride_px=stride)
    model = random_model(**options) if options else brightness_model()
    with pytest.raises(ModelError, match=why):
        scored(slide, plan, [model], "require")


def test_the_map_of_overlapping_patches_is_the_same_cell_by_cell(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    image = np.full((300, 410, 3), 243, np.uint8)
    image[60:-60, 60:-60] = noise(180, 290) // 2 + np.array([90, 40, 80], np.uint8)
    path = make_slide("a.tiff", image, mpp=(4.0, 4.0), factors=(1,))
    maps = []
    for dense in ("off", "require"):
        config = InferConfig(
            grid=GridOptions(stride_px=10, block_px=256),
            classify=ClassifyOptions(dense=dense),  # type: ignore[arg-type]
            delineate=DelineateOptions(threshold=0.5),
        )
        folder = infer_slide(
            path, tmp_path / dense, config, Classifier([random_model()], CPU, config.classify)
        ).folder
        maps.append(np.asarray(zarr.open_array(folder / "slide.zarr/heatmap/0", mode="r")[...]))
    assert maps[0].shape == (30, 41)
    assert np.isnan(maps[0]).any()
    np.testing.assert_allclose(maps[1], maps[0], rtol=0, atol=1e-5)


def test_patches_readable_in_a_block_are_those_that_would_be_cut_whole(shared: Path) -> None:
    slide, plan = everything(shared / "data/bad/five_tiles_corrupt.svs", block_px=2048, stride_px=30)
    found = []
    for block in plan.blocks():
        pixels = slide.read_readable(block.read_box, plan.grid.plane)
        expected = cut_patches(pixels, block, plan.grid).readable
        assert np.array_equal(readable_patches(pixels, block, plan.grid), expected)
        found.append(expected)
    assert not np.concatenate(found).all()


def test_a_form_has_the_weights_of_now_also_after_the_network_went_elsewhere() -> None:
    network = build_network("plain_cnn", input_px=50).eval()
    form = dense_form(network, 50)
    network.to(torch.float64)  # in place, as a network goes to a GPU; another dtype shows it without one
    with torch.no_grad():
        patch = torch.rand(1, 3, 50, 50, dtype=torch.float64)
        np.testing.assert_allclose(form.logits(patch)[..., 0, 0], network(patch), rtol=0, atol=1e-9)
