"""The scripts around the folds: whose files a fold's training takes, runs asked together, the learned shift."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.results.compare_adaptations import with_learned_shift
from scripts.results.compare_folds import joined, table
from scripts.results.cross_validate import check_recipe, read_folds, recipe_of_fold
from scripts.results.doubt_labels import doubted_rows
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.training.options import load_train_options

PATIENTS, PATCHES = 60, 40


def test_each_patient_is_in_one_of_five_folds_of_like_size() -> None:
    folds = list(read_folds().values())
    sizes = [folds.count(fold) for fold in range(5)]
    assert len(folds) == 230
    assert max(sizes) - min(sizes) <= 3


def test_a_fold_learns_from_files_of_its_own_number() -> None:
    recipe = load_train_options(
        "default_model/unpadded",
        [
            'teachers=["one/fold_{fold}.safetensors", two.safetensors]',
            "pretrained=one/fold_{fold}.safetensors",
        ],
    )
    of_fold = recipe_of_fold(recipe, 3)
    assert of_fold.teachers == ("one/fold_3.safetensors", "two.safetensors")
    assert of_fold.pretrained == "one/fold_3.safetensors"
    assert not of_fold.split.val_patients


def test_folds_of_other_options_are_not_taken_for_done(tmp_path: Path) -> None:
    def recipe(*values: str) -> dict[str, Any]:
        return options_to_dict(load_train_options("default_model/unpadded", list(values)))

    check_recipe(recipe(), tmp_path)
    check_recipe(recipe(), tmp_path)
    with pytest.raises(SystemExit, match=r"another bf16, seed; take another --out"):
        check_recipe(recipe("bf16=false", "seed=1"), tmp_path)
    with pytest.raises(SystemExit, match=r"another doubted; take another --out"):
        check_recipe(recipe("doubted=runs/folds/doubted.csv"), tmp_path)


def test_a_label_is_doubted_that_others_patients_networks_find_unlikely(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = (random.random(400) < 0.4).astype(np.uint8)
    odds = 6.0 * labels - 3 + random.normal(0, 0.5, 400)
    labels[[7, 123, 256]] ^= 1
    write_run(tmp_path / "run", odds, labels)
    with pytest.raises(SystemExit, match="found 1 folds, expected 5"):
        doubted_rows(tmp_path / "run", 0.05)
    with np.load(tmp_path / "run/fold_0.npz") as found:
        whole = dict(found)
    for fold in range(5):
        mine = {name: values[fold * 80 : (fold + 1) * 80] for name, values in whole.items()}
        np.savez(tmp_path / f"run/fold_{fold}.npz", **mine)
    assert doubted_rows(tmp_path / "run", 0.05)[0].tolist() == [7, 123, 256]
    assert len(doubted_rows(tmp_path / "run", 0.0)[0]) == 0


def write_run(run: Path, odds: NDArray[np.float64], labels: NDArray[np.uint8]) -> str:
    """A run of one fold, of patients of ten patches."""
    run.mkdir()
    logits = np.stack([np.zeros_like(odds), odds], axis=1)
    patients = np.repeat(np.arange(len(odds) // 10), 10).astype(str)
    names = np.arange(len(odds)).astype(str)
    np.savez(run / "fold_0.npz", labels=labels, patients=patients, names=names, plain=logits, jpeg80=logits)
    return str(run)


def test_runs_asked_together_say_the_mean_of_their_logits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = (random.random(200) < 0.4).astype(np.uint8)
    one, two = (2.0 * labels + random.normal(0, 2, 200) for _ in range(2))
    runs = [write_run(tmp_path / "one", one, labels), write_run(tmp_path / "two", two, labels)]
    both = "+".join(runs)
    assert np.allclose(joined(both, ["fold_0"], "plain", set())[:, 1], (one + two) / 2)
    text = table([runs[0], both], ["fold_0"], set())
    assert "| one + two | " in text
    # Errors that are not the same in both are halved.
    *_, first, _, second, _ = text.splitlines()
    assert float(second.split("|")[2].split()[0]) > float(first.split("|")[2].split()[0])
    with pytest.raises(SystemExit, match="other patches"):
        joined(f"{runs[0]}+{write_run(tmp_path / 'three', two, 1 - labels)}", ["fold_0"], "labels", set())


def levels(readable: bool) -> tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.str_]]:
    """Logits of patients of other levels, half of each one's patches IDC; how sharp they are says nothing."""
    random = np.random.default_rng(1)
    labels = np.tile(np.arange(PATCHES) % 2, PATIENTS).astype(np.uint8)
    level = np.repeat(random.normal(0, 2, PATIENTS), PATCHES)
    odds = 3.0 * (labels - 0.5) + random.normal(0, 1, len(labels)) + level
    if not readable:
        # Each patient's share of IDC moves its log odds as much as its level does.
        share = np.repeat(random.random(PATIENTS), PATCHES)
        labels = (random.random(len(labels)) < share).astype(np.uint8)
        odds = 3.0 * (labels - 0.5) + random.normal(0, 1, len(labels))
    patients = np.repeat(np.arange(PATIENTS), PATCHES).astype(str)
    return np.stack([np.zeros_like(odds), odds], axis=1), labels, patients


def test_a_shift_is_learned_where_log_odds_tell_the_level_and_harms_little_elsewhere() -> None:
    def gain(readable: bool) -> float:
        logits, labels, patients = levels(readable)
        shifted = with_learned_shift(logits, labels, patients)
        return metrics.auroc(shifted[:, 1], labels) - metrics.auroc(logits[:, 1], labels)

    assert gain(readable=True) > 0.03
    assert abs(gain(readable=False)) < 0.02


def test_no_patient_is_shifted_by_its_own_labels() -> None:
    logits, labels, patients = levels(readable=True)
    mine = patients == patients[0]
    turned = np.where(mine, 1 - labels, labels).astype(np.uint8)
    before, after = (with_learned_shift(logits, said, patients) for said in (labels, turned))
    assert np.array_equal(before[mine], after[mine])
    assert not np.array_equal(before[~mine], after[~mine])
