"""evaluate-model --against: differences between two models on the same patches, measured in the same draws."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsi_pipeline.base.errors import ScaleError
from wsi_pipeline.cli.evaluate_model import main
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.evaluation.comparison import check_same_patches, comparison_of, in_words
from wsi_pipeline.learning.evaluation.patches import EvaluatedPatches, evaluated_from
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import build_network, save_model

PX = 16
CARD = ModelCard(
    name="new",
    architecture="residual_cnn",
    architecture_options={"widths": [4, 8], "blocks": [1, 1], "squeeze": 2},
    patch_px=PX,
    mpp=4.0,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    training={"config": {"split": {"val_patients": ["v", "w"]}}},
)


def side(patients: int = 8, each: int = 60) -> LabelledPatches:
    rng = np.random.default_rng(1)
    count = patients * each
    labels = rng.integers(0, 2, count).astype(np.uint8)
    names = np.array([f"p{n % patients}" for n in range(count)])
    return LabelledPatches(np.zeros((count, 2, 2, 3), np.uint8), labels, names, "patient", names)


def said(patches: LabelledPatches, noise: float, seed: int = 3, name: str = "new") -> EvaluatedPatches:
    """A model whose odds are right but for so much noise, of which each patient has a part of its own."""
    rng = np.random.default_rng(seed)
    own = dict(zip(np.unique(patches.patients), rng.normal(0, 0.5, 99), strict=False))
    odds = 4 * patches.labels.astype(float) - 2 + np.array([own[p] for p in patches.patients])
    odds += rng.normal(0, noise, len(patches))
    logits = np.stack([np.zeros(len(odds)), odds], axis=1).astype(np.float32)
    return evaluated_from(replace(CARD, name=name), name, patches, logits)


def test_a_better_model_is_called_better_and_the_other_way_round_worse() -> None:
    patches = side()
    good, bad = said(patches, 0.5), said(patches, 4.0, name="old")
    there, back = comparison_of(good, bad), comparison_of(bad, good)
    for name in ("accuracy", "f1", "auroc", "balanced_accuracy"):
        found = there["measures"][name]
        assert found["low"] <= found["difference"] <= found["high"]
        assert (found["verdict"], back["measures"][name]["verdict"]) == ("better", "worse")
        assert back["measures"][name]["difference"] == -found["difference"]
    assert there["measures"]["ece"]["verdict"] in ("better", "unsure")
    assert "f1" in in_words(there)[0]
    assert "better" in in_words(there)[0]


def test_less_calibration_error_is_better() -> None:
    patches = side()
    good = said(patches, 0.5)
    far = evaluated_from(replace(CARD, log_odds_shift=3.0), "far", patches, good.logits)
    found = comparison_of(good, far)["measures"]["ece"]
    assert (found["difference"] < 0, found["verdict"]) == (True, "better")
    assert comparison_of(far, good)["measures"]["ece"]["verdict"] == "worse"


def test_a_model_beside_itself_differs_in_nothing_and_no_interval_is_claimed_of_few_patients() -> None:
    patches = side()
    same = comparison_of(said(patches, 1.0), said(patches, 1.0, name="old"))
    assert all(
        found["difference"] == 0 == found["low"] == found["high"] for found in same["measures"].values()
    )
    assert {found["verdict"] for found in same["measures"].values()} == {"unsure"}
    assert same["changed"] == {"fixed": 0, "broken": 0, "patches": []}
    few = side(patients=3)
    found = comparison_of(said(few, 0.5), said(few, 4.0, name="old"))["measures"]["f1"]
    assert math.isnan(found["low"])
    assert found["verdict"] == "unsure"


def test_paired_intervals_are_narrower_than_those_of_two_models_apart() -> None:
    patches = side()
    one = said(patches, 2.0)
    moved = evaluated_from(replace(CARD, name="old"), "old", patches, one.logits * np.float32(1.05) + 0.01)
    found = comparison_of(one, moved)["measures"]["accuracy"]
    alone = comparison_of(one, said(patches, 2.0, seed=9, name="old"))["measures"]["accuracy"]
    assert found["high"] - found["low"] < (alone["high"] - alone["low"]) / 2


def test_patches_that_changed_are_counted_and_listed_and_so_are_patients() -> None:
    patches = side()
    good, bad = said(patches, 0.5), said(patches, 4.0, name="old")
    found = comparison_of(good, bad)
    right = {each.sha256: (each.probability >= 0.5) == (patches.labels == 1) for each in (good, bad)}
    assert found["changed"]["fixed"] == (right["new"] & ~right["old"]).sum()
    assert found["changed"]["broken"] == (~right["new"] & right["old"]).sum()
    listed = found["changed"]["patches"]
    assert len(listed) == (right["new"] != right["old"]).sum()
    moves = [abs(each["new"] - each["old"]) for each in listed]
    assert moves == sorted(moves, reverse=True)
    assert sum(p["new"] for p in found["patients"]) == right["new"].sum()
    gained = [p["new"] - p["old"] for p in found["patients"]]
    assert gained == sorted(gained)


def test_an_older_model_that_may_have_been_trained_on_these_patients_is_named() -> None:
    patches = side()
    new, old = said(patches, 1.0), said(patches, 1.0, name="old")
    assert comparison_of(new, old, draws=2)["note"] == ""
    otherwise = {"config": {"split": {"val_patients": ["x"]}}}
    for training, is_said in ((otherwise, True), (otherwise | {"data": "another set"}, False)):
        other = replace(old, card=replace(old.card, training=training))
        compared = comparison_of(new, other, draws=2)
        assert ("the older model split its patients otherwise" in in_words(compared)[-1]) == is_said


def test_models_of_other_patches_cannot_be_compared() -> None:
    with pytest.raises(ScaleError, match="sees patches of 16 px at 2 um/px"):
        check_same_patches(CARD, replace(CARD, name="old", mpp=2.0))


def test_the_command_writes_the_comparison_and_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for patient in "abvw":
        for label in (0, 1):
            place = tmp_path / "data" / patient / str(label)
            place.mkdir(parents=True)
            for number in range(4):
                name = f"{patient}_idx5_x{number * PX + 1}_y51_class{label}.png"
                Image.fromarray(rng.integers(0, 256, (PX, PX, 3), np.uint8)).save(place / name)
    for seed, name in enumerate(("new", "old")):
        torch.manual_seed(seed)
        network = build_network("residual_cnn", classes=2, **CARD.architecture_options)
        save_model(tmp_path / f"{name}.safetensors", network, replace(CARD, name=name))
    arguments = ["--model", tmp_path / "new.safetensors", "--against", tmp_path / "old.safetensors"]
    arguments += ["--data", tmp_path / "data", "--out", tmp_path / "out", "--device", "cpu"]
    assert main([str(each) for each in arguments]) == 0
    assert "against old: f1" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert (found["new"]["name"], found["old"]["name"], found["data"]["patients"]) == ("new", "old", 2)
    assert main([str(each) for each in arguments if each not in arguments[2:4]]) == 0
    assert not (tmp_path / "out" / "comparison.json").exists()
