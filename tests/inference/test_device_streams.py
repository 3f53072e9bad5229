"""Copies and computation on two streams: each waits for the other where it must, shown by streams as late as can be."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import noise
from numpy.typing import NDArray
from stand_in import LazyAccelerator, on_stand_in
from test_device_blocks import of, plan_of
from test_patches import everything

from wsi_pipeline.base.geometry import Box
from wsi_pipeline.inference import device_blocks
from wsi_pipeline.inference.classify import ClassifyOptions, classify_blocks
from wsi_pipeline.inference.engines import pixel_ring
from wsi_pipeline.inference.engines.accelerator import Accelerator, HostAccelerator
from wsi_pipeline.inference.engines.pixel_ring import PixelRing
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.slides.slide import Pixels, PlaneReader, open_slide
from wsi_pipeline.tiling.grid import Plan

MakeSlide = Callable[..., Path]


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model("idc_default")


@pytest.fixture(autouse=True)
def _memory_of_three_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little that every piece of the rings is used again and again."""
    for name in ("HOST_BYTES", "DEVICE_BYTES"):
        monkeypatch.setattr(device_blocks, name, 3 * 256 * 256 * 3)


def scores_on(
    accelerator: Accelerator, plan: Plan, read: Callable[[Box], Pixels], models: Sequence[Model], batch: int
) -> list[NDArray[np.float32]]:
    classifier = on_stand_in(of(models), batch, ring=PixelRing(accelerator))
    options = ClassifyOptions(reader_threads=3, dense="off")
    return [one.scores for one in classify_blocks(plan.blocks(), plan.grid, read, classifier, options)]


def same(found: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> bool:
    return len(found) == len(right) and all(map(np.array_equal, found, right))


@pytest.mark.parametrize("batch", [8, 100])
def test_nothing_is_computed_before_it_was_copied_nor_overwritten_before_it_was_used(
    make_slide: MakeSlide, shipped: Model, batch: int
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(900, 1300)), block_px=256)
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    right = scores_on(HostAccelerator(), plan, read, [shipped], batch)
    lazy = LazyAccelerator()
    assert same(scores_on(lazy, plan, read, [shipped], batch), right)
    assert lazy.copies.launched > 10 < lazy.work.launched


def test_what_is_resampled_on_the_device_is_waited_for_too(
    make_slide: MakeSlide, shipped: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(make_slide("a.tiff", noise(1300, 1700), factors=(1, 2, 4), mpp=(0.5, 0.5)))
    model, plan = replace(shipped, card=replace(shipped.card, mpp=0.52)), plan_of(slide, 0.52, 50)
    read: PlaneReader = slide.reader(plan.grid.plane)
    right = scores_on(HostAccelerator(), plan, read, [model], 32)
    lazy, work = LazyAccelerator(), pixel_ring.resample_bytes
    launched: Callable[..., None] = lambda *args: lazy.copies.launch(lambda: work(*args))  # noqa: E731
    monkeypatch.setattr(pixel_ring, "resample_bytes", launched)
    assert same(scores_on(lazy, plan, read, [model], 32), right)


def test_streams_that_do_not_wait_for_each_other_are_found_out(
    make_slide: MakeSlide, shipped: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(900, 1300)), block_px=256)
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    right = scores_on(HostAccelerator(), plan, read, [shipped], 8)
    monkeypatch.setattr(LazyAccelerator, "wait_for", lambda *_: None)
    assert not same(scores_on(LazyAccelerator(), plan, read, [shipped], 8), right)


def test_page_locked_memory_for_pixels_is_taken_once_and_kept_from_slide_to_slide(
    make_slide: MakeSlide, shipped: Model
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(900, 1300)), block_px=256)
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    lazy = LazyAccelerator()
    classifier = on_stand_in(of([shipped]), 8, ring=PixelRing(lazy))
    options = ClassifyOptions(reader_threads=3, dense="off")
    taken = []
    for _ in range(3):
        list(classify_blocks(plan.blocks(), plan.grid, read, classifier, options))
        taken.append(len(lazy.pinned_bytes))
    assert taken == [2, 2, 2]  # a batch's when the engine was made, the blocks' at the first slide
