"""The search tries what the config marks, goes on where it stopped, and leaves a config to train with."""

import sys

import pytest
import yaml
from test_train import CPU, OPTIONS, data  # noqa: F401  (a fixture)

pytest.importorskip("optuna")

from wsi_pipeline.base.errors import ConfigError, RecipeError
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.cli.tune_model import main
from wsi_pipeline.learning.training import search as module
from wsi_pipeline.learning.training.search import Choices, Range, find_marks, tune
from wsi_pipeline.learning.training.train import load_train_options

MARKED = options_to_dict(OPTIONS) | {
    "epochs": 1,
    "learning_rate": {"tune": {"low": 1e-9, "high": 1e-2, "log": True}},
    "batch_size": {"tune": {"choices": [16, 32]}},
    "augment": {"shift_px": {"tune": {"low": 0, "high": 4}}},
}


def tuned_values(tried):
    return sorted((trial.values["learning_rate"], trial.reached) for trial in tried)


def test_the_command_tells_each_trial_and_its_best_config_trains(data, tmp_path, capsys):  # noqa: F811
    config = tmp_path / "marked.yaml"
    config.write_text(yaml.safe_dump(MARKED | {"epochs": 2}))
    arguments = ["--config", str(config), "--data", str(data), "--out", str(tmp_path / "out")]
    arguments += ["--device", "cpu", "--trials", "3", "--epochs", "1"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["trial", "auroc", "epochs", "seconds", *find_marks(MARKED)]
    assert len(lines[1:4]) == 3
    assert lines[1].split()[2] >= lines[2].split()[2] >= lines[3].split()[2]
    place = lines[0].split().index("learning_rate") + 1  # 'done' stands in a column without a name
    best = load_train_options(tmp_path / "out" / "best.yaml")
    assert f"{best.learning_rate:.4g}" == lines[1].split()[place]
    assert best.epochs == 2  # the flag was for the search
    kept = list((tmp_path / "out").glob("trial_*/*.safetensors"))
    assert [p.parent.name for p in kept] == [lines[1].split()[0]]


def test_a_search_that_was_stopped_in_a_trial_ends_as_if_it_never_was(data, tmp_path, monkeypatch):  # noqa: F811
    whole = tune(MARKED, {"epochs": 2}, data, tmp_path / "whole", CPU, trials=3)
    calls = []

    def stopped(history):
        calls.append(len(history))
        if len(calls) == 3:
            raise KeyboardInterrupt

    plain = module.train
    with monkeypatch.context() as patched:

        def interrupted(*arguments, after_epoch):
            return plain(*arguments, after_epoch=lambda history: (after_epoch(history), stopped(history)))

        patched.setattr(module, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(MARKED, {"epochs": 2}, data, tmp_path / "parts", CPU, trials=3)
    assert calls == [1, 2, 1]
    parts = tune(MARKED, {"epochs": 2}, data, tmp_path / "parts", CPU, trials=3)
    assert tuned_values(parts) == tuned_values(whole)
    assert len(list((tmp_path / "parts").glob("trial_*"))) == 3
    with pytest.raises(RecipeError, match="another config"):
        tune(MARKED, {"epochs": 1}, data, tmp_path / "parts", CPU, trials=3)


def test_marks_are_found_at_any_depth_and_wrong_ones_refused():
    assert find_marks(MARKED) == {
        "learning_rate": Range(low=1e-9, high=1e-2, log=True),
        "batch_size": Choices(choices=(16, 32)),
        "augment.shift_px": Range(low=0, high=4),
    }
    wrong = (
        {"low": 2, "high": 1},
        {"low": 0, "high": 1, "log": True},
        {"choices": []},
        {"from": 1},
        {"low": "a", "high": 3},
        [1, 2],
    )
    for mark in wrong:
        with pytest.raises(ConfigError, match="seed"):
            find_marks({"seed": {"tune": mark}})
    with pytest.raises(ConfigError, match="nothing in the config is marked"):
        find_marks({"seed": 3})


def test_a_wrong_key_or_no_optuna_ends_the_command_before_any_training(tmp_path, capsys, monkeypatch):
    config = tmp_path / "marked.yaml"
    config.write_text(yaml.safe_dump(MARKED | {"epoch": 2}))
    arguments = ["--config", str(config), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "'epoch'" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "wsi_pipeline.learning.training.search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(arguments) == 2
    assert "pip install '.[tune]'" in capsys.readouterr().err


def test_trials_below_the_median_of_earlier_ones_are_cut_short(data, tmp_path):  # noqa: F811
    # Whether a network learns at all hangs on the one value that is drawn.
    choices = [1e-12, 0.005, 0.01, 0.02]
    marked = options_to_dict(OPTIONS) | {"learning_rate": {"tune": {"choices": choices}}}
    tried = tune(marked | {"best_by": "val_loss"}, {"epochs": 4}, data, tmp_path, CPU, trials=7)
    assert {trial.state for trial in tried} == {"done", "cut short"}
    assert tried[0].values["learning_rate"] > 1e-12
    cut = [trial for trial in tried if trial.state == "cut short"]
    assert all(trial.epochs < 4 for trial in cut)
    assert min(trial.reached for trial in cut) >= tried[0].reached  # a loss
