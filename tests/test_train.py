"""Training learns, repeats itself by its seed, goes on where it stopped, and refuses what it cannot use."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from test_data import GROUPS, write_sheets

from wsi_pipeline import train as module
from wsi_pipeline.cli.train_model import main
from wsi_pipeline.data import SplitOptions
from wsi_pipeline.errors import ConfigError, RecipeError
from wsi_pipeline.model import load_model
from wsi_pipeline.models.augment import AugmentOptions, augmented
from wsi_pipeline.train import TrainOptions, learning_rate, load_train_options, train

CONFIGS = Path(__file__).parents[1] / "configs" / "train"
CPU = torch.device("cpu")
PX = 16
OPTIONS = TrainOptions(
    name="tiny",
    architecture_options={"widths": [4, 8], "blocks": [1, 1], "squeeze": 2},
    patch_px=PX,
    split=SplitOptions(val_patients=("v", "w")),
    epochs=3,
    batch_size=16,
    learning_rate=0.01,
    average_decay=0.9,
    warmup_epochs=0.1,
)


@pytest.fixture(autouse=True)
def _one_thread():
    # So small a network gains nothing from more, and cores shared with other tests make them wait.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folders of six patients whose IDC patches hold dark purple dots on pink, and the others none."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("patches")
    for patient in "abcdvw":
        for label in (0, 1):
            place = folder / patient / str(label)
            place.mkdir(parents=True)
            for number in range(12):
                rgb = rng.normal((225, 170, 200), 8, (PX, PX, 3))
                if label:
                    rgb[rng.random((PX, PX)) < 0.3] = (90, 60, 140)
                name = f"{patient}_idx5_x{number * PX + 1}_y1_class{label}.png"
                Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(place / name)
    return folder


def test_a_few_epochs_learn_a_plain_difference_through_the_command(data, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "name": "tiny",
                "architecture_options": OPTIONS.architecture_options,
                "patch_px": PX,
                "mpp": 4.0,
                "split": {"val_patients": ["v", "w"]},
                "epochs": 6,
                "batch_size": 16,
                "learning_rate": 0.01,
                "average_decay": 0.9,
            }
        )
    )
    command = [sys.executable, "-m", "wsi_pipeline.cli.train_model", "--config", str(config)]
    command += ["--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "epoch 6:" in done.stderr
    model = load_model(Path(done.stdout.strip()))
    assert model.card.metrics["val"]["auroc"] > 0.95
    assert model.card.training["train"] == {"patients": 4, "patches": 96, "idc": 48}
    with (tmp_path / "out" / "epochs.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data, tmp_path):
    first = load_file(train(OPTIONS, data, tmp_path / "1", CPU))
    again = load_file(train(OPTIONS, data, tmp_path / "2", CPU))
    other = load_file(train(replace(OPTIONS, seed=1), data, tmp_path / "3", CPU))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_training_that_was_stopped_ends_as_if_it_never_was(data, tmp_path, monkeypatch):
    whole = train(OPTIONS, data, tmp_path / "whole", CPU)
    one_epoch = module.train_one_epoch

    def stopped_in_the_second(run, epoch):
        loss = one_epoch(run, epoch)
        if epoch == 1:
            raise KeyboardInterrupt
        return loss

    monkeypatch.setattr(module, "train_one_epoch", stopped_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(OPTIONS, data, tmp_path / "parts", CPU)
    monkeypatch.undo()
    parts = train(OPTIONS, data, tmp_path / "parts", CPU)
    last = [torch.load(p.parent / "last.pt", weights_only=True)["average"] for p in (whole, parts)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_an_out_folder_of_another_training_is_refused(data, tmp_path):
    train(replace(OPTIONS, epochs=1), data, tmp_path, CPU)
    with pytest.raises(RecipeError, match="other options"):
        train(OPTIONS, data, tmp_path, CPU)
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RecipeError, match="expected a checkpoint"):
        train(OPTIONS, data, tmp_path, CPU)


def test_the_card_tells_what_the_weights_were_made_from(data, tmp_path):
    path = train(replace(OPTIONS, epochs=1, data="drawn dots", licence="free"), data, tmp_path, CPU)
    card = load_model(path).card
    assert (card.patch_px, card.mpp, card.licence) == (PX, 4.0, "free")
    assert card.training["data"] == "drawn dots"
    assert card.training["config"]["split"]["val_patients"] == ["v", "w"]
    assert card.stain.od_mean[1] > card.stain.od_mean[0]  # pink and purple: green is what they take most of
    assert {"val", "crossfitted", "patients", "note"} <= set(card.metrics)
    json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)


def test_a_leaking_split_ends_the_command_with_one_line(tmp_path, capsys):
    folder = write_sheets(tmp_path / "data", [*GROUPS, ("a", "val", 1)])
    config = tmp_path / "tiny.yaml"
    config.write_text("{name: tiny, patch_px: 8}")
    assert main(["--config", str(config), "--data", str(folder), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "both sides" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "train-model --config configs/train/idc_default.yaml" in capsys.readouterr().out


def test_a_config_that_cannot_be_used_is_refused(tmp_path):
    config = tmp_path / "bad.yaml"
    for text, found in (("name: a\nepoch: 3", "epoch"), ("- 1", "list"), ("a: [", "YAML"), ("{}", "name")):
        config.write_text(text)
        with pytest.raises(ConfigError, match=found):
            load_train_options(config)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_train_options(tmp_path / "none.yaml")


def test_every_config_that_comes_along_loads_and_flags_take_precedence():
    for path in CONFIGS.glob("*.yaml"):
        assert load_train_options(path, epochs=3, seed=None).epochs == 3


def test_the_learning_rate_rises_to_its_peak_and_ends_at_zero():
    options = replace(OPTIONS, epochs=10, warmup_epochs=2.0)
    rates = [learning_rate(epoch / 4, options) for epoch in range(41)]
    assert max(rates) == rates[8] == pytest.approx(options.learning_rate)
    assert rates[:9] == sorted(rates[:9])
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_after_a_restart_the_learning_rate_does_the_same_again():
    options = replace(OPTIONS, epochs=10, warmup_epochs=1.0, restarts=(5,))
    rates = [learning_rate(epoch / 4, options) for epoch in range(40)]
    assert rates[:20] == pytest.approx(rates[20:])
    assert max(rates) == pytest.approx(options.learning_rate)


def test_restarts_past_the_end_change_nothing():
    options = replace(OPTIONS, epochs=4)
    for epoch in (0.0, 1.5, 3.9):
        assert learning_rate(epoch, replace(options, restarts=(4, 9))) == learning_rate(epoch, options)


NOTHING = AugmentOptions(
    turns=False, resampled=0.0, stain_strength=0.0, stain_tint=0.0, colour=0.0, brightness=0.0
)


def some_patches(count: int = 24) -> torch.Tensor:
    return torch.randint(
        256, (count, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_augmentation_of_nothing_changes_nothing():
    patches = some_patches()
    assert torch.allclose(augmented(patches, NOTHING, torch.Generator()), patches.float(), atol=1e-3)


def test_turned_patches_keep_their_pixels():
    patches = some_patches()
    turned = augmented(patches, replace(NOTHING, turns=True), torch.Generator().manual_seed(0))
    flat = patches.float().flatten(1, 2).sort(dim=1).values
    assert torch.allclose(turned.flatten(1, 2).sort(dim=1).values, flat, atol=1e-3)
    assert len({int((p - q).abs().sum() > 1) for p, q in zip(turned, patches, strict=True)}) == 2


def test_augmented_patches_follow_from_the_generator_and_stay_in_range():
    patches = some_patches()
    first, again = (augmented(patches, AugmentOptions(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == patches.shape
    assert first.min() >= 0
    assert first.max() <= 255


def test_glass_stays_white_when_only_the_strength_of_stains_changes():
    glass = torch.full((8, 20, 20, 3), 255, dtype=torch.uint8)
    out = augmented(glass, replace(NOTHING, stain_strength=0.5), torch.Generator().manual_seed(0))
    assert torch.allclose(out, glass.float(), atol=0.01)
