"""ONNX files as models: the numbers that their file gives by hand, or a refusal that says why."""

import builtins
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from made_packages import CLASSES, by_hand, network, package, patches, save_onnx, save_torchscript, scores
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.models.model import load_model
from wsi_pipeline.models.quiet_openvino import openvino


def by_reference(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The file run by onnx's own slow evaluator, in numpy."""
    session = ReferenceEvaluator(str(path))
    return lambda patch: session.run(None, {session.input_names[0]: patch})[0]


def by_openvino(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda patch: compiled(patch)[0]


@pytest.mark.parametrize("size", [48, 112, None])
def test_a_file_gives_what_it_gives_by_hand(tmp_path: Path, size: int | None) -> None:
    folder, images = package(tmp_path / "p", size, save=save_onnx), patches(40)
    found = scores(folder, images)
    assert np.ptp(found) > 0.005
    for by in (by_reference, by_openvino):
        expected = by_hand(by(folder / "model.onnx"), images, size)
        assert np.abs(found - expected[:, 1]).max() < 5e-5
    assert np.abs(scores(f"{folder / 'model.onnx'}#stroma", images) - expected[:, 0]).max() < 5e-5


@pytest.mark.parametrize("batch", [1, 3])
def test_a_file_of_one_size_of_batch_is_filled_up(tmp_path: Path, batch: int) -> None:
    folder, images = package(tmp_path / "p", save=partial(save_onnx, batch=batch)), patches(7)
    free = package(tmp_path / "free", save=save_onnx)
    assert np.abs(scores(folder, images) - scores(free, images)).max() < 1e-6


class Flattened(nn.Module):
    """Knows of one patch alone, whatever N its export says."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).reshape(1, 3)


def test_a_file_that_knows_of_one_patch_alone_gets_one_by_one(tmp_path: Path) -> None:
    folder, images = package(tmp_path / "p", save=lambda _, *rest: save_onnx(Flattened(), *rest)), patches(5)
    assert np.abs(scores(folder, images) - scores(package(tmp_path / "q"), images)).max() < 5e-5


def test_one_output_gives_its_sigmoid(tmp_path: Path) -> None:
    folder, images = package(tmp_path / "p", classes=("tumor",), save=save_onnx), patches()
    expected = by_hand(by_reference(folder / "model.onnx"), images)
    assert np.abs(scores(folder, images) - expected[:, 0]).max() < 5e-5


def test_threads_change_no_bit(tmp_path: Path) -> None:
    folder, images, before = package(tmp_path / "p", save=save_onnx), patches(70), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(scores(folder, images))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


def test_summaries_say_who_computes_it_and_what_was_asked_for_in_vain(tmp_path: Path) -> None:
    model = load_model(package(tmp_path / "p", save=save_onnx))
    info = Classifier([model], torch.device("cpu"), ClassifyOptions(precision="bf16")).engine_info[0]
    assert (info["engine"], info["precision"]) == ("onnx by openvino", "fp32")
    assert info["refused"] == ["onnx bf16: the network of an ONNX file is computed in fp32 alone"]
    info = Classifier([model], torch.device("cpu"), ClassifyOptions()).engine_info[0]
    assert info["refused"] == []


def test_two_networks_in_a_folder_are_to_be_named(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", save=save_onnx)
    save_torchscript(network(), folder, 48)
    with pytest.raises(ModelError, match=r"found torchscript_model.pt, model.onnx, expected one"):
        load_model(folder)
    named = {load_model(folder / name).sha256 for name in ("torchscript_model.pt", "model.onnx")}
    assert len(named) == 2


def test_a_file_without_a_config_says_what_it_lacks(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", save=save_onnx)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config.json beside it, which says its scale"):
        load_model(folder / "model.onnx")


def with_weights_beside(folder: Path) -> Path:
    """The package with its weights moved to the file weights.bin."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=False,
    )
    return path


def test_weights_in_a_file_beside_it_are_its_own(tmp_path: Path) -> None:
    folder, images = package(tmp_path / "p", save=save_onnx), patches()
    expected = scores(folder, images)
    path = with_weights_beside(folder)
    before = load_model(folder).sha256
    np.testing.assert_array_equal(scores(folder, images), expected)
    weights = bytearray((folder / "weights.bin").read_bytes())
    weights[1] ^= 1
    (folder / "weights.bin").write_bytes(weights)
    assert load_model(folder).sha256 != before
    (folder / "weights.bin").write_bytes(weights[:100])
    with pytest.raises(ModelError, match=r"has 100 bytes, expected .* as model.onnx says"):
        load_model(path)
    (folder / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights.bin: does not exist, and model.onnx has weights there"):
        load_model(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "", ".", "sub/../../weights.bin"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    path = with_weights_beside(package(tmp_path / "p", save=save_onnx))
    (path.parent / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="expected a file in its own folder"):
        load_model(path)


def test_a_link_to_weights_elsewhere_is_refused(tmp_path: Path) -> None:
    path = with_weights_beside(package(tmp_path / "p", save=save_onnx))
    (path.parent / "weights.bin").rename(tmp_path / "weights.bin")
    (path.parent / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="expected a file in its own folder"):
        load_model(path)


def changed(folder: Path, change: Callable[[onnx.ModelProto], Any]) -> Path:
    path = package(folder, save=save_onnx) / "model.onnx"
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def lies(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def lies_below_nothing(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def has_nan(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def loops(model: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "b", [], [])
    model.graph.node.insert(0, helper.make_node("Loop", ["", "", "x"], ["y"], body=body))


def loops_in_a_branch(model: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Loop", ["", ""], ["y"])], "b", [], [])
    model.graph.node.insert(0, helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body))


def has_own_operators(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def has_functions(model: onnx.ModelProto) -> None:
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "", "Again", ["a"], ["b"], [helper.make_node("Again", ["a"], ["b"])], opset
    )
    model.functions.append(function)


def gives_two(model: onnx.ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, ["n", 4, 15, 15])
    )


def gives_probabilities(model: onnx.ModelProto) -> None:
    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Softmax", [output.name], ["p"], axis=1))
    output.name = "p"


def gives_probabilities_by_hand(model: onnx.ModelProto) -> None:
    """A softmax of other operators."""
    output = model.graph.output[0]
    model.graph.node.extend(
        [
            helper.make_node("Exp", [output.name], ["e"]),
            helper.make_node("ReduceSum", ["e", "axes"], ["s"], keepdims=1),
            helper.make_node("Div", ["e", "s"], ["p"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    output.name = "p"


def swells(model: onnx.ModelProto) -> None:
    """A file of some bytes that adds a mean over 2^38 values, made of nothing."""
    output = model.graph.output[0]
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**19, 2**19]), "shape"))
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["many"]),
            helper.make_node("ReduceMean", ["many"], ["mean"], keepdims=0),
            helper.make_node("Add", [output.name, "mean"], ["p"]),
        ]
    )
    output.name = "p"


def swells_with_patches(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 4096, 4096]), "shape"))
    first = model.graph.node[0]
    model.graph.node.insert(0, helper.make_node("Tile", ["x", "shape"], ["large"]))
    first.input[0] = "large"
    model.graph.node[1].input[0] = "large"


