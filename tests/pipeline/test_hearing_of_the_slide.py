"""Maps by a network that hears of its slide: what it hears, on every engine, after a resume, in exports."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from test_infer import section

from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.inference.images import score_images
from wsi_pipeline.inference.stain_check import sample_patches
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.evaluation.patches import evaluate_patches
from wsi_pipeline.models.architectures.slide_condition import SlideConditioned
from wsi_pipeline.models.card import ModelCard, Stain
from wsi_pipeline.models.model import Model, build_network, load_model, save_model
from wsi_pipeline.models.stain import patch_densities
from wsi_pipeline.pipeline.config import InferConfig, TileConfig, TileGridOptions
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.tiling.grid import GridOptions

MakeSlide = Callable[..., Path]
CPU = torch.device("cpu")
OPTIONS = {"widths": [8, 16], "blocks": [1, 1], "squeeze": 2}


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small network that says something else of each slide, and knows slides like those below."""
    torch.manual_seed(3)
    network = build_network("residual_cnn", **OPTIONS, slide_condition={"hidden": 8}).eval()
    assert isinstance(network, SlideConditioned)
    last = network.condition[-1]
    torch.nn.init.normal_(last.weight, std=0.5)
    torch.nn.init.normal_(last.bias, std=0.5)
    last.bias.data[1] = 1.5  # so that hearing anything shows
    patches = torch.randn(80, 3, 50, 50)
    network.know_slides(network.features(patches).reshape(10, 8, -1).mean(dim=1))
    network.known.far.fill_(1e6)
    card = ModelCard(
        name="hearing",
        architecture="residual_cnn",
        architecture_options=OPTIONS | {"slide_condition": {"hidden": 8}},
        patch_px=50,
        mpp=4.0,
        mean=(0.7, 0.5, 0.65),
        std=(0.15, 0.15, 0.15),
        stain=Stain(od_mean=(0.2, 0.4, 0.25), od_std=(0.1, 0.1, 0.1), od_patient_std=(0.2, 0.2, 0.2)),
        stain_normalisation=0.5,
    )
    path = tmp_path_factory.mktemp("model") / "hearing.safetensors"
    save_model(path, network, card)
    return load_model(path)


def classifier(model: Model, **options: object) -> Classifier:
    return Classifier([model], CPU, ClassifyOptions(**{"precision": "fp32"} | options))  # type: ignore[arg-type]


def patch_map(folder: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(folder / "slide.zarr/heatmap/0", mode="r")[...])


def test_a_map_is_of_what_the_network_hears_of_the_slide_and_says_so(
    make_slide: MakeSlide, tmp_path: Path, hearing: Model
) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    folder = infer_slide(path, tmp_path / "told", InferConfig(), classifier(hearing)).folder
    deaf = replace(hearing, network=hearing.network.core, sha256="1" * 64)
    without = infer_slide(path, tmp_path / "deaf", InferConfig(), classifier(deaf)).folder
    assert np.nanmax(np.abs(patch_map(folder) - patch_map(without))) > 0.02
    told = json.loads((folder / "summary.json").read_text())["slide_condition"]
    assert told["patches"] == 64
    assert 0 < told["distance"][0] < 1
    assert json.loads((without / "summary.json").read_text())["slide_condition"] is None


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_engine_hears_the_same(engine: str, precision: str, hearing: Model) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    if (engine, precision) == ("torch", "int8"):
        pytest.skip("torch has no int8 here")
    patches = np.random.default_rng(0).integers(60, 250, (70, 50, 50, 3), dtype=np.uint8)
    densities = patch_densities(patches)
    plain = classifier(hearing, engine="torch").adapted(densities, patches)
    other = classifier(hearing, engine=engine, precision=precision).adapted(densities, patches)
    deaf = classifier(hearing, engine=engine, precision=precision).adapted(densities)
    tolerance = {"fp32": 1e-5, "bf16": 0.05, "int8": 0.1}[precision]
    assert np.abs(plain.scores(patches) - deaf.scores(patches)).max() > 0.1
    assert np.abs(plain.scores(patches) - other.scores(patches)).max() < tolerance


