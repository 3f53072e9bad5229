"""Architectures: their sizes, what is put around them, and weights to start from."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.learning.training.pretrained import load_average, load_pretrained, pretrained_files
from wsi_pipeline.learning.training.train import load_train_options
from wsi_pipeline.models.architectures.inputs import PreparedInput
from wsi_pipeline.models.architectures.torchvision_guard import torchvision
from wsi_pipeline.models.cost import network_cost
from wsi_pipeline.models.model import build_network, load_model

CONFIGS = Path(__file__).parents[2] / "configs" / "train"


def of_config(name: str) -> torch.nn.Module:
    options = load_train_options(CONFIGS / f"{name}.yaml")
    return build_network(options.architecture, **options.architecture_options)


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def patches(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_cnn_at_512_has_the_126053953_parameters_it_is_known_by():
    with torch.device("meta"):  # shapes without numbers
        assert parameters(of_config("cnn_512")) == 126_053_953


def test_the_cnn_at_180_is_three_padded_convolutions_and_two_dense_layers():
    convolutions = 3 * 9 * 16 + 16 + 16 * 9 * 32 + 32 + 32 * 9 * 64 + 64
    dense = 22 * 22 * 64 * 128 + 128 + 128 * 2 + 2
    assert parameters(of_config("cnn_180")) == convolutions + dense


def test_cancernet_is_six_separable_convolutions_and_a_dense_layer_each_with_a_norm():
    channels = [(3, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128)]
    convolutions = sum(9 * before + before * after + after + 2 * after for before, after in channels)
    dense = 6 * 6 * 128 * 256 + 256 + 2 * 256 + 256 * 2 + 2
    assert parameters(of_config("cancernet")) == convolutions + dense


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg16"])
def test_the_networks_of_torchvision_are_torchvisions(name):
    with torch.device("meta"):  # shapes without numbers
        assert parameters(of_config(name)) == parameters(getattr(torchvision.models, name)(num_classes=2))


@pytest.mark.parametrize("name", ["cancernet", "cnn_180", "resnet50_elu", "resnet18", "densenet121"])
def test_networks_of_the_line_up_take_patches_of_50_and_of_another_size(name):
    network = of_config(name).eval()
    with torch.inference_mode():
        for side in (50, 75):
            assert network(patches(2, side)).shape == (2, 2)


def test_one_output_is_a_sigmoid_and_its_cross_entropy_the_binary_one():
    torch.manual_seed(0)
    network = build_network("plain_cnn", input_px=16, widths=[4], dense=8, one_output=True)
    logits = network(patches(6, 16))
    z = logits[:, 1]
    assert logits[:, 0].eq(0).all()
    assert torch.allclose(logits.softmax(dim=1)[:, 1], torch.sigmoid(z))
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    both = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.allclose(both, torch.nn.functional.binary_cross_entropy_with_logits(z, labels.float()))
    with pytest.raises(ModelError, match="2 classes"):
        build_network("plain_cnn", classes=3, input_px=16, one_output=True)


def test_elu_takes_the_place_of_every_relu():
    kinds = [type(module) for module in of_config("resnet50_elu").modules()]
    assert torch.nn.ReLU not in kinds
    assert kinds.count(torch.nn.ELU) == 17


def test_a_large_batch_gives_what_its_patches_give_alone():
    torch.manual_seed(0)
    network = build_network("plain_cnn", input_px=512, widths=[2, 2], dense=4).eval()
    some = patches(20, 50)  # more than go through at once
    with torch.inference_mode():
        alone = torch.cat([network(some[i : i + 1]) for i in range(20)])
        assert torch.allclose(network(some), alone, atol=1e-5)


def test_enlarging_keeps_what_is_seen_where_it_is():
    image = torch.zeros(1, 3, 50, 50)
    image[:, :, :25] = 1
    seen = PreparedInput(torch.nn.Identity(), 180).eval()(image)
    assert seen.shape == (1, 3, 180, 180)
    assert seen[:, :, :87].min() > 0.99
    assert seen[:, :, 93:].max() < 0.01


def test_a_network_built_for_one_side_must_be_told_it():
    with pytest.raises(ModelError, match="input_px"):
        build_network("plain_cnn")
    with pytest.raises(ModelError, match="too small"):
        build_network("cancernet", input_px=4)
    with pytest.raises(ModelError, match="clip"):
        build_network("resnet18", clahe={"clip": -1.0})


def test_cost_counts_parameters_and_two_operations_a_product():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(400, 2)
    )
    cost = network_cost(network, 10)
    assert cost.parameters == 3 * 9 * 4 + 4 + 400 * 2 + 2
    assert cost.mflop == pytest.approx((2 * 100 * 27 * 4 + 2 * 800) / 1e6)
    assert network.training


@pytest.mark.parametrize("architecture", ["residual_cnn", "resnet18"])
def test_cost_is_what_torch_counts(architecture):
    network = build_network(architecture)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 50, 50))
    assert network_cost(network, 50).mflop == counter.get_total_flops() / 1e6


def test_weights_of_torchvision_are_taken_but_for_their_1000_classes(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    network = build_network("resnet18")
    head = network.fc.weight.clone()
    assert load_pretrained(network, "resnet18", tmp_path / "resnet18.pth") is False
    assert torch.equal(network.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert torch.equal(network.fc.weight, head)


def test_weights_of_ours_are_taken_with_their_last_layer_also_behind_other_steps(tmp_path):
    theirs = build_network("residual_cnn", widths=[4, 8], blocks=[1, 1], input_px=20)
    save_file(theirs.state_dict(), tmp_path / "ours.safetensors")
    network = build_network("residual_cnn", widths=[4, 8], blocks=[1, 1])
    assert load_pretrained(network, "residual_cnn", tmp_path / "ours.safetensors") is True
    assert torch.equal(network.head.weight, theirs.network.head.weight)


def test_of_several_files_the_mean_of_the_weights_is_taken(tmp_path):
    networks = [build_network("residual_cnn", widths=[4], blocks=[1]) for _ in range(2)]
    for i, network in enumerate(networks):
        save_file(network.state_dict(), tmp_path / f"{i}.safetensors")
    mean = build_network("residual_cnn", widths=[4], blocks=[1])
    assert load_average(mean, "residual_cnn", [tmp_path / f"{i}.safetensors" for i in range(2)])
    for name, tensor in mean.state_dict().items():
        first, second = (network.state_dict()[name] for network in networks)
        torch.testing.assert_close(tensor, (first + second) / 2 if tensor.is_floating_point() else first)


def test_densenets_of_older_files_are_understood(tmp_path):
    theirs = torchvision.models.densenet121().state_dict()
    old = {}
    for name, tensor in theirs.items():
        for part in ("norm", "conv"):
            for number in "12":
                if "denselayer" in name:
                    name = name.replace(f".{part}{number}.", f".{part}.{number}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = tensor
    assert set(old) != set(theirs)
    torch.save(old, tmp_path / "densenet121.pth")
    network = build_network("densenet121")
    assert load_pretrained(network, "densenet121", tmp_path / "densenet121.pth") is False
    last = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(network.state_dict()[last], theirs[last])


def test_weights_of_another_network_or_no_weights_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    (tmp_path / "page.pth").write_text("<html>")
    wrong = {
        "resnet18.pth": "not weights of the 'densenet121'",
        "checkpoint.pth": "expected a state dict",
        "page.pth": "expected a state dict",
        "none.pth": "never fetched",
    }
    for name, found in wrong.items():
        with pytest.raises(ModelError, match=found) as caught:
            load_pretrained(build_network("densenet121"), "densenet121", tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_shipped_model_is_named_to_start_from_and_its_context_step_stays_behind():
    (path,) = pretrained_files("idc_default")
    shipped = load_model("idc_default")
    assert shipped.context is not None
    network = build_network("residual_cnn", **shipped.card.architecture_options)
    assert load_pretrained(network, "residual_cnn", path) is True
    state = network.state_dict()
    learned = {n: v for n, v in shipped.network.state_dict().items() if not n.startswith("known.")}
    assert any(name.startswith("condition.") for name in learned)
    assert all(torch.equal(state[name], values) for name, values in learned.items())
    # What it hears of a slide counts fully in training, however far that lies from those of another training.
    assert float(network.known.far) == 1e9
    assert pretrained_files(["mine.safetensors", "idc_default"]) == [Path("mine.safetensors"), path]


def test_without_torchvision_its_networks_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what an import finds where it is not installed
    monkeypatch.delitem(sys.modules, "wsi_pipeline.models.architectures.torchvision_guard", raising=False)
    with pytest.raises(ModelError, match=r"'resnet18' is torchvision's.*pip install '\.\[lineup\]'"):
        build_network("resnet18")
    assert build_network("residual_cnn")
