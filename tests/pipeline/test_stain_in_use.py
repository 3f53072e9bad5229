"""Macenko's and Reinhard's methods, as a card asks for them, in maps, in training and in evaluation."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise, tissue_texture, write_slide
from models import brightness_model

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.inference.stain_check import sample_patches
from wsi_pipeline.learning.datasets.load import LabelledPatches
from wsi_pipeline.learning.training.card import stain_of
from wsi_pipeline.models.card import ModelCard, Stain
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.stain import as_the_card_wants, colours_of, normalise_stain
from wsi_pipeline.models.stain_methods import PixelMethod, as_numbers, find_stains
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.results.store import SlideStore
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import make_overview
from wsi_pipeline.tiling.patches import read_patches

METHODS: tuple[PixelMethod, ...] = ("macenko", "reinhard")


def tissue(height: int, width: int, seed: int, tint: tuple[int, int, int]) -> np.ndarray:
    """Eosin, with haematoxylin in places."""
    amount = noise(height, width, seed)[..., :1].astype(float) / 255
    nuclei = noise(height, width, seed + 1)[..., :1] > 150
    rgb = np.array(tint) - 60 * amount - nuclei * np.array([90, 70, 20])
    return rgb.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def reference() -> LabelledPatches:
    patches = tissue(500, 500, 3, (235, 160, 205)).reshape(10, 50, 10, 50, 3).swapaxes(1, 2)
    labels = (np.arange(100) % 2).astype(np.uint8)
    return LabelledPatches(patches.reshape(-1, 50, 50, 3), labels, np.array(["a", "b"] * 50))


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    image = np.full((1200, 1600, 3), 243, np.uint8)
    image[100:-100, 100:-100] = tissue(1000, 1400, 0, (200, 130, 210))
    return write_slide(tmp_path_factory.mktemp("slide") / "a.tiff", image, (4.0, 4.0), factors=(1, 4))


def asking(method: PixelMethod, stain: Stain, strength: float = 1.0) -> Model:
    model = brightness_model()
    card = replace(model.card, stain=stain, stain_normalisation=strength, stain_method=method)
    return replace(model, card=card)


def of(model: Model) -> Classifier:
    return Classifier([model], torch.device("cpu"), ClassifyOptions(precision="fp32", engine="torch"))


@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_of_colours_measured_on_the_slides_own_sample_and_resumes_to_the_same(
    method, reference, slide, tmp_path
):
    stain = stain_of(reference, method=method)
    model = asking(method, stain)
    result = infer_slide(slide, tmp_path / "out", InferConfig(), of(model))
    heatmap = SlideStore(result.folder / "slide.zarr").array("heatmap/0")[:]
    plain = infer_slide(slide, tmp_path / "plain", InferConfig(), of(brightness_model()))
    assert plain.map_key != result.map_key
    assert np.nanmax(np.abs(SlideStore(plain.folder / "slide.zarr").array("heatmap/0")[:] - heatmap)) > 0.02
    config = InferConfig()
    with open_slide(slide) as opened:
        grid = grid_for_model(config.grid, 50, 4.0)
        plan = make_overview(opened, config.overview, grid).plan
        table = colours_of(sample_patches(opened, plan), stain, 1.0, method)
        for block in plan.blocks():
            cut = read_patches(block, plan.grid, plan.grid.reader(opened))
            expected = of(brightness_model()).scores(normalise_stain(cut.rgb, table))
            columns, rows = block.patches.T
            assert np.abs(heatmap[rows, columns] - expected).max() < 1e-5

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_slide(slide, tmp_path / "broken", InferConfig(), of(model), RunOptions(progress=stop))
    again = infer_slide(slide, tmp_path / "broken", InferConfig(), of(model))
    assert np.array_equal(
        SlideStore(again.folder / "slide.zarr").array("heatmap/0")[:], heatmap, equal_nan=True
    )
    keys = {infer_key(replace(model, card=card), slide, tmp_path) for card in others_of(model.card)}
    assert len(keys | {result.map_key, plain.map_key}) == 4


def others_of(card: ModelCard) -> list[ModelCard]:
    *rest, last = card.stain.reference
    moved = (*rest, last * 1.01)
    return [
        replace(card, stain_normalisation=0.5),
        replace(card, stain=replace(card.stain, reference=moved)),
    ]


def infer_key(model: Model, slide: Path, folder: Path) -> str:
    name = str(hash((*model.card.stain.reference, model.card.stain_normalisation)))
    return infer_slide(slide, folder / name, InferConfig(), of(model)).map_key


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_normalises_each_patients_patches_as_a_map_does_its_slides(method, reference):
    stain = stain_of(reference, method=method)
    assert len(stain.reference) == (8 if method == "macenko" else 6)
    other = (
        tissue(500, 500, 8, (200, 130, 210)).reshape(10, 50, 10, 50, 3).swapaxes(1, 2).reshape(-1, 50, 50, 3)
    )
    card = asking(method, stain).card
    both = np.concatenate([other, reference.pixels])
    patients = np.array(["x"] * 100 + ["y"] * 100)
    new = as_the_card_wants(both, patients, card)
    before, after = (
        np.abs(np.array(as_numbers(find_stains(method, pixels))) - stain.reference).max()
        for pixels in (other[:64], new[:64])
    )
    assert after < before / 2
    alone = of(asking(method, stain)).adapted(np.zeros((1, 3)), other)
    assert np.array_equal(alone.scores(other), of(brightness_model()).scores(new[:100]))


def test_a_slide_whose_stain_cannot_be_told_is_mapped_as_it_is_with_a_warning(reference, tmp_path):
    pale = np.full((1200, 1600, 3), 243, np.uint8)
    pale[100:-100, 100:-100] = tissue_texture(1000, 1400, (212, 185, 205)).clip(0, 255)
    path = write_slide(tmp_path / "pale.tiff", pale.astype(np.uint8), (4.0, 4.0), factors=(1, 4))
    model = asking("macenko", stain_of(reference, method="macenko"))
    result = infer_slide(path, tmp_path / "out", InferConfig(), of(model))
    assert any(
        "the slide's stain was not normalised as the model's card asks: found" in line
        for line in result.warnings
    )
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["warnings"] == list(result.warnings)


def test_a_card_without_the_reference_that_its_method_needs_is_refused():
    with pytest.raises((ValueError, ModelError), match="found 0 numbers of macenko's reference, expected 8"):
        asking("macenko", Stain())
