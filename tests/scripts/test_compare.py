"""The comparison of networks: its splits, its differences, and its place in the page."""

import csv
from pathlib import Path

import numpy as np
import pytest
from test_datasets import GROUPS, PX, write_sheets

from scripts.results import compare, compare_table
from wsi_pipeline.learning.datasets import LabelledPatches, SplitOptions, load_split


def test_a_leaking_split_passes_for_one_by_patient_and_judges_the_same_patches(tmp_path: Path) -> None:
    data = write_sheets(tmp_path / "data")
    with (data / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    evaluated = np.flatnonzero([row["patient"] == "c" for row in rows])
    others = np.flatnonzero([row["patient"] != "c" for row in rows])
    test, neighbours = evaluated[::2], evaluated[1::2]
    sides = {}
    for name, train in (("by_patient", others), ("by_patch", np.concatenate([neighbours, others[3:]]))):
        compare.write_split(data, tmp_path / name, rows, train, test)
        sides[name] = load_split(tmp_path / name, PX, SplitOptions(train=("train",), val=("val",)))
    assert np.array_equal(sides["by_patient"][1].pixels, sides["by_patch"][1].pixels)
    assert set(sides["by_patient"][1].patients) == {"c"}
    assert set(sides["by_patient"][0].patients) == {row["patient"] for row in rows} - {"c"}
    assert "c (leaked)" in set(sides["by_patch"][0].patients)
    assert len(sides["by_patient"][0]) == len(sides["by_patch"][0]) == 3 * (len(GROUPS) - 2)


def test_the_difference_of_networks_is_surer_than_either() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30).astype(str), 40)
    labels = (rng.random(1200) < 0.3).astype(np.uint8)
    hard = np.repeat(rng.normal(0, 1.5, 30), 40)  # patients differ, for either network alike
    odds = rng.normal(0, 1, 1200) + 1.5 * labels + hard
    side = LabelledPatches(np.zeros((1200, 1, 1, 3), np.uint8), labels, patients)
    one, two = (
        compare_table.measures(np.stack([np.zeros(1200), o], axis=1).astype(np.float32), side)["auroc"]
        for o in (odds, odds + rng.normal(0, 0.3, 1200))
    )
    difference = two.less(one)
    assert difference.value == pytest.approx(two.value - one.value)
    assert np.std(difference.drawn) < np.std(one.drawn) / 2
    assert difference.signed.startswith("-")
