"""An encoder of timm's under a linear layer: trained from a file, frozen or not, and never anything fetched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from test_datasets import write_sheets

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.learning.datasets import SplitOptions
from wsi_pipeline.learning.training.options import TrainOptions
from wsi_pipeline.learning.training.pretrained import load_pretrained
from wsi_pipeline.learning.training.train import train
from wsi_pipeline.models.architectures.registry import build_network, core_of
from wsi_pipeline.models.model import load_model, normalised

pytest.importorskip("wsi_pipeline.models.architectures.torchvision_guard", reason="needs the extra 'encoder'")
timm = pytest.importorskip("timm", reason="needs the extra 'encoder'")

NAME = "vit_tiny_patch16_224"
SHAPE = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "init_values": 1e-5}


def encoder_file(path: Path) -> dict[str, torch.Tensor]:
    """A file as whoever trained the encoder gives it away: timm's names, with a classifier of theirs."""
    torch.manual_seed(5)
    state = timm.create_model(NAME, num_classes=7, **SHAPE).state_dict()
    safetensors.torch.save_file(state, path)
    return state


def test_an_encoder_of_a_file_gets_a_head_and_its_own_weights_stay(tmp_path: Path) -> None:
    state = encoder_file(tmp_path / "foundation.safetensors")
    data = write_sheets(tmp_path / "data")
    options = TrainOptions(
        name="mine",
        architecture="encoder",
        architecture_options={"encoder": NAME, "shape": SHAPE, "input_px": 32},
        pretrained=str(tmp_path / "foundation.safetensors"),
        patch_px=8,
        epochs=2,
        batch_size=32,
        split=SplitOptions(train=("train",), val=("val",)),
    )
    model = load_model(train(options, data, tmp_path / "out", torch.device("cpu")))
    own = core_of(model.network).state_dict()
    for name, values in own.items():
        if name.startswith("encoder."):
            assert torch.equal(values, state[name.removeprefix("encoder.")]), name
    assert own["head.weight"].shape == (2, SHAPE["embed_dim"])
    # The same by hand: timm's encoder, the file's weights, the linear layer.
    by_hand = timm.create_model(NAME, num_classes=0, **SHAPE).eval()
    by_hand.load_state_dict({name: values for name, values in state.items() if not name.startswith("head.")})
    patches = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    with torch.inference_mode():
        given = normalised(patches, model.card.mean, model.card.std)
        larger = torch.nn.functional.interpolate(given, (32, 32), mode="bilinear", align_corners=False)
        expected = by_hand(larger) @ own["head.weight"].T + own["head.bias"]
        assert torch.allclose(model.network(given), expected, atol=1e-5)


def test_patches_of_another_side_than_the_encoders_are_refused_with_what_to_set(tmp_path: Path) -> None:
    options = TrainOptions(
        name="mine",
        architecture="encoder",
        architecture_options={"encoder": NAME, "shape": SHAPE},
        patch_px=8,
        epochs=1,
        split=SplitOptions(train=("train",), val=("val",)),
    )
    with pytest.raises(ModelError, match=r"takes no patches of 8 px: .*; set architecture_options.input_px"):
        train(options, write_sheets(tmp_path / "data"), tmp_path / "out", torch.device("cpu"))


def test_only_a_network_that_is_trained_whole_learns_in_its_encoder() -> None:
    for trained, learns in (("head", False), ("all", True)):
        network = build_network("encoder", encoder=NAME, shape=SHAPE, trained=trained).train()
        network(torch.rand(2, 3, 32, 32)).sum().backward()
        core = core_of(network)
        assert (core.encoder.patch_embed.proj.weight.grad is not None) == learns
        assert core.encoder.training == learns
        assert core.head.weight.grad is not None


