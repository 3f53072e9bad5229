"""Files of torch.export as models: the numbers that they give by hand; never without trust."""

import io
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_packages import Trap, by_hand, network, package, patches, save_exported, scores
from torch import nn

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.models.model import load_model


def exported_by_hand(folder: Path, batch: int = 1) -> Any:
    module = torch.export.load(folder / "model.pt2").module()

    def run(patch: np.ndarray) -> np.ndarray:
        found: np.ndarray = module(torch.from_numpy(patch).expand(batch, -1, -1, -1))[:1].detach().numpy()
        return found

    return run


@pytest.mark.parametrize(("batch", "most"), [(None, None), (None, 7), (3, None)])
def test_a_file_gives_what_it_gives_by_hand(tmp_path: Path, batch: int | None, most: int | None) -> None:
    folder, images = package(tmp_path / "p", save=partial(save_exported, batch=batch, most=most)), patches()
    expected = by_hand(exported_by_hand(folder, batch or 1), images)
    assert np.ptp(expected[:, 1]) > 0.005
    assert np.abs(scores(folder, images, trust=True) - expected[:, 1]).max() < 5e-5
    found = scores(f"{folder / 'model.pt2'}#stroma", images, trust=True)
    assert np.abs(found - expected[:, 0]).max() < 5e-5


def test_whatever_engine_is_chosen_gives_the_same(tmp_path: Path) -> None:
    folder, images = package(tmp_path / "p", save=save_exported), patches()
    classifier = Classifier([load_model(folder, trust=True)], torch.device("cpu"), ClassifyOptions())
    expected = by_hand(exported_by_hand(folder), images)
    assert np.abs(classifier.scores(images) - expected[:, 1]).max() < 5e-5


def with_trap(folder: Path, trace: Path) -> Path:
    """The package with a pickle that writes `trace` among its example inputs."""
    place = folder / "model.pt2"
    with zipfile.ZipFile(place) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (inputs,) = [name for name in files if "sample_inputs" in name]
    trap = io.BytesIO()
    torch.save(Trap(trace), trap)
    files[inputs] = trap.getvalue()
    with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder


def test_without_trust_no_file_is_loaded_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    folder = with_trap(package(tmp_path / "p", save=save_exported), tmp_path / "trace")
    with pytest.raises(ModelError, match=r"can run any program while it is loaded; expected --trust"):
        load_model(folder)
    assert not (tmp_path / "trace").exists()


def test_that_is_no_empty_warning(tmp_path: Path) -> None:
    """torch runs what is in such a file: once it does not, trust need not be asked for."""
    folder = with_trap(package(tmp_path / "p", save=save_exported), tmp_path / "trace")
    with suppress(ModelError):
        load_model(folder, trust=True)
    assert (tmp_path / "trace").exists()


def test_damage_is_refused(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", save=save_exported)
    content = (folder / "model.pt2").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"PK nothing"):
        (folder / "model.pt2").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"cannot be read as a file of torch.export"):
            load_model(folder, trust=True)


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((2, 3)), x.amax((2, 3))


def test_several_outputs_and_other_sizes_are_refused(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", save=lambda _, *rest: save_exported(TwoOutputs(), *rest))
    with pytest.raises(ModelError, match="found 1 inputs and 2 outputs, expected one of each"):
        load_model(folder, trust=True)
    folder = package(tmp_path / "q", save=lambda net, place, side: save_exported(net, place, side + 5))
    with pytest.raises(ModelError, match="cannot be run on a patch"):
        load_model(folder, trust=True)


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    folder = package(tmp_path / "p", save=lambda _, *rest: save_exported(network().train(), *rest))
    with pytest.raises(ModelError, match="was it exported in training mode"):
        load_model(folder, trust=True)
