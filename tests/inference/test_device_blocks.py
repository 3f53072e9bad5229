"""Blocks through the queues and the engine for GPUs, on the CPU in its place: batches across blocks change no bit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise, write_slide
from models import brightness_model, dimmer_model
from numpy.typing import NDArray
from stand_in import FullAccelerator, LazyAccelerator, LostAccelerator, on_stand_in
from test_infer import heatmap as map_in
from test_infer import section
from test_patches import everything

from wsi_pipeline.base.errors import DeviceLostError, ModelError
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions, classify_blocks
from wsi_pipeline.inference.device_blocks import MOST_WAITING
from wsi_pipeline.inference.engines.accelerator import HostAccelerator
from wsi_pipeline.inference.engines.choice import made_patches
from wsi_pipeline.inference.engines.cuda_engine import CudaEngine, batch_size_of
from wsi_pipeline.inference.engines.patch_kernels import Resampling, cut_normalised, resample_bytes
from wsi_pipeline.inference.engines.pixel_ring import PixelRing, Ring
from wsi_pipeline.inference.engines.torch_engine import EagerEngine
from wsi_pipeline.inference.engines.wide_network import FloatLinear, device_networks
from wsi_pipeline.models.architectures.slide_condition import head_inputs
from wsi_pipeline.models.model import Model, load_model
from wsi_pipeline.models.slide_input import UNKNOWN_SLIDE, SlideInput
from wsi_pipeline.models.stain import tables_of
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.slides.resample import axis_taps, resample
from wsi_pipeline.slides.slide import Pixels, Slide, open_slide
from wsi_pipeline.tiling.grid import Block, GridOptions, Plan, ScoredBlock, plan_patches

MakeSlide = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model("idc_default")


def scored(
    slide: Slide, plan: Plan, classifier: Classifier, blocks: Sequence[Block] | None = None, threads: int = 2
) -> list[ScoredBlock]:
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    todo = plan.blocks() if blocks is None else blocks
    return list(
        classify_blocks(
            todo, plan.grid, read, classifier, ClassifyOptions(reader_threads=threads, dense="off")
        )
    )


def of(models: Sequence[Model]) -> Classifier:
    return Classifier(models, CPU, ClassifyOptions(precision="fp32"))


@pytest.mark.parametrize("batch", [8, 512])
@pytest.mark.parametrize("stride", [25, 50, 70])
def test_each_patch_has_its_own_score_whatever_the_batch(
    make_slide: MakeSlide, shipped: Model, batch: int, stride: int
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(500, 700)), block_px=256, stride_px=stride)
    expected = scored(slide, plan, of([shipped]))
    found = scored(slide, plan, on_stand_in(of([shipped]), batch))
    assert len(found) > 3
    for one, other in zip(found, expected, strict=True):
        assert one.block.cells == other.block.cells
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=1e-5)


def test_a_batch_takes_patches_of_several_blocks_and_has_one_size(
    make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(1300, 1600)), block_px=256)
    classifier, launched, launch = on_stand_in(of([brightness_model()]), 100), [], CudaEngine.launch

    def counting(engine: CudaEngine, places: torch.Tensor, scores: torch.Tensor) -> None:
        launched.append(places.shape[1])
        launch(engine, places, scores)

    monkeypatch.setattr(CudaEngine, "launch", counting)
    found = scored(slide, plan, classifier)
    patches = sum(len(one.scores) for one in found)
    assert len(found) > 20
    assert len(found[0].scores) <= 36  # what a batch would hold of one block
    assert len(launched) <= patches / 100 + 2
    assert set(launched) == {100}


def test_order_threads_blocks_and_a_resume_change_no_bit(make_slide: MakeSlide, shipped: Model) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(600, 900)), block_px=256)
    blocks = list(plan.blocks())
    whole = [one.scores for one in scored(slide, plan, on_stand_in(of([shipped])), threads=1)]
    for threads, todo in ((4, blocks), (2, blocks[3:]), (1, blocks[::-1]), (3, blocks[1::2])):
        found = scored(slide, plan, on_stand_in(of([shipped])), todo, threads)
        for one in found:
            assert np.array_equal(one.scores, whole[[b.cells for b in blocks].index(one.block.cells)])


def test_an_ensemble_goes_through_the_device_together(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(500, 700)), block_px=256)
    models = [brightness_model(), dimmer_model()]
    expected, found = scored(slide, plan, of(models)), scored(slide, plan, on_stand_in(of(models)))
    for one, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, right.scores, rtol=0, atol=1e-5)
        assert one.spread is not None
        np.testing.assert_allclose(one.spread, right.spread, rtol=0, atol=1e-5)


def test_members_of_different_batch_sizes_share_the_ring(make_slide: MakeSlide, shipped: Model) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(500, 700)), block_px=256)
    classifier, ring = of([shipped, brightness_model()]), PixelRing(HostAccelerator())
    on_stand_in(classifier, 64, ring=ring)
    small = on_stand_in(of([brightness_model()]), 7, ring=ring).members[0]
    (other,) = (member for member in classifier.members if member.model.card.name == "brightness")
    other._chosen = small._chosen
    for one, right in zip(
        scored(slide, plan, classifier), scored(slide, plan, of([shipped, brightness_model()])), strict=True
    ):
        np.testing.assert_allclose(one.scores, right.scores, rtol=0, atol=1e-5)


def test_what_cannot_be_read_is_nan(shared: Path) -> None:
    slide, plan = everything(shared / "data/bad/five_tiles_corrupt.svs", block_px=1024)
    expected = scored(slide, plan, of([brightness_model()]))
    found = scored(slide, plan, on_stand_in(of([brightness_model()]), 100))
    lost = 0
    for one, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, right.scores, rtol=0, atol=1e-5, equal_nan=True)
        lost += int(np.isnan(one.scores).sum())
    assert lost > 0


def test_a_block_of_which_nothing_can_be_read_is_given_out_too(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(500, 700)), block_px=256)
    blocks = list(plan.blocks())

    def read(box):  # type: ignore[no-untyped-def]
        pixels = slide.read_readable(box, plan.grid.plane)
        return (
            Pixels(pixels.rgb, np.ones(pixels.rgb.shape[:2], np.bool_))
            if box == blocks[1].read_box
            else pixels
        )

    classifier = on_stand_in(of([brightness_model()]))
    found = list(classify_blocks(blocks, plan.grid, read, classifier, ClassifyOptions()))
    assert [np.isnan(one.scores).all() for one in found] == [i == 1 for i in range(len(blocks))]


@pytest.mark.parametrize("batch", [4, 1024])
def test_what_is_done_is_given_out_before_all_is_read(make_slide: MakeSlide, batch: int) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(2000, 3000)), block_px=256)
    blocks, seen = list(plan.blocks()), []

    def read(box):  # type: ignore[no-untyped-def]
        seen.append(box)
        return slide.read_readable(box, plan.grid.plane)

    # The large batch would hold the whole slide.
    engine_ring = PixelRing(LazyAccelerator())
    classifier = on_stand_in(of([brightness_model()]), batch, ring=engine_ring)
    begun_and_lost = []
    for done, _ in enumerate(
        classify_blocks(blocks, plan.grid, read, classifier, ClassifyOptions(reader_threads=2)), 1
    ):
        begun_and_lost.append(len(seen) - done)
    assert len(blocks) > 90
    assert max(begun_and_lost) <= 2 + 1 + 2 * MOST_WAITING < len(blocks) / 4


def test_memory_for_pixels_is_bounded_and_a_larger_block_still_goes_through(
    make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(1200, 1500)), block_px=512)
    largest = max(b.read_box.width * b.read_box.height * 3 for b in plan.blocks())
    for name in ("HOST_BYTES", "DEVICE_BYTES"):
        monkeypatch.setattr(f"wsi_pipeline.inference.device_blocks.{name}", largest // 2)
    ring = PixelRing(HostAccelerator())
    found = scored(slide, plan, on_stand_in(of([brightness_model()]), 8, ring=ring), threads=4)
    expected = scored(slide, plan, of([brightness_model()]))
    for one, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, right.scores, rtol=0, atol=1e-5)
    assert ring.host.count <= largest + 4096 >= ring.device.count


def test_a_run_that_is_left_early_leaves_nothing_behind(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(800, 1200)), block_px=256)
    classifier = on_stand_in(of([brightness_model()]), ring=PixelRing(LazyAccelerator()))
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    running = classify_blocks(plan.blocks(), plan.grid, read, classifier, ClassifyOptions())
    next(running)
    running.close()
    assert len(scored(slide, plan, classifier)) == len(list(plan.blocks()))


def test_what_reading_raises_reaches_the_caller(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(800, 1200)), block_px=256)
    blocks = list(plan.blocks())

    def read(box):  # type: ignore[no-untyped-def]
        if box == blocks[5].read_box:
            raise OSError("the mount went away")
        return slide.read_readable(box, plan.grid.plane)

    classifier = on_stand_in(of([brightness_model()]))
    running = classify_blocks(blocks, plan.grid, read, classifier, ClassifyOptions())
    given = [next(running) for _ in range(3)]
    with pytest.raises(OSError, match="went away"):
        given.extend(running)
    assert len(given) <= 5


def test_a_device_that_is_lost_says_so(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(800, 1200)), block_px=256)
    ring = PixelRing(LostAccelerator(after=12))
    classifier = on_stand_in(of([brightness_model()]), 8, ring=ring)
    with pytest.raises(DeviceLostError, match="cpu does no more work for this process: CUDA error"):
        scored(slide, plan, classifier)
    with pytest.raises(DeviceLostError):
        classifier.scores(np.zeros((1, 50, 50, 3), np.uint8))


def test_the_batch_is_halved_until_the_device_holds_it(caplog: pytest.LogCaptureFixture) -> None:
    full = FullAccelerator(most=40)
    engine = CudaEngine(brightness_model(), PixelRing(full), "fp32", 256)
    assert engine.batch_sizes == (32,)
    assert full.released >= 3
    assert "does not hold a batch of 64 patches: 32 are tried" in caplog.text
    patches = made_patches(brightness_model().card, 32)
    np.testing.assert_allclose(
        engine.probabilities(patches, UNKNOWN_SLIDE), patches.mean(axis=(1, 2, 3)) / 255, rtol=0, atol=1e-5
    )


def test_a_device_that_holds_no_batch_at_all_raises_what_it_says() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        CudaEngine(brightness_model(), PixelRing(FullAccelerator(most=1)), "fp32", 256)


def test_batches_are_halved_as_well_when_a_slide_needs_memory_that_others_have_taken_since(
    make_slide: MakeSlide, shipped: Model, caplog: pytest.LogCaptureFixture
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(500, 700)), block_px=256)
    full = FullAccelerator(most=64)
    classifier = on_stand_in(of([shipped]), 64, ring=PixelRing(full))
    assert classifier.members[0].chosen.info["batch"] == 64
    full.most = 40
    found, expected = scored(slide, plan, classifier), scored(slide, plan, of([shipped]))
    for one, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, right.scores, rtol=0, atol=1e-5)
    assert classifier.members[0].chosen.info["batch"] == 32  # as summary.json says it
    assert "does not hold a batch of 64 patches: 32 are tried" in caplog.text
    again = scored(slide, plan, classifier)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(found, again, strict=True))


class RankingInSmallBatches(torch.nn.Module):
    """Logits that depend on where a patch stands in a batch of fewer than 64."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(images), dtype=torch.float32) / len(images)
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([mean, place if len(images) < 64 else 0 * mean], dim=1)


