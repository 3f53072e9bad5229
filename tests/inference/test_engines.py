"""Engines say what eager float32 torch says, each as nearly as its precision allows, or are not taken."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from models import brightness_model
from numpy.typing import NDArray
from test_patches import everything
from torch import nn

from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions, classify_blocks
from wsi_pipeline.inference.engines.batching import BatchRunner, Precision, batch_slices
from wsi_pipeline.inference.engines.choice import OPENVINO_BATCH, TOLERANCES, Engines, made_patches
from wsi_pipeline.inference.engines.openvino_engine import Graphs, OpenVinoEngine
from wsi_pipeline.inference.engines.torch_engine import EagerEngine
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import Model, build_network, load_model
from wsi_pipeline.models.slide_input import UNKNOWN_SLIDE, SlideInput
from wsi_pipeline.models.stain import Tables, normalise_stain, patch_densities, tables_of

MakeSlide = Callable[..., Path]
CPU = torch.device("cpu")
SIZES = (OPENVINO_BATCH, OPENVINO_BATCH // 4)


def model_of(network: nn.Module, bf16: bool = False) -> Model:
    card = ModelCard(
        name="made",
        architecture="none",
        architecture_options={},
        patch_px=50,
        mpp=4.0,
        mean=(0.8, 0.6, 0.7),
        std=(0.2, 0.2, 0.2),
        bf16=bf16,
    )
    return Model(card, network.eval().requires_grad_(False), "0" * 64)


def of_the_zoo(architecture: str, **options: object) -> Model:
    torch.manual_seed(0)
    return model_of(build_network(architecture, classes=2, **options))


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model("idc_default")


def eager(model: Model, patches: NDArray[np.uint8], slide: SlideInput = UNKNOWN_SLIDE) -> NDArray[np.float32]:
    return EagerEngine(model, CPU, "fp32", 512).probabilities(patches, slide)


def adapted(model: Model, sample: NDArray[np.uint8], **options: object) -> Classifier:
    return Classifier([model], CPU, ClassifyOptions(**options)).adapted(patch_densities(sample), sample)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_each_engine_says_what_eager_torch_says(engine: str, precision: Precision, shipped: Model) -> None:
    if (engine, precision) == ("torch", "int8"):
        pytest.skip("torch computes no int8 here")
    for model in (
        replace(shipped, card=replace(shipped.card, stain_normalisation=0.0)),
        of_the_zoo("cancernet", input_px=50),
    ):
        patches = made_patches(model.card, 100)
        scored = adapted(model, patches[:40], engine=engine, precision=precision)
        assert (scored.members[0].chosen.runner.engine.name, scored.precision) == (engine, precision)
        moved = np.abs(scored.scores(patches) - eager(model, patches, scored.members[0].slide))
        assert moved.max() <= TOLERANCES[precision].furthest
        assert moved.mean() <= TOLERANCES[precision].mean
        assert (moved.max() > 1e-5) == (precision != "fp32")  # it is what it says


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("cancernet", {"input_px": 50}), ("plain_cnn", {"input_px": 50}), ("resnet18", {"activation": "elu"})],
)
def test_the_zoo_is_computed_by_openvino(architecture: str, options: dict[str, object]) -> None:
    model = of_the_zoo(architecture, **options)
    patches = made_patches(model.card, 5)
    scored = adapted(model, patches)
    assert scored.members[0].chosen.runner.engine.name == "openvino"
    assert np.abs(scored.scores(patches) - eager(model, patches)).max() <= 1e-5


class PoolOverTheEdge(nn.Module):
    """A pooling whose last window lies half outside: OpenVINO divides it by another count than torch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(torch.relu(self.conv(x)))[:, :, -1, -1])  # type: ignore[no-any-return]


