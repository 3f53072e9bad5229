"""What is measured after a training comes onto the card, and changes nothing else of the model."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from models import random_step

from scripts.results import complete_card
from wsi_pipeline.models.architectures.registry import build_network
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import load_model, save_model


def folds(run: Path, patients: int, patches: int) -> None:
    """Answers of two folds that rank well, and a little worse as JPEG."""
    run.mkdir()
    random = np.random.default_rng(0)
    for fold in range(2):
        names = np.repeat([f"{fold}{i}" for i in range(patients)], patches)
        labels = random.integers(0, 2, len(names))
        answers = {}
        for name, noise in (("plain", 0.7), ("jpeg80", 1.5)):
            odds = 2 * labels - 1 + random.normal(0, noise, len(labels))
            answers[name] = np.stack([np.zeros_like(odds), odds], axis=1)
        np.savez(run / f"fold_{fold}.npz", labels=labels, patients=names, names=names, **answers)
    (run / "recipe.json").write_text(json.dumps({"epochs": 12}))


def test_a_card_tells_of_robustness_and_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folds(tmp_path / "folds", 12, 30)
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["patient", "split"], ["00", "val"], ["01", "train"]])
    row = {"name": "as they are", "auroc": 0.91234567, "auroc_change": 0.0, "f1": 0.8, "flipped": 0.0}
    card = ModelCard(
        name="small",
        architecture="residual_cnn",
        architecture_options={"widths": [8, 8], "blocks": [1, 1]},
        patch_px=50,
        mpp=4.0,
        mean=(0.8, 0.6, 0.7),
        std=(0.1, 0.2, 0.1),
        metrics={"val": {"auroc": 0.9}},
    )
    weights = tmp_path / "small.safetensors"
    save_model(weights, build_network(card.architecture, **card.architecture_options), card, random_step())
    robustness = {"patches": 30, "seed": 0, "rows": [row]}
    found_of = {"model": {"sha256": load_model(weights).sha256}, "robustness": robustness}
    evaluation = tmp_path / "metrics.json"
    evaluation.write_text(json.dumps(found_of))
    said = [weights, "--evaluation", evaluation, "--folds", tmp_path / "folds", "--data", tmp_path]
    monkeypatch.setattr(sys, "argv", ["complete_card", *map(str, said), "--out", str(tmp_path / "complete")])
    complete_card.main()
    before, after = load_model(weights), load_model(tmp_path / "complete/small.safetensors")
    assert after.card.weights_sha256 == before.card.weights_sha256
    assert after.context is not None
    found = after.card.metrics
    assert found["val"] == {"auroc": 0.9}
    assert found["robustness"]["rows"][0]["auroc"] == 0.9123
    folds_found = found["cross_validation"]
    assert (folds_found["folds_of_5"], folds_found["patients"], folds_found["count"]) == ([0, 1], 23, 690)
    as_scanned, as_jpeg = folds_found["patches"]["auroc"], folds_found["patches_as_jpeg_quality_80"]["auroc"]
    low, high = as_scanned["interval_95"]
    assert 0.9 < low < as_scanned["value"] < high <= 1
    assert as_jpeg["value"] < as_scanned["value"] - 0.05
    evaluation.write_text(json.dumps(found_of | {"model": {"sha256": after.sha256}}))
    with pytest.raises(SystemExit, match="of another model"):
        complete_card.main()
    evaluation.write_text(json.dumps(found_of | {"robustness": None}))
    with pytest.raises(SystemExit, match="--robustness"):
        complete_card.main()
