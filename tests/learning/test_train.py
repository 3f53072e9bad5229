"""Training learns, repeats itself by its seed, goes on where it stopped, and refuses what it cannot use."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from test_datasets import GROUPS, write_sheets

from wsi_pipeline.base.errors import ConfigError, DataError, ModelError, RecipeError, TrainingError
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.cli import models, train_model
from wsi_pipeline.cli.train_model import main
from wsi_pipeline.learning.datasets import SplitOptions
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.training.augment import AugmentOptions, augmented, draw_views
from wsi_pipeline.learning.training.checkpoint import load_checkpoint, save_checkpoint
from wsi_pipeline.learning.training.distillation import teachers_answer
from wsi_pipeline.learning.training.options import PlateauOptions
from wsi_pipeline.learning.training.train import TrainOptions, learning_rate, load_train_options, train
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import load_model

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
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
    assert model.card.training["parameters"] == sum(p.numel() for p in model.network.parameters())
    assert model.card.training["mflop_per_patch"] > 0
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "epochs.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data, tmp_path):
    first = load_file(train(OPTIONS, data, tmp_path / "1", CPU))
    again = load_file(train(OPTIONS, data, tmp_path / "2", CPU))
    other = load_file(train(replace(OPTIONS, seed=1), data, tmp_path / "3", CPU))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def write_config(folder: Path, options: TrainOptions = OPTIONS, **changes: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(options_to_dict(options) | changes))
    return path


def test_a_training_killed_in_mid_epoch_goes_on_and_ends_bit_for_bit_as_if_it_never_was(data, tmp_path):
    # A small batch, for long epochs; a schedule and an ending that go by what the epochs before reached.
    options = replace(
        OPTIONS, epochs=7, batch_size=2, schedule="plateau", early_stopping=5, mixup=0.2, bf16=False
    )
    whole = train(options, data, tmp_path / "whole", CPU)
    config, out = write_config(tmp_path, options), tmp_path / "parts"
    command = [sys.executable, "-m", "wsi_pipeline.cli.train_model", "--config", str(config)]
    command += ["--data", str(data), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stderr
    assert any(b"epoch 2:" in line for line in process.stderr)
    while len(history_of(out)) < 2:  # the line is spoken a moment before the checkpoint is written
        time.sleep(0.01)
    time.sleep(0.1)
    process.kill()
    process.wait()
    assert 2 <= len(history_of(out)) < len(history_of(whole.parent))
    parts = train(load_train_options(config), data, out, CPU)
    last = [torch.load(p.parent / "last.pt", weights_only=True) for p in (whole, parts)]
    for kept in ("network", "average"):
        assert all(torch.equal(last[0][kept][name], last[1][kept][name]) for name in last[0][kept])
    assert whole.read_bytes() == parts.read_bytes()
    same = [[row["val_loss"] for row in state["history"]] for state in last]
    assert same[0] == same[1]


def test_ctrl_c_ends_a_training_with_130_and_leaves_nothing_half_written(data, tmp_path):
    config, out = write_config(tmp_path, replace(OPTIONS, epochs=500)), tmp_path / "out"
    command = [sys.executable, "-m", "wsi_pipeline.cli.train_model", "--config", str(config)]
    command += ["--data", str(data), "--out", str(out), "--device", "cpu"]
    run = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert run.stderr
    assert any("epoch 3:" in line for line in run.stderr)
    run.send_signal(signal.SIGINT)
    complaint = run.stderr.read()
    assert run.wait(timeout=30) == 130
    assert complaint.splitlines()[-1] == "interrupted; the same command goes on from the last whole epoch"
    assert "Traceback" not in complaint
    assert {path.name for path in out.iterdir()} <= {
        *("last.pt", "epochs.csv", "curves.png", "tiny.safetensors", "tiny.json")
    }
    assert len(history_of(out)) >= 2


def test_what_a_killed_training_left_half_written_goes_at_the_next_start(data, tmp_path):
    for name in (".last.pt.0123456789abcdef.part", ".tiny.json.0123456789abcdef.part", "own.part"):
        (tmp_path / name).touch()
    train(replace(OPTIONS, epochs=1), data, tmp_path, CPU)
    assert [path.name for path in tmp_path.glob("*.part")] == ["own.part"]


def history_of(out: Path) -> list[dict[str, float]]:
    try:
        return torch.load(out / "last.pt", weights_only=True)["history"]
    except FileNotFoundError:
        return []


def test_an_out_folder_of_another_training_is_refused(data, tmp_path):
    train(replace(OPTIONS, epochs=1), data, tmp_path, CPU)
    with pytest.raises(RecipeError, match=r"other options \(epochs: 1 instead of 3\)"):
        train(OPTIONS, data, tmp_path, CPU)
    (data / "a" / "0" / "a_idx5_x1_y1_class0.png").rename(data / "put_aside")
    with pytest.raises(RecipeError, match="other data"):
        train(replace(OPTIONS, epochs=1), data, tmp_path, CPU)
    (data / "put_aside").rename(data / "a" / "0" / "a_idx5_x1_y1_class0.png")
    patch, was = (
        data / "a" / "0" / "a_idx5_x1_y1_class0.png",
        data / "a" / "1" / f"a_idx5_x{PX + 1}_y1_class1.png",
    )
    patch.rename(now := data / "a" / "1" / "a_idx5_x1_y9_class1.png")
    was.rename(other := data / "a" / "0" / f"a_idx5_x{PX + 1}_y9_class0.png")
    # Two patches have changed theirs: all counts are as before.
    with pytest.raises(RecipeError, match="other labels"):
        train(replace(OPTIONS, epochs=1), data, tmp_path, CPU)
    now.rename(patch)
    other.rename(was)
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RecipeError, match="expected a checkpoint"):
        train(OPTIONS, data, tmp_path, CPU)


def test_what_a_checkpoint_differs_in_is_named_value_by_value(tmp_path):
    save_checkpoint(
        tmp_path / "last.pt", {"options": {"seed": 1, "split": {"val_share": 0.2, "val_seed": 0}}}, {}
    )
    wanted = {"options": {"seed": 1, "split": {"val_share": 0.3, "val_seed": 0}}}
    with pytest.raises(
        RecipeError, match=r"other options \(split.val_share: 0.2 instead of 0.3\); give another --out"
    ):
        load_checkpoint(tmp_path / "last.pt", wanted, CPU)


def test_the_card_tells_what_the_weights_were_made_from(data, tmp_path):
    path = train(replace(OPTIONS, epochs=1, data="drawn dots", licence="free"), data, tmp_path, CPU)
    card = load_model(path).card
    assert (card.patch_px, card.mpp, card.licence) == (PX, 4.0, "free")
    assert card.training["data"] == "drawn dots"
    assert card.training["config"]["split"]["val_patients"] == ["v", "w"]
    assert card.stain.od_mean[1] > card.stain.od_mean[0]  # pink and purple: green is what they take most of
    assert {"val", "crossfitted", "patients", "note"} <= set(card.metrics)
    json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)


def test_one_validation_patient_gives_a_model_whose_card_says_that_nothing_is_crossfitted(
    data, tmp_path, caplog
):
    options = replace(OPTIONS, epochs=1, split=SplitOptions(val_patients=("v",)))
    card = load_model(train(options, data, tmp_path, CPU)).card
    assert "nothing is cross-fitted: one patient alone" in card.metrics["note"]
    assert "crossfitted" not in card.metrics
    assert card.metrics["val"]["patches"] == 24
    assert any("nothing will be cross-fitted" in line for line in caplog.messages)


def test_a_network_learns_from_a_teacher_what_the_labels_deny(data, tmp_path):
    taught = train(replace(OPTIONS, epochs=6), data, tmp_path / "teacher", CPU)
    # The same patches, the label of each training patch turned round: right answers come from the teacher alone.
    turned = shutil.copytree(data, tmp_path / "turned")
    for patient in "abcd":
        for label in (0, 1):
            (turned / patient / str(label)).rename(turned / patient / f"was{label}")
        for label in (0, 1):
            for path in (folder := turned / patient / f"was{1 - label}").iterdir():
                path.rename(folder / path.name.replace(f"class{1 - label}", f"class{label}"))
            folder.rename(turned / patient / str(label))
    student = replace(OPTIONS, epochs=6, teachers=(str(taught),), seed=5)
    for share, learns in ((1.0, True), (0.0, False)):
        path = train(replace(student, teacher_share=share), turned, tmp_path / str(share), CPU)
        card = load_model(path).card
        assert (card.metrics["val"]["auroc"] > 0.9) == learns
        assert card.training["teachers"] == [
            {"file": "tiny.safetensors", "sha256": load_model(taught).sha256}
        ]


def test_a_teacher_asked_in_all_views_gives_one_answer_to_a_patch_however_it_lies(data, tmp_path):
    teacher = load_model(train(replace(OPTIONS, epochs=1), data, tmp_path / "teacher", CPU))
    patches = torch.randint(
        256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    turned = patches.rot90(1, dims=(1, 2)).flip(2)
    with torch.inference_mode():
        one, its_turned = (teachers_answer([teacher], p, views=1) for p in (patches, turned))
        all_views, all_turned = (teachers_answer([teacher], p, views=8) for p in (patches, turned))
    assert not torch.allclose(one, its_turned, atol=1e-4)
    torch.testing.assert_close(all_views, all_turned, atol=1e-6, rtol=0)


def test_a_teacher_of_another_scale_is_refused(data, tmp_path):
    taught = train(replace(OPTIONS, epochs=1), data, tmp_path / "teacher", CPU)
    with pytest.raises(ConfigError, match=r"sees 16 px at 4 um/px; the config says 16 px at 2 um/px"):
        train(replace(OPTIONS, teachers=(str(taught),), mpp=2.0), data, tmp_path / "student", CPU)


def test_a_training_stops_when_nothing_gets_better(data, tmp_path):
    # Steps so small that no epoch differs from the one before.
    options = replace(OPTIONS, epochs=9, learning_rate=1e-12, early_stopping=2, average_decay=0.0, bf16=False)
    path = train(replace(options, augment=NOTHING, schedule="constant"), data, tmp_path, CPU)
    assert 3 <= len(history_of(path.parent)) < 9
    again = path.stat().st_mtime_ns
    assert train(replace(options, augment=NOTHING, schedule="constant"), data, tmp_path, CPU) == path
    assert path.stat().st_mtime_ns == again


def test_a_training_that_diverges_says_so_and_saves_no_such_weights(data, tmp_path):
    options = replace(OPTIONS, optimiser="sgd", learning_rate=1e30, warmup_epochs=0.0, schedule="constant")
    with pytest.raises(TrainingError, match="diverged; lower learning_rate"):
        train(options, data, tmp_path, CPU)
    assert not (tmp_path / "tiny.safetensors").exists()


def test_every_optimiser_class_balance_and_normalisation_learns_the_plain_difference(data, tmp_path):
    ways = [
        {"optimiser": "sgd", "optimiser_options": {"momentum": 0.9}, "class_balance": "sampling"},
        {"optimiser": "adam", "class_balance": "weights", "normalisation": "imagenet"},
        {"optimiser": "rmsprop", "normalisation": "none", "best_by": "val_loss"},
        {"optimiser": "adagrad", "limit_patches": 60},
    ]
    for number, way in enumerate(ways):
        path = train(replace(OPTIONS, epochs=4, weight_decay=0.0, **way), data, tmp_path / str(number), CPU)
        card = load_model(path).card
        assert card.metrics["val"]["auroc"] > 0.9, way
    assert card.training["train"] == {"patients": 4, "patches": 60, "idc": 30}


def test_optimiser_options_that_do_not_fit_are_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="momentun"):
        train(replace(OPTIONS, optimiser_options={"momentun": 0.9}), data, tmp_path, CPU)


def test_tensorboard_gets_what_the_table_of_epochs_holds(data, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = train(replace(OPTIONS, epochs=2), data, tmp_path, CPU, tensorboard=True)
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [event.value for event in board.Scalars("auroc")]
    assert shown == pytest.approx([row["auroc"] for row in history_of(path.parent)])


def test_a_leaking_split_ends_the_command_with_one_line(tmp_path, capsys):
    folder = write_sheets(tmp_path / "data", [*GROUPS, ("a", "val", 1)])
    config = tmp_path / "tiny.yaml"
    config.write_text("{name: tiny, patch_px: 8}")
    assert main(["--config", str(config), "--data", str(folder), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "both sides" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_config_that_cannot_be_used_is_refused(tmp_path):
    config = tmp_path / "bad.yaml"
    for text, found in (("name: a\nepoch: 3", "epoch"), ("- 1", "list"), ("a: [", "YAML"), ("{}", "name")):
        config.write_text(text)
        with pytest.raises(ConfigError, match=found):
            load_train_options(config)
    for name in ("''", ".x", "a/b", "x" * 201):
        config.write_text(f"name: {name}")
        with pytest.raises(ConfigError, match="expected one that a file can have"):
            load_train_options(config)
    with pytest.raises(ConfigError, match="found neither such a file nor a shipped config"):
        load_train_options(tmp_path / "none.yaml")


def test_a_network_that_hears_of_its_slide_wants_two_patients_that_tell_anything(data, tmp_path):
    hearing = OPTIONS.architecture_options | {"slide_condition": {"hidden": 4}}
    options = replace(OPTIONS, architecture_options=hearing, slides_a_batch=2, limit_patches=10)
    with pytest.raises(DataError, match=r"found \d patients? with 8 training patches or more, expected two"):
        train(options, data, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()
    none = replace(
        options, architecture_options=hearing | {"slide_condition": {"hidden": 0}}, limit_patches=None
    )
    with pytest.raises(ModelError, match="hidden 0, expected 1 to"):
        train(none, data, tmp_path / "out", CPU)


def test_a_training_learns_nothing_from_doubted_patches_and_its_card_counts_the_others(data, tmp_path):
    listing = list_images(data)
    of_a = [name for name, patient in zip(listing.names, listing.patients, strict=True) if patient == "a"]
    (tmp_path / "doubted.csv").write_text("\n".join(["name", *of_a[:20], "v_of_the_other_side.png"]))
    options = replace(OPTIONS, doubted=str(tmp_path / "doubted.csv"), epochs=1)
    card = load_model(train(options, data, tmp_path / "out", CPU)).card
    assert card.training["train"]["patches"] == 96 - 20
    assert card.training["config"]["doubted"] == options.doubted


def test_every_config_that_comes_along_loads_and_flags_take_precedence():
    for path in CONFIGS.glob("*.yaml"):
        assert load_train_options(path, epochs=3, seed=None).epochs == 3


def test_settings_reach_into_a_config_and_numbers_may_be_written_with_an_exponent(tmp_path):
    config = write_config(tmp_path)
    settings = ["learning_rate=1e-4", "augment.scale=0.25", "restarts=[1, 2]"]
    options = load_train_options(config, settings, epochs=9)
    assert (options.learning_rate, options.augment.scale) == (1e-4, 0.25)
    assert (options.restarts, options.epochs) == ((1, 2), 9)
    for wrong in ("learning_rate", "=3", "epochs.all=3", "a=["):
        with pytest.raises(ConfigError):
            load_train_options(config, [wrong])
    with pytest.raises(ConfigError, match="tune-model"):
        load_train_options(config, ["learning_rate={tune: {low: 1e-4, high: 1e-2}}"])


def test_a_network_with_clahe_wants_values_from_0_to_1():
    with pytest.raises(ValueError, match="normalisation: none"):
        replace(OPTIONS, architecture_options={"clahe": {"clip": 2.0}})


def test_on_a_plateau_the_learning_rate_falls_and_a_constant_one_stays():
    options = replace(OPTIONS, epochs=10, warmup_epochs=0.0, schedule="plateau")
    options = replace(options, plateau=PlateauOptions(patience=2, factor=0.1))
    falling = [
        learning_rate(3, options, scores) for scores in ([], [1, 2], [2, 1], [2, 1, 1], [2, 1, 1, 1, 1])
    ]
    assert falling == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.0001])
    assert learning_rate(9.9, replace(options, schedule="constant"), [2, 1, 1]) == 0.01


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


def seen(patches: torch.Tensor, options: AugmentOptions, generator: torch.Generator) -> torch.Tensor:
    return augmented(patches, draw_views(len(patches), patches.shape[1], options, generator))


def test_augmentation_of_nothing_changes_nothing():
    patches = some_patches()
    assert torch.allclose(seen(patches, NOTHING, torch.Generator()), patches.float(), atol=1e-3)


def test_turned_patches_keep_their_pixels():
    patches = some_patches()
    turned = seen(patches, replace(NOTHING, turns=True), torch.Generator().manual_seed(0))
    flat = patches.float().flatten(1, 2).sort(dim=1).values
    assert torch.allclose(turned.flatten(1, 2).sort(dim=1).values, flat, atol=1e-3)
    assert len({int((p - q).abs().sum() > 1) for p, q in zip(turned, patches, strict=True)}) == 2


def test_flipped_patches_are_mirrored_or_turned_by_half_never_by_a_quarter():
    rows = torch.arange(20, dtype=torch.uint8)[:, None, None].expand(20, 20, 3).expand(24, 20, 20, 3)
    flipped = seen(rows.contiguous(), replace(NOTHING, flips=True), torch.Generator().manual_seed(0))
    assert all(torch.allclose(p, p[:, :1].expand_as(p), atol=1e-3) for p in flipped)  # rows are still rows
    assert len({round(float(p[0, 0, 0])) for p in flipped}) == 2


def test_shear_leans_columns_and_leaves_rows_where_they_are():
    stripes = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    stripes[:, :, 16:] = 200
    options = replace(NOTHING, resampled=1.0, angle_deg=0.0, scale=0.0, shift_px=0.0, shear_deg=30.0)
    sheared = seen(stripes, options, torch.Generator().manual_seed(1))
    edges = (sheared[..., 0] < 100).sum(dim=2).float()  # [N, rows]: how far each row is dark
    lean = edges[:, 24] - edges[:, 8]
    assert lean.abs().max() > 4
    assert len(set(lean.tolist())) > 3
    rows = stripes.transpose(1, 2).contiguous()
    assert torch.allclose(seen(rows, options, torch.Generator().manual_seed(1)), rows.float(), atol=1)


def test_augmented_patches_follow_from_the_generator_and_stay_in_range():
    patches = some_patches()
    first, again = (seen(patches, AugmentOptions(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == patches.shape
    assert first.min() >= 0
    assert first.max() <= 255


def test_glass_stays_white_when_only_the_strength_of_stains_changes():
    glass = torch.full((8, 20, 20, 3), 255, dtype=torch.uint8)
    out = seen(glass, replace(NOTHING, stain_strength=0.5), torch.Generator().manual_seed(0))
    assert torch.allclose(out, glass.float(), atol=0.01)


def test_a_training_goes_on_from_a_model_and_the_card_keeps_the_whole_lineage(
    data, tmp_path, monkeypatch, capsys
):
    first = train(replace(OPTIONS, epochs=4, data="the first set"), data, tmp_path / "first", CPU)
    config = tmp_path / "again.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "name": "again",
                "data": "corrections",
                "split": {"val_patients": ["v", "w"]},
                "epochs": 1,
                "learning_rate": 1e-6,
                "average_decay": 0.0,
            }
        )
    )

    def go_on(model: Path | str, name: str) -> ModelCard:
        arguments = ["--config", config, "--data", data, "--out", tmp_path / name, "--from", model]
        assert train_model.main([str(each) for each in [*arguments, "--device", "cpu"]]) == 0
        return load_model(tmp_path / name / "again.safetensors").card

    card, old = go_on(first, "second"), load_model(first).card
    assert (card.patch_px, card.mpp, card.architecture_options) == (PX, 4.0, old.architecture_options)
    assert (card.mean, card.std) == (old.mean, old.std)
    assert card.metrics["val"]["auroc"] > 0.95  # of one epoch that changes next to nothing
    (parent,) = card.training["pretrained"]
    assert (parent["name"], parent["data"], parent["sha256"]) == ("tiny", "the first set", old.weights_sha256)
    third = go_on(tmp_path / "second" / "again.safetensors", "third")
    assert third.training["pretrained"][0]["data"] == "corrections"
    assert third.training["pretrained"][0]["pretrained"][0]["data"] == "the first set"
    assert "registered" not in third.training["pretrained"][0]
    monkeypatch.setenv("WSI_MODELS", str(tmp_path / "registry"))
    assert models.main(["add", str(first), "tiny@1.0", "--approved-by", "Dr. A"]) == 0
    of_version = go_on("tiny@1.0", "fourth")
    assert of_version.training["pretrained"][0]["registered"] == "tiny@1.0"
    assert of_version.training["pretrained"][0]["sha256"] == old.weights_sha256
    assert of_version.training["config"]["pretrained"] == "tiny@1.0"
    assert models.main(["show", str(tmp_path / "fourth" / "again.safetensors")]) == 0
    assert "began from" in (spoken := capsys.readouterr().out)
    assert "tiny@1.0" in spoken


def test_normalisation_of_pretrained_wants_one_file_with_a_card(data, tmp_path):
    with pytest.raises(ValueError, match="no one file as 'pretrained'"):
        replace(OPTIONS, normalisation="pretrained")
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ModelError):
        train(
            replace(OPTIONS, normalisation="pretrained", pretrained=str(tmp_path / "w.pt")),
            data,
            tmp_path,
            CPU,
        )