def test_a_map_goes_on_with_what_was_heard_when_it_was_begun(
    make_slide: MakeSlide, tmp_path: Path, hearing: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    config = InferConfig(grid=GridOptions(block_px=256))
    whole = infer_slide(path, tmp_path / "whole", config, classifier(hearing)).folder
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_slide(path, tmp_path / "part", config, classifier(hearing), RunOptions(progress=stop))

    def another(*_: object) -> None:
        raise AssertionError("heard again")

    # Another machine might hear another last bit.
    monkeypatch.setattr(SlideConditioned, "head_of", another)
    part = infer_slide(path, tmp_path / "part", config, classifier(hearing)).folder
    assert np.array_equal(patch_map(whole), patch_map(part), equal_nan=True)
    kept = [json.loads((folder / "summary.json").read_text())["slide_condition"] for folder in (whole, part)]
    assert kept[0] == kept[1]


def test_exported_patches_hear_what_the_map_of_their_slide_heard(
    make_slide: MakeSlide, tmp_path: Path, hearing: Model
) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    folder = infer_slide(path, tmp_path / "maps", InferConfig(), classifier(hearing)).folder
    grid = TileGridOptions(patch_px=50, mpp=4.0, min_tissue=0.1)
    tiles = tile_slide(path, tmp_path / "tiles", TileConfig(grid=grid), export=True).folder
    pictures = sorted((tiles / "export/a/unlabelled").iterdir())
    scores = list(score_images(pictures, classifier(hearing)))
    values = patch_map(folder)
    of_map = {f"a_x{50 * x}_y{50 * y}": values[y, x] for y, x in np.argwhere(~np.isnan(values)).tolist()}
    assert {s.path.stem: s.mean for s in scores} == pytest.approx(of_map, abs=1e-4)  # type: ignore[union-attr]
    for name in json.loads((tiles / "export/a/export.json").read_text())["stain"]["sample"][:1]:
        (tiles / "export/a" / name).unlink()
    left = [s for s in score_images(sorted((tiles / "export/a/unlabelled").iterdir()), classifier(hearing))]
    apart = max(abs(s.mean - of_map[s.path.stem]) for s in left)  # type: ignore[union-attr]
    assert apart > 0.02  # without its sample nothing is heard


def test_a_slide_unlike_all_training_slides_is_warned_of(
    make_slide: MakeSlide, tmp_path: Path, hearing: Model
) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    network = hearing.network
    assert isinstance(network, SlideConditioned)
    before = float(network.known.far)
    network.known.far.fill_(1e-3)
    try:
        folder = infer_slide(path, tmp_path / "far", InferConfig(), classifier(hearing)).folder
    finally:
        network.known.far.fill_(before)
    summary = json.loads((folder / "summary.json").read_text())
    assert any("unlike the model's training slides" in warning for warning in summary["warnings"])
    assert summary["slide_condition"]["distance"][0] > 2


def test_evaluation_hears_of_each_patient_and_nothing_of_single_images(hearing: Model) -> None:
    random = np.random.default_rng(0)
    dark, bright = (random.integers(low, low + 90, (20, 50, 50, 3), dtype=np.uint8) for low in (60, 160))
    side = LabelledPatches(
        np.concatenate([dark, bright]), np.arange(40, dtype=np.uint8) % 2, np.repeat(["a", "b"], 20)
    )
    both = evaluate_patches(hearing, side, CPU).logits
    alone = evaluate_patches(hearing, side.taken(np.arange(20)), CPU).logits
    np.testing.assert_allclose(both[:20], alone, atol=1e-4)  # another patient beside it changes nothing
    images = replace(side, by="image", patients=np.arange(40).astype(str))
    single = evaluate_patches(hearing, images, CPU).logits
    assert np.abs(single - both).max() > 0.05


def test_the_sample_of_a_slide_is_spread_over_its_tissue(make_slide: MakeSlide, hearing: Model) -> None:
    from wsi_pipeline.pipeline.maps import grid_for_model
    from wsi_pipeline.slides.slide import open_slide
    from wsi_pipeline.tiling.overview import make_overview

    config = InferConfig()
    slide = open_slide(make_slide("a.tiff", section(), mpp=(4.0, 4.0)))
    plan = make_overview(slide, config.overview, grid_for_model(config.grid, 50, 4.0)).plan
    sample = sample_patches(slide, plan)
    assert len(sample) == 64
    halves = sample.mean(axis=(1, 2, 3)) > sample.mean()
    assert 20 < halves.sum() < 44