def test_a_file_of_another_encoder_is_refused(tmp_path: Path) -> None:
    encoder_file(tmp_path / "foundation.safetensors")
    deeper = build_network("encoder", encoder=NAME, shape=SHAPE | {"depth": 2})
    with pytest.raises(ModelError, match=r"lacks \d+ \(encoder.blocks.1"):
        load_pretrained(deeper, "encoder", tmp_path / "foundation.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "hf-hub:someone/else"}, "knows no encoder 'hf-hub:someone/else'"),
        ({"encoder": "local-dir:/tmp"}, "knows no encoder"),
        ({"encoder": "vit_gigantic"}, "as .*vit_giant"),
        ({"encoder": NAME, "shape": {"checkpoint_path": "x.pth"}}, "no argument of an encoder's shape"),
        ({"encoder": NAME, "shape": {"pretrained_cfg": {}}}, "no argument of an encoder's shape"),
        ({"encoder": NAME, "shape": {"depth": 10**9}}, "expected a number of 0 to"),
        ({"encoder": NAME, "shape": {"mlp_layer": "os.system"}}, "expected one of Mlp"),
        ({"encoder": NAME, "shape": {"embed_dim": 25, "num_heads": 2}}, "cannot be built with"),
        ({"encoder": NAME, "shape": {"depth": 16384}}, "expected a number of 0 to 256"),
        ({"encoder": NAME, "shape": {"depth": 1.5}}, "cannot be built with"),
        ({"encoder": "resnet10t", "shape": {"depth": 3}}, "cannot be built with"),
        ({"encoder": 3}, "knows no encoder '3'"),
        ({"encoder": NAME, "trained": "tail"}, "neither head nor all"),
        ({"encoder": NAME, "pooling": "avg"}, "expected one of token, mean, token_and_mean"),
        ({"encoder": NAME, "pooling": "mean", "shape": {"global_pool": "avg"}}, "leave one out"),
        ({"encoder": "resnet10t", "pooling": "mean"}, "cannot be built with"),
        ({"encoder": "swin_tiny_patch4_window7_224", "pooling": "mean"}, "gives no tokens"),
        ({"encoder": "vit_base_patch16_siglip_224", "pooling": "token"}, "has no class token; expected mean"),
    ],
)
def test_what_is_no_encoder_is_refused_and_nothing_is_read_or_fetched(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_network("encoder", **options)


def test_the_shape_of_a_large_foundation_model_can_be_said() -> None:
    shape: dict[str, Any] = {
        **{"img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 1, "num_heads": 2, "reg_tokens": 8},
        **{"mlp_ratio": 5.33334, "init_values": 1e-5, "no_embed_class": True, "dynamic_img_size": True},
        **{"mlp_layer": "SwiGLUPacked", "act_layer": "silu"},
    }
    network = build_network("encoder", encoder="vit_giant_patch14_224", shape=shape, input_px=28).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 50, 50)).shape == (2, 2)


@pytest.mark.parametrize("pooling", ["token", "mean", "token_and_mean"])
def test_features_of_several_outputs_are_those_put_together_by_hand(pooling: str) -> None:
    shape = SHAPE | {"reg_tokens": 3}
    torch.manual_seed(2)
    by_hand = timm.create_model(NAME, num_classes=0, global_pool="", **shape).eval()
    network = build_network("encoder", encoder=NAME, shape=shape, pooling=pooling).eval()
    core = core_of(network)
    core.encoder.load_state_dict(by_hand.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = by_hand(x)  # [N, class, three registers and four patches, width]
        assert tokens.shape == (2, 8, 24)
        parts = {"token": [tokens[:, 0]], "mean": [tokens[:, 4:].mean(1)]}
        features = torch.cat(parts.get(pooling) or parts["token"] + parts["mean"], dim=1)
        assert torch.allclose(network(x), features @ core.head.weight.T + core.head.bias, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "lcnet_050", "resnet10t"])
def test_the_layer_is_as_wide_as_what_the_encoder_gives(name: str) -> None:
    network = build_network("encoder", encoder=name).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
