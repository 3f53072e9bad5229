"""evaluate-model: what it measures, and that its page and numbers say it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsi_pipeline.cli.evaluate_model import main
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.evaluation.page import write_evaluation
from wsi_pipeline.learning.evaluation.patches import (
    MISTAKES_A_PATIENT,
    evaluated_from,
    metrics_of,
    mistakes,
    plain,
)
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import build_network, save_model

PX = 16
KEYS = {
    "schema",
    "version",
    "model",
    "data",
    "threshold",
    "bootstrap",
    "patches",
    "crossfitted",
    "not_crossfitted",
    "confusion",
    "calibration",
    "thresholds",
    "threshold_choices",
    "patients",
    "spread",
    "mistakes",
    "slides",
    "all_slides",
    "failed_slides",
    "robustness",
}
MEASURES = {
    "accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "balanced_accuracy",
    "auroc",
    "auprc",
    "ece",
}


def card(**changes) -> ModelCard:
    values = {
        "name": "small",
        "architecture": "residual_cnn",
        "architecture_options": {"widths": [4, 8], "blocks": [1, 1], "squeeze": 2},
        "patch_px": PX,
        "mpp": 4.0,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "training": {"config": {"split": {"val_patients": ["v", "w"]}}},
    }
    return ModelCard(**(values | changes))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build_network("residual_cnn", classes=2, **card().architecture_options)
    save_model(tmp_path / "small.safetensors", network, card())
    return tmp_path / "small.safetensors"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for patient in "abvw":
        for label in (0, 1):
            place = tmp_path / "data" / patient / str(label)
            place.mkdir(parents=True)
            for number in range(8):
                name = f"{patient}_idx5_x{number * PX + 1}_y51_class{label}.png"
                pixels = rng.integers(0, 256 - 60 * label, (PX, PX, 3), np.uint8)
                Image.fromarray(pixels).save(place / name)
    return tmp_path / "data"


def side(count: int = 200, by="patient") -> tuple[LabelledPatches, np.ndarray]:
    """Patches of five patients and logits that are right more often than not."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, count).astype(np.uint8)
    patients = np.array([f"p{n % 5}" for n in range(count)])
    names = np.array(
        [f"{p}_idx5_x{n}_y7_class{label}" for n, (p, label) in enumerate(zip(patients, labels, strict=True))]
    )
    odds = rng.normal(0, 2, count) + 2 * labels.astype(float) - 1
    logits = np.stack([np.zeros(count), odds], axis=1).astype(np.float32)
    pixels = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return LabelledPatches(pixels, labels, patients, by, names), logits


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_the_command_judges_the_validation_side_that_the_card_names(model, data, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert run("--model", model, "--data", data, "--out", out) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert set(metrics) == KEYS
    assert set(metrics["patches"]) == MEASURES
    assert {row["patient"] for row in metrics["patients"]} == {"v", "w"}
    assert metrics["data"] | {"folder": ""} == {
        "folder": "", "side": "val", "by": "patient", "patches": 32, "idc_patches": 16, "patients": 2,
        "scale": "not known, taken as the model's",
    }  # fmt: skip
    assert sum(metrics["confusion"].values()) == 32
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"'](?!data:)|https?://|<script", page)
    assert "x 17, y 51" in page or "x 1, y 51" in page


def test_all_patches_are_judged_when_asked_for(model, data, tmp_path) -> None:
    assert run("--model", model, "--data", data, "--split", "all", "--out", tmp_path / "out") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["data"]["patches"] == 64
    assert "if the model was trained on some" in (tmp_path / "out/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flag", "value", "complaint"),
    [
        ("--model", "no_such_model", "idc_default"),
        ("--data", "gone", "gone: no such folder"),
        ("--slides", "gone", "gone: no such folder"),
        ("--device", "cuda:77", "cuda:77"),
    ],
)
def test_what_cannot_be_judged_is_said_in_a_line(
    model, data, tmp_path, capsys, flag, value, complaint
) -> None:
    arguments = {"--model": model, "--data": data, "--out": tmp_path / "out"} | {flag: value}
    assert run(*(part for pair in arguments.items() for part in pair)) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_patches_of_another_size_than_the_cards_are_refused(tmp_path, data, capsys) -> None:
    assert run("--data", data, "--split", "all", "--out", tmp_path / "out") == 2
    assert "found no image of 50 x 50 px, the first has 16 x 16" in capsys.readouterr().err


