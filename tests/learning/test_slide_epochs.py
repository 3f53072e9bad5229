"""Patches read from slides while a network trains: each once, of storage tiles decoded once, as the seed says."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
import torch
import yaml
from conftest import write_outlines, write_slide
from safetensors.torch import load_file
from test_train import CPU, NOTHING, OPTIONS

from wsi_pipeline.base.errors import ConfigError, DataError, ScaleError
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.cli import evaluate_model
from wsi_pipeline.learning.datasets.sharing import OneReader
from wsi_pipeline.learning.datasets.slide_epochs import batches_of, in_memory, plan_epoch
from wsi_pipeline.learning.datasets.split import SplitOptions
from wsi_pipeline.learning.datasets.tiled_slides import SlideReadOptions, all_slides
from wsi_pipeline.learning.training.train import train
from wsi_pipeline.models.model import load_model
from wsi_pipeline.pipeline.config import TileConfig, TileGridOptions
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.results.store import SlideStore
from wsi_pipeline.slides.readers.tile_cache import TiledLevels

PX, WIDTH, HEIGHT = 20, 1100, 700
CONFIG = TileConfig(grid=TileGridOptions(patch_px=PX, mpp=0.5, min_tissue=0.5))
READING = SlideReadOptions(read_px=256, pool_patches=200, slides_at_once=2)
SLIDES = replace(
    OPTIONS,
    architecture="plain_cnn",
    architecture_options={"input_px": 16, "widths": [4, 8], "dense": 8},
    bf16=False,
    batch_size=64,
    patch_px=PX,
    mpp=0.5,
    patches_from="slides",
    reading=READING,
    split=SplitOptions(val_patients=("c",)),
    augment=NOTHING,
    class_balance="sampling",
    stain_normalisation=0.5,
    epochs=2,
)


def draw(path: Path, seed: int, **options: object) -> Path:
    """A slide of pink tissue whose left third is full of dark dots, tumour; glass above, a black spot at the right."""
    rng = np.random.default_rng(seed)
    rgb = rng.normal((205, 130, 175), 12, (HEIGHT, WIDTH, 3))
    rgb[:, : WIDTH // 3][rng.random((HEIGHT, WIDTH // 3)) < 0.3] = (150, 90, 150)
    rgb[200:400, 800:1000] = 5
    rgb[:40] = 242
    return write_slide(path, rgb.clip(0, 255).astype(np.uint8), factors=(1, 4), tile=64, **options)


def outline(path: Path) -> None:
    areas = ((shapely.box(0, 0, WIDTH // 3, HEIGHT), "Tumor"), (shapely.box(500, 100, WIDTH, 620), "Stroma"))
    write_outlines(path, areas)


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """Three slides, a to c, cut by tile-slides: the folder of their run folders."""
    folder = tmp_path_factory.mktemp("cut")
    for seed, name in enumerate("abc"):
        path = draw(folder / f"{name}.tiff", seed)
        outline(path)
        tile_slide(path, folder / "out", CONFIG, annotations=folder, export=name == "a")
    return folder / "out"


def epochs(patches, seed=0, count=1, rank=0, numbers=(0,), share=16):
    for number in numbers:
        plan = plan_epoch(patches, (seed, number), share, None, rank, count)
        yield list(batches_of(patches, plan, share, (seed, number), OneReader(), rank))


def test_an_epoch_has_the_slides_own_patches_each_once_and_decodes_no_storage_tile_twice(cut, monkeypatch):
    patches = all_slides(cut, SplitOptions(), READING)
    assert {0, 1} == set(patches.labels.tolist())
    plan = SlideStore(cut / "a" / "slide.zarr").map_recipe["plan"]
    assert plan["patches"] < plan["kept"]  # the black spot is not trained on
    exported = list((cut / "a" / "export" / "a").glob("[01]/*.png"))
    assert {path.stem for path in exported} == set(patches.names()[patches.slide == 0].tolist())
    decoded: Counter[tuple[object, ...]] = Counter()
    claim = TiledLevels._claim

    def counted(self, level, inside, overlap_px):
        mine, others = claim(self, level, inside, overlap_px)
        decoded.update((id(self), *key) for key in mine)
        return mine, others

    plans = [plan_epoch(patches, (0, number), 16) for number in range(12)]
    seen = np.zeros(len(patches), np.int64)
    for number, plan in enumerate(plans):
        rows = np.concatenate([piece.rows for piece in plan.pieces])
        assert len(np.unique(rows)) == len(rows) == len(patches) - plan.waiting
        seen[rows] += 1
        if number:
            continue
        with monkeypatch.context() as patch:
            patch.setattr(TiledLevels, "_claim", counted)
            batches = list(batches_of(patches, plan, 16, (0, 0), OneReader()))
        level0 = {key: times for key, times in decoded.items() if key[1] == 0}
        assert len(level0) > 100
        assert len(batches) == plan.steps == len(rows) // 16
    assert 0 < plans[0].waiting < len(patches) / 5
    assert seen.min() > 0  # what waits in one epoch comes in another
    slides = [slide.open() for slide in patches.slides]
    for rows, pixels in batches[:3]:
        for row, rgb in zip(rows.tolist(), pixels, strict=True):
            column, line = patches.places[row].tolist()
            grid = patches.slides[patches.slide[row]].grid
            assert np.array_equal(
                slides[patches.slide[row]].read(grid.patch_box(column, line), grid.plane), rgb
            )
            assert patches.labels[row] == (column * PX < WIDTH // 3)
    # Opening a slide compares some tiles; of what the epoch reads itself, none is decoded twice.
    assert max(level0.values()) == 1
    mixed = [len(np.unique(patches.slide[rows])) for rows, _ in batches]
    assert max(mixed) >= 2  # of the slides at hand


def test_batches_follow_from_the_seed_and_processes_share_the_pieces_out(cut, monkeypatch):
    patches = all_slides(cut, SplitOptions(), READING)
    (first,) = epochs(patches)
    monkeypatch.setattr("os.cpu_count", lambda: 7)  # threads
    (again,) = epochs(patches)
    (other,) = epochs(patches, seed=1)
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(first, again, strict=True))
    assert not (first[0][0] == other[0][0]).all()
    ((one,), (two,)) = (epochs(patches, count=2, rank=rank, share=8) for rank in (0, 1))
    assert len(one) == len(two)
    rows = np.concatenate([batch[0] for batch in one + two])
    assert len(np.unique(rows)) == len(rows) > 0.8 * len(patches)
    with pytest.raises(DataError, match="expected a batch of 8000 at least"):
        plan_epoch(patches, (0, 0), 8000)


def test_an_epoch_of_so_many_patches_is_of_other_places_each_time_and_draws_follow_the_weights(cut):
    some = replace(READING, patches_an_epoch=300)
    patches = all_slides(cut, SplitOptions(), some)
    plans = [plan_epoch(patches, (0, number), 16) for number in (0, 1)]
    places = [{int(row) for piece in plan.pieces for row in piece.rows} for plan in plans]
    assert all(300 <= len(rows) < 500 for rows in places)
    assert len(places[0] & places[1]) < 200
    whole = replace(patches, reading=READING)
    weights = np.where(whole.labels == 1, 100.0, 1.0)
    drawn = np.concatenate([piece.rows for piece in plan_epoch(whole, (0, 0), 16, weights).pieces])
    assert whole.labels[drawn].mean() > 0.9


def test_a_training_from_slides_learns_repeats_itself_and_goes_on_where_it_stopped(cut, tmp_path):
    whole = train(SLIDES, cut, tmp_path / "whole", CPU)

    def stop(history):
        if len(history) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SLIDES, cut, tmp_path / "halves", CPU, after_epoch=stop)
    halves = train(SLIDES, cut, tmp_path / "halves", CPU)
    weights = [load_file(path) for path in (whole, halves)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    card = load_model(whole).card
    assert card.metrics["val"]["auroc"] > 0.95
    assert card.training["by"] == "slide"
    assert card.training["data_scale"] == "0.5 um/px (the stores of tile-slides)"
    patches = all_slides(cut, SplitOptions(), READING)
    held_out = patches.slide == 2
    assert card.training["train"]["patches"] == int((~held_out).sum())
    assert card.training["val"] == {
        "patients": 1,
        "patches": int(held_out.sum()),
        "idc": int(patches.labels[held_out].sum()),
    }


def test_a_model_is_evaluated_on_the_slides_themselves_as_its_training_was(cut, tmp_path, capsys, caplog):
    weights = train(SLIDES, cut, tmp_path / "run", CPU)
    card = load_model(weights).card
    arguments = ["--model", str(weights), "--data", str(cut), "--patches-from", "slides", "--device", "cpu"]
    assert evaluate_model.main([*arguments, "--out", str(tmp_path / "val")]) == 0
    found = json.loads((tmp_path / "val/metrics.json").read_text())
    for name in ("auroc", "f1", "balanced_accuracy", "ece"):
        assert found["patches"][name]["value"] == pytest.approx(card.metrics["val"][name], abs=1e-4)
    assert evaluate_model.main([*arguments, "--split", "all", "--out", str(tmp_path / "all")]) == 0
    everybody = json.loads((tmp_path / "all/metrics.json").read_text())["patients"]
    assert {row["patient"] for row in everybody} == {"a", "b", "c"}
    few = replace(SLIDES, reading=replace(READING, val_patches=40), epochs=1)
    fewer = train(few, cut, tmp_path / "few", CPU)
    arguments[1] = str(fewer)
    caplog.clear()
    assert evaluate_model.main([*arguments, "--out", str(tmp_path / "fewer")]) == 0
    assert "of which 40 are drawn and read" in caplog.text
    found = json.loads((tmp_path / "fewer/metrics.json").read_text())
    assert found["patches"]["auroc"]["value"] == pytest.approx(
        load_model(fewer).card.metrics["val"]["auroc"], abs=1e-4
    )


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_a_network_trained_on_normalised_colours_is_evaluated_on_the_same(cut, tmp_path, method):
    options = replace(SLIDES, stain_method=method, stain_normalisation=1.0)
    weights = train(options, cut, tmp_path / "run", CPU)
    card = load_model(weights).card
    assert (card.stain_method, len(card.stain.reference)) == (method, 8 if method == "macenko" else 6)
    assert card.metrics["val"]["auroc"] > 0.9
    arguments = ["--model", str(weights), "--data", str(cut), "--patches-from", "slides", "--device", "cpu"]
    assert evaluate_model.main([*arguments, "--out", str(tmp_path / "page")]) == 0
    found = json.loads((tmp_path / "page/metrics.json").read_text())["patches"]
    for name in ("auroc", "f1", "ece"):
        assert found[name]["value"] == pytest.approx(card.metrics["val"][name], abs=1e-4)


@pytest.mark.slow  # two processes that import torch
def test_two_processes_under_torchrun_train_from_slides_and_repeat_themselves(cut, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(options_to_dict(SLIDES)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "wsi_pipeline.cli.train_model",
        "--config",
        str(config),
        "--data",
        str(cut),
        "--device",
        "cpu",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name in ("one", "two"):
        run = subprocess.run(
            [*command, "--out", str(tmp_path / name)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=150,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert run.stderr.count("epoch 2: loss") == 1  # the first process alone speaks
    (one, two) = (next((tmp_path / name).glob("*.safetensors")) for name in ("one", "two"))
    tensors = [load_file(path) for path in (one, two)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    card, patches = load_model(one).card, all_slides(cut, SplitOptions(), READING)
    assert card.training["train"]["patches"] == int((patches.slide != 2).sum())
    assert card.metrics["val"]["auroc"] > 0.9


def test_what_cannot_be_trained_on_is_refused_with_a_line(cut, tmp_path):
    with pytest.raises(ScaleError, match=r"found patches of 0\.5 um/px"):
        train(replace(SLIDES, mpp=0.25), cut, tmp_path / "run", CPU)
    with pytest.raises(DataError, match=r"found no <slide>/slide\.zarr"):
        train(SLIDES, tmp_path, tmp_path / "run", CPU)
    with pytest.raises(DataError, match="one slide alone"):
        train(
            replace(SLIDES, split=SplitOptions(val_share=0.5)),
            copied(cut, tmp_path / "one", "a"),
            tmp_path / "run",
            CPU,
        )
    moved = copied(cut, tmp_path / "moved", "a", "b")
    summary = moved / "b" / "summary.json"
    text = summary.read_text()
    summary.write_text(text.replace("b.tiff", "a.tiff"))
    with pytest.raises(DataError, match="not that of the slide that tile-slides cut as 'b'"):
        all_slides(moved, SplitOptions(), READING)
    summary.write_text(text.replace("b.tiff", "gone.tiff"))
    with pytest.raises(DataError, match=r"gone\.tiff, is not there"):
        all_slides(moved, SplitOptions(), READING)
    with pytest.raises((ConfigError, ValueError), match="'patches_from: slides' with 'slides_a_batch'"):
        replace(SLIDES, slides_a_batch=2)


def copied(cut: Path, to: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(cut / name, to / name)
    return to


def test_patches_that_cannot_be_decoded_end_it_or_are_skipped_as_the_config_says(tmp_path, caplog):
    path = draw(tmp_path / "a.tiff", 0, compression="jpeg")
    with tifffile.TiffFile(path) as tif:
        places = [(tif.pages[0].dataoffsets[i], tif.pages[0].databytecounts[i]) for i in (20, 21)]
    content = bytearray(path.read_bytes())
    for start, length in places:
        content[start : start + length] = bytes(length)
    path.write_bytes(content)
    outline(path)
    tile_slide(path, tmp_path / "out", CONFIG, annotations=tmp_path)
    strict = all_slides(tmp_path / "out", SplitOptions(), READING)
    with pytest.raises(
        DataError, match="read together cannot be decoded; get the slide again, or set skip_unread"
    ):
        in_memory(strict)
    patches = replace(strict, skip_unreadable=True)
    kept = in_memory(patches)
    lost = len(patches) - len(kept)
    assert 10 < lost < 60
    (batches,) = epochs(patches)
    rows = np.concatenate([rows for rows, _ in batches])
    known = {name: rgb for name, rgb in zip(kept.names.tolist(), kept.pixels, strict=True)}
    pixels = np.concatenate([pixels for _, pixels in batches])
    for name, rgb in zip(patches.names()[rows].tolist(), pixels, strict=True):
        assert np.array_equal(known[name], rgb), name
    assert len(batches) == plan_epoch(patches, (0, 0), 16).steps
    assert f"{lost} patches of slides cannot be decoded: skipped" in caplog.text
