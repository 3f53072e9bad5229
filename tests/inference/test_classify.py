import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from models import brightness_model, dimmer_model
from test_patches import everything

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions, classify_blocks
from wsi_pipeline.inference.device import choose_device, reader_threads
from wsi_pipeline.inference.engines.batching import BatchRunner
from wsi_pipeline.inference.engines.choice import Chosen, Engines
from wsi_pipeline.models.card import Stain
from wsi_pipeline.models.stain import normalise_stain, patch_densities, stain_tables

MakeSlide = Callable[..., Path]
CPU = torch.device("cpu")


def test_scores_are_what_the_network_says_of_each_patch() -> None:
    patches = np.stack([np.full((50, 50, 3), value, np.uint8) for value in (10, 128, 250)])
    scores = Classifier([brightness_model()], CPU, ClassifyOptions()).scores(patches)
    assert scores.dtype == np.float32
    assert scores == pytest.approx([10 / 255, 128 / 255, 250 / 255], abs=1e-5)


def test_no_patches_have_no_scores() -> None:
    scores = Classifier([brightness_model()], CPU, ClassifyOptions()).scores(
        np.empty((0, 50, 50, 3), np.uint8)
    )
    assert scores.shape == (0,)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_batch_size_changes_scores_by_less_than_a_thousandth(batch: int) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (30, 50, 50, 3), np.uint8)
    whole = Classifier([brightness_model()], CPU, ClassifyOptions(batch_size=1000)).scores(patches)
    parts = Classifier([brightness_model()], CPU, ClassifyOptions(batch_size=batch)).scores(patches)
    assert np.abs(whole - parts).max() < 1e-3


def test_blocks_come_scored_in_order_and_unreadable_patches_as_nan(shared: Path) -> None:
    slide, plan = everything(shared / "data/bad/five_tiles_corrupt.svs", block_px=1024)
    options = ClassifyOptions()
    classifier = Classifier([brightness_model()], CPU, options)
    scored = list(
        classify_blocks(
            plan.blocks(), plan.grid, lambda b: slide.read_readable(b, plan.grid.plane), classifier, options
        )
    )
    assert [one.block.cells for one in scored] == [block.cells for block in plan.blocks()]
    scores = np.concatenate([one.scores for one in scored])
    assert 0 < np.isnan(scores).sum() < 0.1 * len(scores)


def test_threads_change_no_bit(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(500, 700)), block_px=256)
    runs = []
    for threads in (1, 4):
        options = ClassifyOptions(reader_threads=threads)
        classifier = Classifier([brightness_model()], CPU, options)
        read = lambda b: slide.read_readable(b, plan.grid.plane)  # noqa: E731
        runs.append(
            np.concatenate(
                [one.scores for one in classify_blocks(plan.blocks(), plan.grid, read, classifier, options)]
            )
        )
    assert np.array_equal(*runs)


class Brightest:
    """An engine of a machine with many cores: each patch's brightest red, 0 to 1."""

    name, precision, parallel_batches, batch_sizes = "brightest", "fp32", 32, (64, 16)

    def probabilities(self, batch: np.ndarray, _: object) -> np.ndarray:
        return batch[..., 0].max(axis=(1, 2)) / np.float32(255)


@pytest.mark.parametrize("threads", [2, 16])
def test_what_a_kill_would_cost_stays_a_few_blocks_on_many_cores(make_slide: MakeSlide, threads: int) -> None:
    # Of 25 patches a block, 4,096 patches ahead were all that a whole mount has: nothing was given out before the end.
    slide, plan = everything(make_slide("a.tiff", noise(2000, 3000)), block_px=256)
    blocks, seen = list(plan.blocks()), []

    def read(box):  # type: ignore[no-untyped-def]
        seen.append(box)
        return slide.read_readable(box, plan.grid.plane)

    classifier = Classifier([brightness_model()], CPU, ClassifyOptions())
    classifier.members[0]._chosen = Chosen(BatchRunner(Brightest()), 0.0, 0)  # type: ignore[arg-type]
    lost = []
    options = ClassifyOptions(reader_threads=threads)
    for done, _ in enumerate(classify_blocks(blocks, plan.grid, read, classifier, options), 1):
        lost.append(len(seen) - done)
        time.sleep(0.002)  # the caller keeps it
    assert len(lost) == len(blocks) > 90
    # Two batches a block: what keeps 32 threads at work is 32 blocks; the readers have as many as they have threads.
    assert max(lost) <= 1 + classifier.batches_in_flight // 2 + threads + 1 < len(blocks)


def test_a_block_that_is_done_is_given_out_while_the_next_one_is_still_read(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(500, 700)), block_px=256)
    blocks, go_on = list(plan.blocks()), threading.Event()

    def read(box):  # type: ignore[no-untyped-def]
        if box != blocks[0].read_box:
            assert go_on.wait(60), "the first block was not given out"
        return slide.read_readable(box, plan.grid.plane)

    classifier = Classifier([brightness_model()], CPU, ClassifyOptions())
    running = classify_blocks(blocks, plan.grid, read, classifier, ClassifyOptions(reader_threads=2))
    next(running)
    go_on.set()
    assert len(list(running)) == len(blocks) - 1


def test_patches_ahead_hold_no_more_memory_than_is_allowed(
    make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(1500, 3000)), block_px=256)
    monkeypatch.setattr("wsi_pipeline.inference.classify.MOST_BYTES", 3 * 25 * 7500)  # of three blocks
    blocks, seen = list(plan.blocks()), []

    def read(box):  # type: ignore[no-untyped-def]
        seen.append(box)
        return slide.read_readable(box, plan.grid.plane)

    classifier = Classifier([brightness_model()], CPU, ClassifyOptions())
    classifier.members[0]._chosen = Chosen(BatchRunner(Brightest()), 0.0, 0)  # type: ignore[arg-type]
    lost = []
    for done, _ in enumerate(
        classify_blocks(blocks, plan.grid, read, classifier, ClassifyOptions(reader_threads=2)), 1
    ):
        lost.append(len(seen) - done)
    assert max(lost) <= 3 + 2 + 1 < len(blocks) / 10


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}"):
        choose_device(name)


