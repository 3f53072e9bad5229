"""Models round-trip through their two files, and what does not belong together is refused in one line."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_step
from torch.utils.flop_counter import FlopCounterMode

from wsi_pipeline.base.errors import ModelError, ScaleError, UsageError
from wsi_pipeline.base.options import options_from_dict, options_to_dict
from wsi_pipeline.learning.datasets import SplitOptions, load_split
from wsi_pipeline.learning.evaluation import metrics as evaluate
from wsi_pipeline.learning.evaluation.patches import evaluate_patches
from wsi_pipeline.models.architectures.torchvision_guard import declare_missing, torchvision
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import (
    SHIPPED,
    Model,
    build_network,
    idc_probability,
    load_model,
    load_models,
    normalised,
    save_model,
)

MFLOP_BUDGET = 60
IDC_DATA = Path(__file__).parents[3] / "shared" / "data" / "idc"

CARD = ModelCard(
    name="small",
    architecture="residual_cnn",
    architecture_options={"widths": [4, 8], "blocks": [1, 1], "squeeze": 2},
    patch_px=16,
    mpp=4.0,
    mean=(0.8, 0.6, 0.7),
    std=(0.1, 0.2, 0.15),
    temperature=1.7,
    log_odds_shift=-0.3,
    threshold=0.4,
    training={"patients": 3, "note": "µm"},
)
PATCHES = torch.randint(256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.manual_seed(0)
    network = build_network(CARD.architecture, **CARD.architecture_options)
    for norm in network.modules():  # as after training: no norm is at its start
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    save_model(tmp_path / "small.safetensors", network, CARD)
    return tmp_path / "small.safetensors"


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model("idc_default")


def refused(path: str | Path, *parts: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def edit_card(weights: Path, **changes: object) -> None:
    card = weights.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))


def test_a_card_round_trips_through_json():
    values = json.loads(json.dumps(options_to_dict(CARD)))
    assert options_from_dict(ModelCard, values, "here") == CARD


def test_a_saved_model_comes_back_the_same(saved):
    model = load_model(saved)
    assert replace(model.card, weights_sha256="") == CARD
    again = build_network(CARD.architecture, **CARD.architecture_options).eval()
    again.load_state_dict(model.network.state_dict())
    with torch.inference_mode():
        assert torch.allclose(
            idc_probability(model.network, CARD, PATCHES), idc_probability(again, CARD, PATCHES), atol=1e-6
        )


def test_a_loaded_network_is_ready_to_use(saved):
    network = load_model(str(saved)).network
    assert not network.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())
    kernel = next(p for p in network.parameters() if p.ndim == 4)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_nothing_but_the_two_files_is_left_beside_a_saved_model(saved):
    assert sorted(p.name for p in saved.parent.iterdir()) == ["small.json", "small.safetensors"]


def test_any_change_of_the_card_is_another_model(saved):
    before = load_model(saved).sha256
    edit_card(saved, threshold=0.41)
    assert load_model(saved).sha256 != before


def test_a_context_step_travels_with_the_model(saved):
    plain = load_model(saved)
    assert plain.context is None
    assert plain.card.context is None
    step = random_step(threshold=0.37)
    save_model(saved, plain.network, plain.card, step)
    model = load_model(saved)
    assert model.sha256 != plain.sha256
    assert model.card.context == model.context.card == step.card
    assert {name: values.tolist() for name, values in model.context.weights.items()} == {
        name: values.tolist() for name, values in step.weights.items()
    }
    with torch.inference_mode():
        assert torch.equal(
            idc_probability(model.network, model.card, PATCHES), idc_probability(plain.network, CARD, PATCHES)
        )
    save_model(saved, model.network, model.card)
    assert load_model(saved).card == plain.card


def test_a_card_written_before_there_were_context_steps_still_loads(saved):
    values = json.loads(saved.with_suffix(".json").read_text())
    del values["context"]
    saved.with_suffix(".json").write_text(json.dumps(values))
    assert load_model(saved).context is None


def test_a_context_step_that_does_not_fit_its_card_is_refused(saved):
    model, step = load_model(saved), random_step()
    save_model(saved, model.network, model.card, step)
    card = saved.with_suffix(".json").read_text()
    edit_card(saved, context=None)
    refused(saved, "small.safetensors", "its card says nothing")
    saved.with_suffix(".json").write_text(card)
    values = json.loads(card)["context"]
    edit_card(saved, context=values | {"options": values["options"] | {"sigmas": [1.0]}})
    refused(saved, "small.safetensors", "do not fit the card", "train-context")
    save_model(saved, model.network, model.card)
    edit_card(saved, context=values)
    refused(saved, "do not fit the card")
    edit_card(saved, context=values | {"kind": "blur"})
    refused(saved, "small.json", "rings")


def test_probabilities_are_calibrated_as_the_card_says(saved):
    model = load_model(saved)
    with torch.inference_mode():
        probability = idc_probability(model.network, model.card, PATCHES)
        logits = model.network(normalised(PATCHES, CARD.mean, CARD.std))
    assert probability.shape == (5,)
    assert probability.dtype == torch.float32
    assert torch.allclose(probability, torch.sigmoid((logits[:, 1] - logits[:, 0]) / 1.7 - 0.3), atol=1e-6)
    unshifted = replace(model.card, log_odds_shift=0.0)
    swapped = replace(unshifted, classes=("idc", "not_idc"))
    both = [idc_probability(model.network, card, PATCHES) for card in (unshifted, swapped)]
    assert torch.allclose(both[0] + both[1], torch.ones(5), atol=1e-6)


def test_normalisation_is_of_rgb_on_the_scale_0_to_1_and_channels_last():
    images = normalised(PATCHES, CARD.mean, CARD.std)
    expected = (PATCHES.double() / 255 - torch.tensor(CARD.mean)) / torch.tensor(CARD.std)
    assert torch.allclose(images, expected.permute(0, 3, 1, 2).float(), atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_missing_model_is_refused(tmp_path):
    refused("no_such_model", "no_such_model", "shipped name")
    refused(tmp_path / "no.safetensors", "no.safetensors", "cannot be read")


def test_weights_without_their_card_are_refused(saved):
    saved.with_suffix(".json").unlink()
    refused(saved, "small.json", "card")


def test_weights_of_another_training_are_refused(saved, tmp_path):
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_model(other, build_network(CARD.architecture, **CARD.architecture_options), CARD)
    other.replace(saved)
    refused(saved, "SHA-256", "expected")


def test_truncated_weights_are_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-10])
    refused(saved, "small.safetensors", "damaged")


def test_a_file_that_is_no_safetensors_is_refused(saved):
    saved.write_bytes(b"not weights")
    edit_card(saved, weights_sha256=hashlib.sha256(b"not weights").hexdigest())
    refused(saved, "expected a safetensors file")


def test_a_card_that_is_no_card_is_refused(saved):
    card = saved.with_suffix(".json")
    for text, found in (("{", "JSON"), ("[1]", "list"), ('{"patch": 50}', "patch"), ("\xff", "JSON")):
        card.write_text(text, encoding="latin-1")
        refused(saved, "small.json", found)


def test_a_card_without_the_class_idc_is_refused(saved):
    edit_card(saved, classes=["benign", "malignant"])
    refused(saved, "no class 'idc'")


def test_weights_that_do_not_fit_the_architecture_are_refused(saved):
    edit_card(saved, architecture_options={"widths": [4, 12], "blocks": [1, 1], "squeeze": 2})
    refused(saved, "do not fit", "architecture_options")
    edit_card(saved, architecture_options={"width": 4})
    refused(saved, "cannot be built")
    edit_card(saved, architecture="vgg")
    refused(saved, "vgg", "residual_cnn")


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(ModelError, match="safetensors"):
        save_model(tmp_path / "small.pt", build_network("residual_cnn"), CARD)


def test_torchvision_loads_whole_or_with_its_operators_declared():
    assert declare_missing() == []
    assert hasattr(torch.ops.torchvision, "nms")
    assert torchvision.__version__


def test_every_architecture_gives_one_logit_a_class_at_any_patch_size():
    for architecture in ("residual_cnn", "resnet18"):
        network = build_network(architecture, classes=3).eval()
        with torch.inference_mode():
            for size in (50, 41):
                assert network(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_the_shipped_network_is_within_its_flop_budget(shipped):
    size = shipped.card.patch_px
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shipped.network(torch.zeros(1, 3, size, size))
    assert counter.get_total_flops() <= MFLOP_BUDGET * 1e6


def test_the_shipped_model_is_small_and_sees_the_scale_of_the_set(shipped):
    assert (SHIPPED / "idc_default.safetensors").stat().st_size < 5e6
    assert (shipped.card.patch_px, shipped.card.mpp) == (50, 4.0)
    assert shipped.card.licence
    assert shipped.card.intended_use
    assert shipped.card.limits


def test_the_shipped_model_is_as_good_on_validation_patients_as_its_card_says(shipped):
    if not IDC_DATA.exists():
        pytest.skip(f"no labelled patches at {IDC_DATA}")
    _, val = load_split(IDC_DATA, shipped.card.patch_px, SplitOptions())
    picked = val.taken(np.arange(0, len(val), 6))
    probability = evaluate_patches(shipped, picked, torch.device("cpu")).probability
    found = evaluate.measures(probability, picked.labels, shipped.card.threshold)
    said = shipped.card.metrics["val"]
    # A sixth of the patches: some 350 with IDC.
    for measure in ("auroc", "f1", "balanced_accuracy"):
        assert found[measure] == pytest.approx(said[measure], abs=0.03)
    assert found["auroc"] > 0.955


def sibling(folder: Path, name: str, seed: int = 1, **card: object) -> Path:
    """Another small model beside the first."""
    torch.manual_seed(seed)
    network = build_network(CARD.architecture, **CARD.architecture_options)
    save_model(folder / f"{name}.safetensors", network, replace(CARD, name=name, **card))
    return folder / f"{name}.safetensors"


def test_members_of_an_ensemble_come_in_the_order_they_are_named(saved, tmp_path):
    other = sibling(tmp_path, "other")
    assert [m.card.name for m in load_models([other, saved])] == ["other", "small"]
    assert [m.sha256 for m in load_models([saved])] == [load_model(saved).sha256]


def test_the_same_weights_twice_are_refused_under_whatever_name(saved, tmp_path):
    with pytest.raises(UsageError, match=r"small\.safetensors: has the same weights as .*name it once"):
        load_models([saved, saved])
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(saved.read_bytes())
    twin.with_suffix(".json").write_text(saved.with_suffix(".json").read_text().replace("small", "twin"))
    with pytest.raises(UsageError, match=r"twin\.safetensors: has the same weights as .*small\.safetensors"):
        load_models([sibling(tmp_path, "other"), saved, twin])


@pytest.mark.parametrize("unlike", [{"patch_px": 32}, {"mpp": 2.0}])
def test_models_of_unlike_scale_make_no_ensemble(saved, tmp_path, unlike):
    other = sibling(tmp_path, "other", **unlike)
    with pytest.raises(
        ScaleError, match=r"other\.safetensors: sees .*small\.safetensors of 16 px at 4 um/px"
    ):
        load_models([saved, other])