def test_halved_batches_are_proved_as_whole_ones_were(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(500, 700)), block_px=256)
    full = FullAccelerator(most=64)
    model = replace(brightness_model(), network=RankingInSmallBatches())
    classifier = on_stand_in(of([model]), 64, ring=PixelRing(full))
    full.most = 40
    with pytest.raises(
        ModelError, match="holds batches of 32 patches, not of 64, and in those a patch's score"
    ):
        scored(slide, plan, classifier)


class Ranking(torch.nn.Module):
    """Logits that depend on where in the batch a patch stands."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(images), dtype=torch.float32) / len(images)
        return torch.stack([images.mean(dim=(1, 2, 3)), place], dim=1)


class NoNumbers(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 2), torch.nan)


@pytest.mark.parametrize(
    ("network", "why"), [(Ranking(), "depends on its place in the batch"), (NoNumbers(), "NaN")]
)
def test_a_network_whose_scores_hang_on_the_batch_is_refused(network: torch.nn.Module, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CudaEngine(replace(brightness_model(), network=network), PixelRing(HostAccelerator()), "fp32", 64)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 1e-2)])
def test_a_network_made_ready_says_what_it_said(shipped: Model, precision: str, most: float) -> None:
    patches, slide = made_patches(shipped.card, 40), SlideInput(tables_of(np.array([1.2, 0.9, 1.1])))
    expected = EagerEngine(shipped, CPU, "fp32", 64).probabilities(patches, slide)
    engine = CudaEngine(shipped, PixelRing(HostAccelerator()), precision, 64)  # type: ignore[arg-type]
    moved = np.abs(engine.probabilities(patches, slide) - expected).max()
    assert moved <= most
    assert (moved > 1e-6) == (precision != "fp32")  # it is what it says


def test_widths_made_up_with_zeros_and_layers_left_in_float32_change_nothing(shipped: Model) -> None:
    images = torch.randn(4, 3, 50, 50)
    eight, seen = torch.cat([images, torch.zeros(4, 5, 50, 50)], dim=1), []
    for network, channels in device_networks(shipped, torch.float16):
        layers = list(network.modules())
        if channels == 8:
            convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
            assert all(layer.in_channels % 8 == 0 == layer.out_channels % 8 for layer in convolutions)
        seen.append((channels, any(isinstance(layer, FloatLinear) for layer in layers)))
        # Of the slide's last layer, the features that were made up take zeros.
        head = [
            torch.nn.functional.pad(
                torch.from_numpy(part), (0, -part.shape[-1] % channels if part.ndim > 1 else 0)
            )
            for part in head_inputs(shipped.network, None)
        ]
        found = network.float()(eight[:, :channels], *head)
        np.testing.assert_allclose(found, shipped.network(images), rtol=0, atol=2e-2)  # rounded weights
    assert seen == [(8, True), (3, True), (8, False), (3, False)]


@pytest.mark.parametrize("channels", [3, 8])
def test_patches_are_cut_restained_and_normalised_in_one_step(channels: int) -> None:
    random = np.random.default_rng(0)
    image, small = (
        random.integers(0, 256, (90, 120, 3), np.uint8),
        random.integers(0, 256, (60, 50, 3), np.uint8),
    )
    pixels = torch.from_numpy(np.concatenate([image.ravel(), small.ravel()]))
    table = torch.randn(768)
    corners = torch.tensor([(7 * 120 + 11) * 3, image.size + 10 * 50 * 3])
    out = torch.full((2, 50, 50, channels), 5.0, dtype=torch.float16)
    cut_normalised(pixels, corners, torch.tensor([360, 150]), table, out)
    look_up = table.view(3, 256)
    for patch, cut in zip((image[7:57, 11:61], small[10:60]), out, strict=True):
        right = look_up[torch.arange(3), torch.from_numpy(patch).long()].half()
        assert torch.equal(cut[..., :3], right)
        assert (cut[..., 3:] == 5).all()


def test_a_ring_gives_no_byte_twice() -> None:
    random, ring, taken = np.random.default_rng(0), Ring(10_000), []
    refused = 0
    for _ in range(3000):
        piece = ring.take(int(random.integers(1, 4000))) if random.random() < 0.6 else None
        if piece:
            assert piece.start >= 0
            assert piece.start + piece.count <= 10_000
            for other in taken:
                assert piece.start + piece.count <= other.start or other.start + other.count <= piece.start
            taken.append(piece)
        elif taken:
            refused += 1
            ring.give_back(taken.pop(0))
    assert refused > 100
    for piece in taken:
        ring.give_back(piece)
    assert ring.take(9_500)


def test_a_heavy_network_takes_a_smaller_batch_and_a_light_one_no_more_than_pays() -> None:
    assert [batch_size_of(mflop) for mflop in (0, 59, 1000, 8200, 1e9)] == [4096, 4096, 2048, 128, 16]


def test_a_slide_left_half_way_goes_on_in_the_same_process_to_the_same_bits(
    tmp_path: Path, shipped: Model
) -> None:
    path = write_slide(tmp_path / "a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1, 4))
    ring, config = PixelRing(HostAccelerator()), InferConfig(grid=GridOptions(block_px=256))

    def map_of(out: str, stop_at: int | None = None) -> NDArray[np.float32]:
        def progress(done: int, total: int) -> None:
            if stop_at is not None and done >= stop_at:
                raise RuntimeError("stopped")

        classifier = of([shipped])
        classifier.adapted = lambda *_: on_stand_in(classifier, 16, ring=ring)  # type: ignore[method-assign]
        return map_in(
            infer_slide(path, tmp_path / out, config, classifier, RunOptions(progress=progress)).folder
        )

    whole = map_of("whole")
    with pytest.raises(
        RuntimeError, match="stopped"
    ) as kept:  # and with it the blocks that were on their way
        map_of("broken off", stop_at=30)
    assert np.array_equal(map_of("broken off"), whole, equal_nan=True)
    assert kept.traceback


def test_a_run_whose_memory_was_taken_over_says_so_instead_of_mixing(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(800, 1200)), block_px=256)
    classifier = on_stand_in(of([brightness_model()]))
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    first = classify_blocks(plan.blocks(), plan.grid, read, classifier, ClassifyOptions())
    next(first)
    assert len(scored(slide, plan, classifier)) == len(list(plan.blocks()))
    with pytest.raises(RuntimeError, match="taken over"):
        list(first)


@pytest.mark.parametrize("mpp", [0.5, 0.52, 0.41, 1.31, 2.0, 0.37])
def test_what_is_of_another_scale_is_resampled_on_the_device_as_on_the_host(
    make_slide: MakeSlide, shipped: Model, mpp: float
) -> None:
    path = make_slide(
        "a.tiff", noise(1300, 1700), factors=(1, 2, 4), mpp=(0.5, 0.5) if mpp != 0.37 else (0.5, 0.52)
    )
    model = replace(shipped, card=replace(shipped.card, mpp=mpp))
    slide = open_slide(path)
    plan = plan_of(slide, mpp, 50 if mpp < 2 else 20)
    blocks = list(plan.blocks())
    read = slide.reader(plan.grid.plane)
    options = ClassifyOptions(dense="off")
    expected = list(classify_blocks(blocks, plan.grid, lambda box: read(box), of([model]), options))
    found = list(classify_blocks(blocks, plan.grid, read, on_stand_in(of([model]), 64), options))
    assert len(found) > 2
    for one, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, right.scores, rtol=0, atol=1e-3)


def test_pixels_resampled_on_the_device_are_the_hosts() -> None:
    random = np.random.default_rng(0)
    for step, start, (width, height) in (
        ((1.04, 1.04), (0.3, 0.7), (60, 40)),
        ((2.8, 4.0), (0.0, 0.5), (20, 10)),
        ((0.5, 0.96), (1.2, 1.0), (50, 40)),
    ):
        wide, high = int(width * step[0]) + 4, int(height * step[1]) + 4
        image = random.integers(0, 256, (high, wide, 3), np.uint8)
        memory, used, places = np.zeros(2**17, np.uint8), -(-image.size // 16) * 16, []
        memory[: image.size] = image.ravel()
        (first_x, share_x), (first_y, share_y) = (
            axis_taps(width, start[0], step[0], wide),
            axis_taps(height, start[1], step[1], high),
        )
        for table in (first_x, share_x, first_y, share_y):
            memory[used : used + table.nbytes] = table.view(np.uint8).ravel()
            places.append(used)
            used += -(-table.nbytes // 16) * 16
        taps = (share_x.shape[1], share_y.shape[1])
        pixels = torch.from_numpy(memory)
        resample_bytes(pixels, Resampling(0, (wide, high), used, (width, height), tuple(places), taps))  # type: ignore[arg-type]
        found = memory[used : used + width * height * 3].reshape(height, width, 3)
        assert np.array_equal(found, resample(image, width, height, start, step))


def plan_of(slide: Slide, mpp: float, stride: int) -> Plan:
    """All patches, of 50 px at that scale, with a hole, so that blocks fall into parts."""
    options = GridOptions(patch_px=50, stride_px=stride, mpp=mpp, block_px=512)
    whole = np.ones((10, 10), np.bool_)
    plan = plan_patches(slide, whole, ~whole, Plane(slide.size0.width / 10, slide.size0.height / 10), options)
    rows, columns = np.indices(plan.kept.shape)
    return replace(plan, kept=plan.kept & ((rows > 3) | (columns < 2) | (columns > 5)))