def test_bf16_is_taken_only_where_the_card_allows_it_or_one_asks() -> None:
    model = brightness_model()
    assert not model.card.bf16
    assert Classifier([model], CPU, ClassifyOptions()).precision == "fp32"
    assert Classifier([model], CPU, ClassifyOptions(precision="bf16")).precision == "bf16"


def grey(*values: int) -> np.ndarray:
    return np.stack([np.full((50, 50, 3), value, np.uint8) for value in values])


def test_an_ensemble_says_the_mean_of_its_models_and_how_far_they_are_apart() -> None:
    brightness = np.array([10, 128, 250]) / 255
    ensemble = Classifier([brightness_model(), dimmer_model()], CPU, ClassifyOptions(batch_size=2))
    scores, spread = ensemble.scores_and_spread(grey(10, 128, 250))
    assert scores.dtype == spread.dtype == np.float32
    # The models say b and b / 2: in the mean 3/4 b, each 1/4 b away from it.
    assert scores == pytest.approx(0.75 * brightness, abs=1e-5)
    assert spread == pytest.approx(0.25 * brightness, abs=1e-5)


def test_models_that_agree_have_no_spread() -> None:
    ensemble = Classifier([brightness_model()] * 3, CPU, ClassifyOptions())
    scores, spread = ensemble.scores_and_spread(grey(10, 77, 250))
    alone = Classifier([brightness_model()], CPU, ClassifyOptions()).scores(grey(10, 77, 250))
    assert np.array_equal(scores, alone)
    assert (spread == 0).all()


def test_an_ensemble_of_no_patches_says_nothing() -> None:
    ensemble = Classifier([brightness_model(), dimmer_model()], CPU, ClassifyOptions())
    assert [len(a) for a in ensemble.scores_and_spread(np.empty((0, 50, 50, 3), np.uint8))] == [0, 0]


def test_one_model_is_no_ensemble() -> None:
    one = Classifier([brightness_model()], CPU, ClassifyOptions())
    scores, spread = one.scores_and_spread(grey(10, 77))
    assert np.array_equal(scores, one.scores(grey(10, 77)))
    assert spread is None


def test_an_ensembles_spread_is_nan_where_a_patch_cannot_be_read(shared: Path) -> None:
    slide, plan = everything(shared / "data/bad/five_tiles_corrupt.svs", block_px=1024)
    options = ClassifyOptions()
    ensemble = Classifier([brightness_model(), dimmer_model()], CPU, options)
    read = lambda b: slide.read_readable(b, plan.grid.plane)  # noqa: E731
    lost = 0
    for scored in classify_blocks(plan.blocks(), plan.grid, read, ensemble, options):
        scores, spread = scored.scores, scored.spread
        assert spread is not None
        assert np.array_equal(np.isnan(scores), np.isnan(spread))
        assert np.nanmax(np.abs(spread - scores / 3)) < 1e-5
        lost += int(np.isnan(spread).sum())
    assert lost > 0


def test_a_slide_is_seen_in_the_stain_that_the_card_wants():
    model = brightness_model()
    stain = Stain(od_mean=(0.3, 0.3, 0.3), od_std=(0.1, 0.1, 0.1), od_patient_std=(0.05, 0.05, 0.05))
    model = replace(model, card=replace(model.card, stain=stain, stain_normalisation=0.7))
    patches = np.random.default_rng(0).integers(20, 250, (200, 50, 50, 3), dtype=np.uint8)
    densities = patch_densities(patches)
    plain = Classifier([model], torch.device("cpu"), ClassifyOptions())
    tables = stain_tables(densities, stain, 0.7)
    assert np.array_equal(
        plain.adapted(densities).scores(patches), plain.scores(normalise_stain(patches, tables))
    )
    assert not np.array_equal(plain.adapted(densities).scores(patches), plain.scores(patches))
    off = Classifier([brightness_model()], torch.device("cpu"), ClassifyOptions())
    assert np.array_equal(off.adapted(densities).scores(patches), off.scores(patches))


def test_more_threads_decode_before_a_gpu_unless_a_number_is_asked_for() -> None:
    gpu = torch.device("cuda")  # named only: none is needed
    assert reader_threads(ClassifyOptions(), torch.device("cpu")) == 2
    assert reader_threads(ClassifyOptions(), gpu) == len(os.sched_getaffinity(0))
    assert reader_threads(ClassifyOptions(reader_threads=3), gpu) == 3


def test_every_engine_is_ready_before_any_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    # While torch.fx follows one network to fold it, networks that compute on other threads fail.
    seen: list[str] = []
    choose, start = Engines.choose, BatchRunner.start

    def choosing(self, *args):  # type: ignore[no-untyped-def]
        chosen = choose(self, *args)
        seen.append("ready")
        return chosen

    def starting(self, *args):  # type: ignore[no-untyped-def]
        seen.append("computes")
        return start(self, *args)

    classifier = Classifier([brightness_model(), dimmer_model()], CPU, ClassifyOptions(precision="fp32"))
    monkeypatch.setattr(Engines, "choose", choosing)
    monkeypatch.setattr(BatchRunner, "start", starting)
    classifier.scores(grey(10, 77))
    assert [word for word in seen if word == "ready"] == ["ready", "ready"]
    last_ready = len(seen) - 1 - seen[::-1].index("ready")
    assert seen[last_ready + 1 :] == ["computes", "computes"]