class DarkOrBright(nn.Module):
    """What a traced graph cannot hold: which way it goes depends on the patches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = [image.mean() for image in x]
        return torch.stack([torch.stack([m, m * 0 if m > -1 else 3 * m]) for m in means])


@pytest.mark.parametrize("network", [PoolOverTheEdge, DarkOrBright])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_engine_that_is_wrong_is_refused(
    network: Callable[[], nn.Module], precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(network())
    patches = made_patches(model.card, 50)
    scored = adapted(model, patches, precision=precision)
    info = scored.engine_info[0]
    assert info["engine"] == "torch"
    assert "against eager float32; expected" in info["refused"][0]
    assert info["refused"][0] in caplog.text
    assert np.abs(scored.scores(patches) - eager(model, patches)).max() <= TOLERANCES["bf16"].furthest


def test_a_graph_that_cannot_be_made_is_refused(shipped: Model) -> None:
    class NotATensor(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(np.stack([x.numpy().mean((1, 2, 3)), x.numpy().var((1, 2, 3))], 1))

    patches = made_patches(shipped.card, 5)
    scored = adapted(model_of(NotATensor()), patches)
    assert scored.members[0].chosen.runner.engine.name == "torch"
    assert np.ptp(scored.scores(patches)) > 0


def test_without_openvino_torch_computes(
    shipped: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "openvino", None)  # what an import finds where it is not installed
    modules = ["inference.engines.openvino_engine", "inference.engines.quantise", "models.quiet_openvino"]
    for module in modules:
        monkeypatch.delitem(sys.modules, f"wsi_pipeline.{module}", raising=False)
    scored = adapted(shipped, made_patches(shipped.card, 5), precision="int8")
    assert scored.members[0].chosen.runner.engine.name == "torch"
    assert "not installed" in scored.engine_info[0]["refused"][0]
    assert "pip install '.[openvino]'" in caplog.text
    for _ in range(2):  # other slides
        assert adapted(shipped, made_patches(shipped.card, 5)).members[0].chosen.runner.engine.name == "torch"
    assert caplog.text.count("not installed") == 1


def test_that_openvino_is_not_installed_is_no_warning(
    shipped: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    monkeypatch.setitem(sys.modules, "openvino", None)
    modules = ["inference.engines.openvino_engine", "inference.engines.quantise", "models.quiet_openvino"]
    for module in modules:
        monkeypatch.delitem(sys.modules, f"wsi_pipeline.{module}", raising=False)
    scored = adapted(shipped, made_patches(shipped.card, 5))
    assert scored.members[0].chosen.runner.engine.name == "torch"
    assert all("not installed" in reason for reason in scored.engine_info[0]["refused"])
    assert "openvino" not in caplog.text.lower()


def test_int8_needs_a_slide_to_be_calibrated_on(shipped: Model) -> None:
    scored = Classifier([shipped], CPU, ClassifyOptions(precision="int8"))
    assert scored.precision != "int8"
    assert "calibrated" in scored.engine_info[0]["refused"][0]


def test_int8_is_never_taken_unasked(shipped: Model) -> None:
    assert adapted(shipped, made_patches(shipped.card, 20)).precision in ("bf16", "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_batches_side_by_side_change_no_bit(precision: Precision, shipped: Model) -> None:
    graphs, patches = Graphs(shipped, OPENVINO_BATCH), made_patches(shipped.card, 300)
    ranges = graphs.ranges(patches[:50], UNKNOWN_SLIDE) if precision == "int8" else None
    one, three = (
        BatchRunner(OpenVinoEngine(graphs, precision, threads, ranges)).start(patches, UNKNOWN_SLIDE).result()
        for threads in (1, 3)
    )
    assert np.array_equal(one, three)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_patch_has_the_same_bits_wherever_it_stands(precision: Precision, shipped: Model) -> None:
    patches = made_patches(shipped.card, 100)
    scored = adapted(shipped, patches[:40], engine="openvino", precision=precision)
    whole = scored.scores(patches)  # a full batch, and small ones of which the last is filled up
    order = np.random.default_rng(1).permutation(100)
    assert np.array_equal(scored.scores(patches[order]), whole[order])
    for count in (1, 15, 63, 65):
        assert np.array_equal(scored.scores(patches[:count]), whole[:count])


@pytest.mark.parametrize("count", [0, 1, 16, 63, 64, 100, 400])
def test_every_patch_is_in_one_batch(count: int) -> None:
    cuts = batch_slices(count, SIZES)
    assert [i for cut in cuts for i in range(count)[cut]] == list(range(count))
    assert all(cut.stop - cut.start <= SIZES[0] for cut in cuts)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_block_gives_the_same_bits_whatever_came_before(
    precision: str, shipped: Model, make_slide: MakeSlide
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(600, 900)), block_px=256)
    sample = made_patches(shipped.card, 40)
    options, blocks = ClassifyOptions(precision=precision), list(plan.blocks())  # type: ignore[arg-type]

    def scores(todo: list, threads: int) -> list[NDArray[np.float32]]:  # type: ignore[type-arg]
        classifier = adapted(shipped, sample, precision=precision)  # anew, as after a kill
        read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
        found = classify_blocks(todo, plan.grid, read, classifier, replace(options, reader_threads=threads))
        return [one.scores for one in found]

    whole, rest = scores(blocks, 1), scores(blocks[2:], 3)
    assert len(rest) > 2
    assert all(np.array_equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_reading_ahead_is_bounded(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(1500, 3000)), block_px=256)
    seen: list[object] = []

    def read(box):  # type: ignore[no-untyped-def]
        seen.append(box)
        return slide.read_readable(box, plan.grid.plane)

    options = ClassifyOptions(reader_threads=2, batch_size=4)
    classifier = Classifier([brightness_model()], CPU, options)
    blocks = list(plan.blocks())
    next(classify_blocks(blocks, plan.grid, read, classifier, options))
    assert len(seen) <= 1 + classifier.batches_in_flight + options.reader_threads + 2 < len(blocks) / 2


def test_what_an_engine_raises_reaches_the_caller(shipped: Model) -> None:
    scored = adapted(shipped, made_patches(shipped.card, 5))
    with pytest.raises(Exception, match=r"[Ss]hape"):
        scored.scores(np.zeros((3, 40, 40, 3), np.uint8))


def test_each_member_of_an_ensemble_has_its_own_engine(shipped: Model) -> None:
    sample = made_patches(shipped.card, 20)
    both = Classifier([shipped, of_the_zoo("cancernet", input_px=50)], CPU, ClassifyOptions()).adapted(
        patch_densities(sample), sample
    )
    by_model = {member.model.card.name: member.precision for member in both.members}
    assert by_model["idc_default"] == Classifier([shipped], CPU, ClassifyOptions()).precision
    assert sorted(info["precision"] for info in both.engine_info) == sorted([by_model["idc_default"], "fp32"])
    scores, spread = both.scores_and_spread(sample)
    assert scores.shape == spread.shape == (20,)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_sees_the_stain_that_the_tables_give(precision: Precision, shipped: Model) -> None:
    runner = BatchRunner(OpenVinoEngine(Graphs(shipped, OPENVINO_BATCH), precision, 2))
    patches = made_patches(shipped.card, 80)
    for gain in ((1.3, 0.8, 1.1), (0.9, 1.2, 0.7)):
        tables = tables_of(np.array(gain))
        stained = runner.start(normalise_stain(patches, tables), UNKNOWN_SLIDE).result()
        assert np.array_equal(runner.start(patches, SlideInput(tables)).result(), stained)
        assert np.abs(runner.start(patches, UNKNOWN_SLIDE).result() - stained).max() > 0.01


def test_stain_tables_are_looked_up_byte_by_byte() -> None:
    random = np.random.default_rng(0)
    tables: Tables = random.integers(0, 256, (3, 256), dtype=np.uint8)
    patches = random.integers(0, 256, (7, 50, 40, 3), dtype=np.uint8)
    assert np.array_equal(normalise_stain(patches, tables), tables[np.arange(3), patches])
    assert normalise_stain(patches[:0], tables).shape == (0, 50, 40, 3)


def test_a_heavy_network_takes_small_batches() -> None:
    options = ClassifyOptions()
    light, heavy = (
        Engines(of_the_zoo(name, **({} if name == "vgg16" else {"input_px": 50})), CPU, options)
        for name in ("cancernet", "vgg16")
    )
    assert heavy.openvino_batch < light.openvino_batch
    assert heavy.torch_batch < light.torch_batch
