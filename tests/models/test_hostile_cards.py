"""Cards and weights that say what cannot be: each is refused with a line, before any memory is filled."""

import hashlib
import json
import resource
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.models.model import MOST_CARD_BYTES, SHIPPED, build_network, load_model

CARD = json.loads((SHIPPED / "idc_default.json").read_text())
NAN, INF = float("nan"), float("inf")


def written(folder: Path, **changes: object) -> Path:
    shutil.copy(SHIPPED / "idc_default.safetensors", folder / "m.safetensors")
    (folder / "m.json").write_text(json.dumps(CARD | changes))
    return folder / "m.safetensors"


def with_weights(folder: Path, data: bytes) -> Path:
    (folder / "m.safetensors").write_bytes(data)
    card = CARD | {"weights_sha256": hashlib.sha256(data).hexdigest()}
    (folder / "m.json").write_text(json.dumps(card))
    return folder / "m.safetensors"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log_odds_shift", NAN),
        ("log_odds_shift", INF),
        ("log_odds_shift", 1e9),
        ("temperature", INF),
        ("temperature", 0.0),
        ("temperature", 1e-30),
        ("threshold", NAN),
        ("mean", [NAN, 0.5, 0.5]),
        ("std", [0.0, 1.0, 1.0]),
        ("std", [-1.0, -1.0, -1.0]),
        ("mean", [1e300, 0.5, 0.5]),
        ("mean", [-1e6, 0.5, 0.5]),
        ("std", [1e300, 1.0, 1.0]),
        ("std", [1e-300, 1.0, 1.0]),
        ("stain", CARD["stain"] | {"od_mean": [-1.0, 0.2, 0.2]}),
        ("stain", CARD["stain"] | {"od_mean": [1e300, 0.2, 0.2]}),
        ("stain", CARD["stain"] | {"od_std": [-1.0, 0.2, 0.2]}),
        ("classes", ["idc", "idc"]),
        ("name", "x" * 1_000_000),
        ("limits", "x" * 1_000_000),
        ("mpp", 1e-300),
        ("mpp", -4.0),
        ("mpp", INF),
        ("patch_px", 0),
        ("patch_px", 100_000),
        ("stain_normalisation", NAN),
    ],
)
def test_a_number_that_makes_no_sense_is_named(tmp_path, key, value):
    with pytest.raises(ModelError, match=key):
        load_model(written(tmp_path, **{key: value}))


@pytest.mark.parametrize("key", ["temperature", "log_odds_shift", "threshold"])
def test_so_is_one_of_the_context_step(tmp_path, key):
    with pytest.raises(ModelError, match=f"context.{key}"):
        load_model(written(tmp_path, context=CARD["context"] | {key: NAN}))


@pytest.mark.parametrize(
    "options",
    [
        {"widths": [200_000] * 4, "blocks": [1, 1, 1, 1]},
        {"widths": [20, 56, 112, 192], "blocks": [100_000, 1, 1, 1]},
    ],
)
def test_a_network_that_would_fill_the_memory_is_refused(tmp_path, options):
    with pytest.raises(ModelError, match=r"expected at most .* channels and .* blocks"):
        load_model(written(tmp_path, architecture_options=options))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("cancernet", {"input_px": 2**24}),
        ("plain_cnn", {"input_px": 2**24}),
        ("resnet50", {"width_per_group": 2**22}),
        (
            "encoder",
            {
                "encoder": "vit_tiny_patch16_224",
                "shape": {"img_size": 4096, "patch_size": 1, "embed_dim": 12288},
            },
        ),
        ("encoder", {"encoder": "eva02_enormous_patch14_clip_224"}),
    ],
)
def test_a_network_larger_than_its_weights_is_refused_before_it_takes_memory(tmp_path, architecture, options):
    if architecture not in ("cancernet", "plain_cnn"):
        pytest.importorskip("wsi_pipeline.models.architectures.torchvision_guard", reason="needs torchvision")
    if architecture == "encoder":
        pytest.importorskip("timm", reason="needs the extra 'encoder'")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="the weights do not fit the"):
        load_model(written(tmp_path, architecture=architecture, architecture_options=options))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # kB


def test_what_a_network_holds_beside_its_weights_is_bounded_too(tmp_path):
    pytest.importorskip("wsi_pipeline.models.architectures.torchvision_guard", reason="needs torchvision")
    pytest.importorskip("timm", reason="needs the extra 'encoder'")
    shape = {"embed_dim": 12}
    options = {"encoder": "swin_tiny_patch4_window7_224", "shape": shape}
    network = build_network("encoder", **options)
    path = with_weights(tmp_path, safetensors.torch.save(network.state_dict()))
    card = json.loads((tmp_path / "m.json").read_text()) | {"architecture": "encoder", "context": None}
    card["architecture_options"] = options
    path.with_suffix(".json").write_text(json.dumps(card))
    load_model(path)
    shape["img_size"] = 4096  # its masks of attention lie in no file
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="values beside its weights, expected at most"):
        load_model(path)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    state = safetensors.torch.load_file(SHIPPED / "idc_default.safetensors")
    name = next(name for name in state if name.endswith("stem.0.weight"))
    state[name][0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"no numbers in 1 arrays .*stem\.0\.weight"):
        load_model(with_weights(tmp_path, safetensors.torch.save(state)))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**62) + b"{}",
        b"",
        *(
            struct.pack("<Q", len(header)) + header + b"\0" * 4
            for header in (
                json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode(),
                b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
                b'{"a":' * 100_000,
            )
        ),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, data):
    with pytest.raises(ModelError, match="expected a safetensors file"):
        load_model(with_weights(tmp_path, data))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"name": ' + "9" * 5000 + "}", "null", '"x"'])
def test_cards_that_are_none_are_refused(tmp_path, text):
    path = written(tmp_path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ModelError, match="expected a model card in JSON"):
        load_model(path)


def test_a_card_too_large_to_be_one_is_refused_unread(tmp_path):
    path = written(tmp_path, training={"notes": "x" * MOST_CARD_BYTES})
    with pytest.raises(ModelError, match="which no model card is"):
        load_model(path)


def test_a_network_that_gives_no_numbers_is_not_taken_for_damage_of_the_slide():
    from wsi_pipeline.inference.engines.batching import all_numbers

    assert all_numbers(np.array([0.0, 1.0], np.float32)).tolist() == [0.0, 1.0]
    with pytest.raises(ModelError, match=r"no numbers \(NaN\) for 2 of 3 patches"):
        all_numbers(np.array([0.5, np.nan, np.inf], np.float32))