def has_no_network(model: onnx.ModelProto) -> None:
    model.graph.ClearField("node")


def asks_for_a_future_version(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def has_an_unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 77


def packs_four_bits(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_type, tensor.dims[0] = TensorProto.INT4, 2**40


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lies, "expected an ONNX file: cannot reshape array"),
        (lies_below_nothing, "expected an ONNX file"),
        (has_nan, "found NaN in its weights"),
        (loops, "found the operator Loop, expected a network without loops"),
        (loops_in_a_branch, "found the operator Loop"),
        (has_own_operators, r"found operators of its own \(com.example.Conv\)"),
        (has_functions, r"found operators of its own \(Again\)"),
        (gives_two, "and the outputs .*, expected one of each"),
        (gives_probabilities, "ends with a Softmax, expected logits"),
        (gives_probabilities_by_hand, "gives probabilities .they come to 1.; expected logits"),
        (swells, "it would fill the memory"),
        (swells_with_patches, "it would fill the memory"),
        (has_no_network, "it holds no network"),
        (asks_for_a_future_version, "operators of version 1 to .*, found 999; update onnx"),
        (has_an_unknown_type, "expected an ONNX file"),
        (packs_four_bits, "found values of type int4"),
    ],
)
def test_what_is_no_network_of_patches_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(changed(tmp_path / "p", change))


def test_patches_of_another_size_than_the_config_says_are_refused(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", save=lambda net, place, side: save_onnx(net, place, side + 2))
    with pytest.raises(ModelError, match=r"found an input .*50,50.* of f32, expected \[N, 3, 48, 48\]"):
        load_model(folder)


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", save=lambda _, *rest: save_onnx(network(4), *rest))
    with pytest.raises(ModelError, match=r"gave \(1, 4\) of one patch; expected \(1, 3\)"):
        load_model(folder)


def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    """Bytes changed and files cut off at random: a ModelError, or a network with other weights."""
    folder = package(tmp_path / "p", save=save_onnx)
    path = folder / "model.onnx"
    content, random, refused = path.read_bytes(), np.random.default_rng(1), 0
    for index in range(int(os.environ.get("ONNX_FUZZ", "120"))):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 1 + index % 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged[: random.integers(len(content))] if index % 5 == 0 else damaged)
        try:
            load_model(folder)
        except ModelError:
            refused += 1
    assert refused > 20


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, imports = package(tmp_path / "p", save=save_onnx), builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnx":
            raise ImportError("No module named 'onnx'")
        return imports(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match=r"No module named 'onnx'\): pip install '.\[onnx\]'"):
        load_model(folder)


def test_classes_are_those_of_the_config(tmp_path: Path) -> None:
    card = load_model(package(tmp_path / "p", save=save_onnx)).card
    assert card.training["class_names"] == list(CLASSES)
    assert card.classes == ("Stroma", "idc", "Lymphocytes")
