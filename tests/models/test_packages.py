"""Packages of other people's models: the numbers that their files give by hand, or a refusal that says why."""

import importlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_packages import (
    CLASSES,
    MEAN,
    STD,
    Trap,
    by_hand,
    network,
    package,
    patches,
    scores,
    torchscript_by_hand,
)
from torch import nn

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.models.model import load_model, load_models
from wsi_pipeline.models.names import find_package


def rewrite(place: Path, changed: Callable[[str, bytes], bytes], packing: int = zipfile.ZIP_STORED) -> None:
    """Each file of the archive as `changed` gives it of its name and content."""
    with zipfile.ZipFile(place) as archive:
        files = {name: changed(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(place, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("size", [48, 112, None])
def test_a_package_gives_what_its_file_gives_by_hand(tmp_path: Path, size: int | None) -> None:
    folder, images = package(tmp_path / "p", size), patches()
    expected = by_hand(torchscript_by_hand(folder), images, size)
    assert np.ptp(expected[:, 1]) > 0.005
    assert np.abs(scores(folder, images) - expected[:, 1]).max() < 5e-5
    assert np.abs(scores(f"{folder}#lymphocytes", images) - expected[:, 2]).max() < 5e-5
    assert np.abs(scores(folder / "config.json", images) - expected[:, 1]).max() < 5e-5


def test_a_package_of_one_output_gives_its_sigmoid(tmp_path: Path) -> None:
    folder, images = package(tmp_path / "p", classes=("tumor",)), patches()
    assert np.abs(scores(folder, images) - by_hand(torchscript_by_hand(folder), images)[:, 0]).max() < 5e-5


def test_the_package_says_scale_and_classes_and_the_card_that_it_is_not_calibrated(tmp_path: Path) -> None:
    card = load_model(package(tmp_path / "p")).card
    assert (card.patch_px, card.mpp, card.threshold) == (70, 0.5, 0.5)
    assert card.classes == ("Stroma", "idc", "Lymphocytes")
    assert "shows its class 'Tumor'" in card.limits
    assert "not calibrated" in card.limits
    assert card.training == {"package": "a-package", "class_names": list(CLASSES), "mapped": "Tumor"}


def test_another_class_or_config_is_another_model(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    found = {load_model(name).sha256 for name in (folder, f"{folder}#Stroma")}
    package(folder, size=60)
    assert len(found | {load_models([folder])[0].sha256}) == 3


def test_what_is_no_package_is_none(tmp_path: Path) -> None:
    assert find_package("idc_default") is None
    assert find_package(tmp_path) is None
    with pytest.raises(ModelError, match="is not known; expected a shipped name"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"class_names": ["a", "b", "c"]},
            "does not say which of its classes is to be mapped; found a, b, c",
        ),
        ({"class_names": ["Tumor", "Cancer", "c"]}, "does not say which"),
        ({"num_classes": 2}, "found 2 classes and the names"),
        ({"spacing_um_px": -1}, "spacing_um_px"),
        ({"spacing": 1}, "unknown key 'spacing'"),
        ({"transform": [{"name": "CenterCrop", "arguments": {"size": 48}}]}, "found transform CenterCrop"),
        (
            {
                "transform": [
                    {"name": "ToTensor"},
                    {"name": "Normalize", "arguments": {"mean": [1], "std": [1]}},
                ]
            },
            "its transform is not understood",
        ),
        (
            {
                "transform": [
                    {"name": "Resize", "arguments": {"size": 48, "interpolation": "nearest"}},
                    {"name": "ToTensor"},
                    {"name": "Normalize", "arguments": {"mean": list(MEAN), "std": list(STD)}},
                ]
            },
            "unknown arguments Resize.interpolation",
        ),
    ],
)
def test_a_config_that_is_not_understood_is_refused(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(package(tmp_path / "p", **changed))


def test_a_class_that_the_package_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no class 'fat'; found Stroma, Tumor, Lymphocytes"):
        load_model(f"{package(tmp_path / 'p')}#fat")


def test_a_pickle_of_python_objects_is_refused_and_never_run(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    torch.save({"model": Trap(tmp_path / "trace")}, folder / "torchscript_model.pt")
    with pytest.raises(ModelError, match="found a pickle of Python objects"):
        load_model(folder)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_hidden_in_torchscript_is_not_run(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    trap = pickle.dumps(Trap(tmp_path / "trace"), protocol=2)
    rewrite(
        folder / "torchscript_model.pt",
        lambda name, content: trap if name.endswith(("data.pkl", "constants.pkl")) else content,
    )
    with pytest.raises(ModelError, match="cannot be read as TorchScript"):
        load_model(folder)
    assert not (tmp_path / "trace").exists()


class Saving(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "trace.pt")
        return x.mean((2, 3))


@torch.jit.interface
class Step(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass  # TorchScript asks for it


class SavingStep(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "trace.pt")
        return x


class SavingBehindAnInterface(nn.Module):
    """The graph of its own forward names no operator that saves."""

    step: Step

    def __init__(self) -> None:
        super().__init__()
        self.step = SavingStep()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step.forward(x).mean((2, 3))


class SavingAsItIsLoaded(nn.Module):
    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return torch.zeros(3), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        torch.save(state[0], "trace.pt")
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Reading(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) + torch.from_file("/dev/zero", False, 3)


@pytest.mark.parametrize("network_class", [Saving, SavingBehindAnInterface, SavingAsItIsLoaded, Reading])
def test_a_network_that_touches_files_is_refused_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network_class: type[nn.Module]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = package(tmp_path / "p")
    torch.jit.save(torch.jit.script(network_class()), folder / "torchscript_model.pt")
    with pytest.raises(ModelError, match="touches no files"):
        load_model(folder)
    assert not (tmp_path / "trace.pt").exists()


@pytest.mark.parametrize(
    "code",
    [
        "torch.save(x, 'trace.pt')",
        "torch . # a note\n    save(x, 'trace.pt')",
        "(x).save('trace.pt')",
        "getattr(torch, 'sa' 've')(x, 'trace.pt')",
        "ops.debugprims.load_tensor('trace.pt', [1], [1])",
        "__torch__.torch.classes.c10d.Store",
    ],
)
def test_code_that_names_such_an_operator_in_any_way_is_refused(tmp_path: Path, code: str) -> None:
    folder = package(tmp_path / "p")
    rewrite(
        folder / "torchscript_model.pt",
        lambda name, content: content + f"\n    {code}\n".encode() if name.endswith(".py") else content,
    )
    with pytest.raises(ModelError, match="touches no files"):
        load_model(folder)


def test_a_network_packed_to_fill_the_memory_is_refused(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    rewrite(
        folder / "torchscript_model.pt",
        lambda name, content: content + bytes(100_000_000) if name.endswith("constants.pkl") else content,
        zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(ModelError, match="packed into"):
        load_model(folder)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("size", "mean", "std"),
    [
        (48, [NAN] * 3, list(STD)),
        (48, list(MEAN), [0.1, NAN, 0.1]),
        (48, list(MEAN), [INF] * 3),
        (48, list(MEAN), [1e-300] * 3),
        (48, [1e300] * 3, list(STD)),
        (48, [10**400] * 3, list(STD)),
        (0, list(MEAN), list(STD)),
        (True, list(MEAN), list(STD)),
        ([], list(MEAN), list(STD)),
        (10**6, list(MEAN), list(STD)),
    ],
)
def test_a_preparation_that_makes_nonsense_of_every_patch_is_refused(
    tmp_path: Path, size: Any, mean: list[float], std: list[float]
) -> None:
    steps = [
        {"name": "Resize", "arguments": {"size": size}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": mean, "std": std}},
    ]
    with pytest.raises(ModelError, match="its transform is not understood"):
        load_model(package(tmp_path / "p", transform=steps))


def test_a_network_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    folder, broken = package(tmp_path / "p"), network()
    with torch.no_grad():
        next(broken.parameters()).fill_(NAN)
    torch.jit.save(torch.jit.trace(broken, torch.zeros(1, 3, 48, 48)), folder / "torchscript_model.pt")
    with pytest.raises(ModelError, match="values that are no numbers"):
        load_model(folder)


def test_a_config_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="expected the config of a package"):
        load_model(folder)


def test_damage_and_missing_files_and_other_outputs_are_refused(tmp_path: Path) -> None:
    folder = package(tmp_path / "p")
    weights = folder / "torchscript_model.pt"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="expected TorchScript"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(
        ModelError, match=r"found no network, expected one of torchscript_model.pt, model.onnx, model.pt2"
    ):
        load_model(folder)
    torch.jit.save(torch.jit.trace(network(2), torch.zeros(1, 3, 48, 48)), weights)
    with pytest.raises(ModelError, match=r"gave \(1, 2\) of one patch; expected \(1, 3\)"):
        load_model(folder)


def test_a_class_named_twice_is_refused_and_another_idc_keeps_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found a name twice among the classes"):
        load_model(package(tmp_path / "p", classes=("a", "a", "Tumor")))
    folder = package(tmp_path / "q", classes=("idc", "not_idc", "benign"))
    assert load_model(f"{folder}#benign").card.classes == ("idc of the package", "not_idc", "idc")


@pytest.mark.parametrize("command", ["train_model", "train_context"])
def test_a_package_is_not_trained_on(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = package(tmp_path / "p")
    option = "--from" if command == "train_model" else "--model"
    given = {
        "train_model": ["--config", "train/own_slides", "--data", "d"],
        "train_context": ["--slides", "s"],
    }
    main = importlib.import_module(f"wsi_pipeline.cli.{command}").main
    assert main([option, f"{folder}#Stroma", *given[command], "--out", str(tmp_path / "out")]) == 2
    assert f"{option} {folder}#Stroma: is a package of other people's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