def test_the_measures_are_those_of_the_calibrated_probabilities() -> None:
    patches, logits = side()
    evaluated = evaluated_from(card(temperature=2.0, log_odds_shift=-0.5), "0" * 64, patches, logits)
    odds = logits[:, 1].astype(float)
    assert np.allclose(evaluated.probability, 1 / (1 + np.exp(-(odds / 2 - 0.5))), atol=1e-6)
    assert np.allclose(evaluated.raw, 1 / (1 + np.exp(-odds)), atol=1e-6)
    metrics = metrics_of(evaluated, draws=50)
    raw, _, mine = metrics["calibration"]
    assert raw["ece"] != mine["ece"]
    assert metrics["patches"]["ece"]["value"] == mine["ece"]
    for measure in metrics["patches"].values():
        assert measure["low"] <= measure["high"]


def test_a_sensitive_threshold_finds_what_it_promises() -> None:
    patches, logits = side(1000)
    metrics = metrics_of(evaluated_from(card(), "0" * 64, patches, logits), draws=10)
    choices = {row["name"]: row for row in metrics["threshold_choices"]}
    assert choices["recall of 95%"]["recall"] >= 0.95
    assert choices["best F1"]["f1"] >= choices["the card's"]["f1"]


def test_the_most_confident_mistakes_come_first_and_not_all_of_one_patient() -> None:
    patches, logits = side(400)
    evaluated = evaluated_from(card(), "0" * 64, patches, logits)
    for called in (True, False):
        found = mistakes(evaluated, called)
        assert (patches.labels[found] == (0 if called else 1)).all()
        assert ((evaluated.probability[found] >= 0.5) == called).all()
        confidence = np.abs(evaluated.probability[found] - 0.5)
        assert (np.diff(confidence) <= 0).all()
        assert max(np.unique(patches.patients[found], return_counts=True)[1]) == MISTAKES_A_PATIENT


def test_few_patients_have_no_intervals_and_one_alone_is_not_crossfitted(tmp_path) -> None:
    patches, logits = side()
    for names, said in (
        (["p1", "p2"], "No intervals: 2 patients to draw from"),
        (["p1"], "No intervals: 1 patient to draw from"),
    ):
        few = replace(patches, patients=np.array([names[n % len(names)] for n in range(len(patches))]))
        evaluated = evaluated_from(card(), "0" * 64, few, logits)
        metrics = write_evaluation(tmp_path, evaluated, "val", Path(), [])
        assert all(np.isnan([m["low"], m["high"]]).all() for m in metrics["patches"].values())
        kept = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
        assert kept["patches"]["auroc"]["low"] is None
        page = (tmp_path / "index.html").read_text()
        assert said in page
        alone = len(names) == 1
        assert (kept["crossfitted"]["f1"] is None) == alone
        assert bool(kept["not_crossfitted"]) == alone
        assert ("Not cross-fitted: one patient alone" in page) == alone
        assert ("The cross-fitted row says" in page) != alone


def test_a_set_without_patients_says_that_its_numbers_are_by_image(tmp_path) -> None:
    patches, logits = side(by="image")
    patches = replace(patches, patients=patches.names)
    metrics = write_evaluation(
        tmp_path, evaluated_from(card(), "0" * 64, patches, logits), "val", Path("somewhere"), []
    )
    assert metrics["patients"] == []
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "its numbers are by image" in page
    assert "patient p1" not in page


def test_what_json_does_not_know_becomes_null() -> None:
    assert plain({"a": [float("nan"), 1.5, "x"], "b": {"c": float("inf")}}) == {
        "a": [None, 1.5, "x"],
        "b": {"c": None},
    }
