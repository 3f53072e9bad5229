"""Which engine a GPU gets, and in what precision, asked on a CPU: its kind is made up, its arithmetic is the CPU's."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_pipeline.inference.device import reader_threads
from wsi_pipeline.inference.engines import choice
from wsi_pipeline.inference.engines.accelerator import HostAccelerator, is_out_of_memory, native_halves
from wsi_pipeline.inference.engines.batching import Precision
from wsi_pipeline.inference.engines.choice import Chosen, Engines, made_patches
from wsi_pipeline.inference.engines.cuda_engine import CudaEngine
from wsi_pipeline.inference.engines.options import ClassifyOptions
from wsi_pipeline.inference.engines.patch_kernels import cut_normalised
from wsi_pipeline.inference.engines.pixel_ring import PixelRing
from wsi_pipeline.inference.engines.torch_engine import EagerEngine
from wsi_pipeline.inference.engines.wide_network import FloatLinear, device_networks
from wsi_pipeline.learning.training.optimiser import half_precision
from wsi_pipeline.models.architectures.slide_condition import head_inputs
from wsi_pipeline.models.model import Model, has_bf16, load_model
from wsi_pipeline.models.slide_input import UNKNOWN_SLIDE
from wsi_pipeline.models.stain import normalise_stain, tables_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
V100, T4, A100, H200 = (7, 0), (7, 5), (8, 0), (9, 0)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model("idc_default")


class Known(HostAccelerator):
    """A GPU whose tensor cores have both."""

    halves: tuple[Precision, ...] = ("fp16", "bf16")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ring = PixelRing(Known())
    monkeypatch.setattr(choice, "ring_of", lambda _: ring)
    monkeypatch.setattr(choice, "EagerEngine", lambda model, _, *rest: EagerEngine(model, CPU, *rest))
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def chosen(model: Model, **options: Any) -> Chosen:
    engines = Engines(model, GPU, ClassifyOptions(batch_size=32, **options))
    return engines.choose(made_patches(model.card, 40))


def refuse(monkeypatch: pytest.MonkeyPatch, *precisions: str) -> None:
    class Refusing(CudaEngine):
        def __init__(self, model: Model, ring: PixelRing, precision: Precision, batch_size: int):
            if precision in precisions:
                raise RuntimeError("operation not permitted when stream is capturing")
            super().__init__(model, ring, precision, batch_size)

    monkeypatch.setattr(choice, "CudaEngine", Refusing)


@pytest.mark.usefixtures("a_gpu")
def test_a_graph_in_float16_is_taken_and_one_in_float32_where_it_is_asked_for(shipped: Model) -> None:
    found = chosen(shipped)
    assert (found.info["engine"], found.info["precision"], found.info["batch"]) == ("cuda graph", "fp16", 32)
    assert 0 < found.moved <= 5e-3
    exact = chosen(shipped, precision="fp32")
    assert (exact.info["engine"], exact.info["precision"]) == ("cuda graph", "fp32")
    assert exact.moved <= 1e-5


@pytest.mark.usefixtures("a_gpu")
def test_where_no_graph_can_be_recorded_torch_computes_and_the_log_says_why(
    shipped: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, "fp16")
    found = chosen(shipped)
    assert (found.info["engine"], found.info["precision"]) == ("cuda graph", "bf16")
    refuse(monkeypatch, "fp16", "bf16", "fp32")
    found = chosen(shipped)
    assert (found.info["engine"], found.info["precision"]) == ("torch", "bf16")
    why = "cuda graph fp16: operation not permitted when stream is capturing"
    assert why in found.info["refused"]
    assert f"idc_default: not computed by {why}" in caplog.text
    exact = chosen(shipped, precision="fp32")
    assert (exact.info["engine"], exact.info["precision"]) == ("torch", "fp32")


@pytest.mark.usefixtures("a_gpu")
def test_float32_is_not_tf32_from_the_first_engine_on(shipped: Model) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    Engines(shipped, GPU, ClassifyOptions())
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("capability", "halves"),
    [((6, 1), ()), (V100, ("fp16",)), (T4, ("fp16",)), (A100, ("fp16", "bf16")), (H200, ("fp16", "bf16"))],
)
def test_what_a_gpu_emulates_does_not_count(
    capability: tuple[int, int], halves: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *_, **__: True
    )  # as torch says of all of them
    assert native_halves(capability[0]) == halves
    assert has_bf16(GPU) == ("bf16" in halves)
    half = half_precision(GPU)
    assert half == (torch.bfloat16 if "bf16" in halves else torch.float16)


def test_all_cores_that_are_granted_decode_before_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5, 6, 7})
    assert reader_threads(ClassifyOptions(), GPU) == 5
    assert reader_threads(ClassifyOptions(reader_threads=2), GPU) == 2
    assert reader_threads(ClassifyOptions(), CPU) == 2


def test_torch_itself_halves_a_batch_that_memory_does_not_hold(
    shipped: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, patches, tried = EagerEngine(shipped, CPU, "fp32", 64), made_patches(shipped.card, 40), []
    right, whole = engine.probabilities(patches, UNKNOWN_SLIDE), engine._probabilities

    def full(batch: Any, slide: Any) -> Any:
        tried.append(len(batch))
        if len(batch) > 12:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(batch, slide)

    monkeypatch.setattr(engine, "_probabilities", full)
    np.testing.assert_allclose(engine.probabilities(patches, UNKNOWN_SLIDE), right, rtol=0, atol=1e-6)
    assert tried == [40, 20, 10, 10, 20, 10, 10]


def test_memory_that_ran_out_is_known_however_it_is_put() -> None:
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    recording = RuntimeError("operation failed due to a previous error during capture")
    recording.__cause__ = full
    for error in (full, recording, RuntimeError("CUDNN_STATUS_ALLOC_FAILED")):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


class Made(TorchDispatchMode):
    """What is called, and how many numbers of 64 bits it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.wide = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.calls.append(str(function))
        if isinstance(result, torch.Tensor) and result.dtype == torch.int64:
            self.wide = max(self.wide, result.numel())
        return result


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_network_is_cast_once_and_not_at_each_batch(shipped: Model, half: torch.dtype) -> None:
    for network, channels in device_networks(shipped, half):
        kept = sum(isinstance(layer, FloatLinear) for layer in network.modules())
        images = torch.zeros(2, channels, 50, 50, dtype=half).to(memory_format=torch.channels_last)
        weight, bias = head_inputs(shipped.network, None)
        wide = torch.zeros(
            len(weight), weight.shape[1] + (-weight.shape[1] % channels if channels == 8 else 0)
        )
        with torch.no_grad(), Made() as made:  # in inference mode, casts would go by another name
            network(images, wide, torch.from_numpy(bias))
        # Activations alone: to float32 and back for layers that stay in it, and the features for the last layer.
        assert sum("_to_copy" in call for call in made.calls) == 2 * kept + 1
        assert not any("batch_norm" in call for call in made.calls)
        convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
        assert all(layer.weight.dtype == half for layer in convolutions)
        assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in convolutions)


def test_looking_bytes_up_makes_no_number_of_64_bits_of_each(shipped: Model) -> None:
    patches, tables = made_patches(shipped.card, 20), tables_of(np.array([1.2, 0.9, 1.1]))
    engine = EagerEngine(shipped, CPU, "fp32", 64)
    with Made() as made:
        found = engine._on_device(patches, tables)
    assert np.array_equal(found.numpy(), normalise_stain(patches, tables))
    assert made.wide <= 768
    pixels, out = torch.from_numpy(patches.reshape(-1)), torch.empty(20, 50, 50, 3)
    corners, pitches = torch.arange(20) * 50 * 50 * 3, torch.full((20,), 150)
    with Made() as made:
        cut_normalised(pixels, corners, pitches, torch.arange(768.0), out, fused=False)
    right = patches + np.array([0.0, 256, 512])
    assert np.array_equal(out.numpy(), right)
    assert made.wide <= 20 * 50  # a row of a patch, not a byte
