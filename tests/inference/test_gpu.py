"""What only a GPU can be asked: the engine says what it says on the CPU, to the same bits each time; a GPU that is
full, or lost, is met as it should be. `scripts/bench/gpu.sh` runs these on a machine that has one.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise, write_slide
from numpy.typing import NDArray
from test_dense import random_model
from test_infer import heatmap as map_in
from test_infer import section
from test_patches import everything

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions, classify_blocks
from wsi_pipeline.inference.device import own_cores, reader_threads
from wsi_pipeline.inference.engines.batching import Precision
from wsi_pipeline.inference.engines.choice import TOLERANCES, made_patches
from wsi_pipeline.inference.engines.cuda_engine import DTYPES, CudaEngine
from wsi_pipeline.inference.engines.patch_kernels import cut_normalised
from wsi_pipeline.inference.engines.pixel_ring import ring_of
from wsi_pipeline.inference.engines.torch_engine import EagerEngine
from wsi_pipeline.models.model import Model, has_bf16, load_model
from wsi_pipeline.models.slide_input import SlideInput
from wsi_pipeline.models.stain import patch_densities, tables_of
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import Block, GridOptions, Plan, plan_patches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device, of which there is none here"
    ),
]
MakeSlide = Callable[..., Path]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
# tifffile writes JPEG by imagecodecs, which a packed machine has not got; the slides are read all the same.
COMPRESSION = "jpeg" if find_spec("imagecodecs") else None
STAINED = SlideInput(tables_of(np.array([1.2, 0.9, 1.1])))


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model("idc_default")


@pytest.fixture(scope="module")
def on_cpu(shipped: Model) -> NDArray[np.float32]:
    """What float32 on the CPU says of made patches."""
    return EagerEngine(load_model("idc_default"), CPU, "fp32", 128).probabilities(
        patches_of(shipped), STAINED
    )


def patches_of(model: Model, count: int = 300) -> NDArray[np.uint8]:
    return made_patches(model.card, count)


def classifier_of(models: Sequence[Model], sample: NDArray[np.uint8], **options: object) -> Classifier:
    return Classifier(models, GPU, ClassifyOptions(**options)).adapted(patch_densities(sample), sample)  # type: ignore[arg-type]


def scored(
    slide: Slide, plan: Plan, classifier: Classifier, blocks: Sequence[Block], threads: int
) -> dict[tuple[int, int], NDArray[np.float32]]:
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    options = ClassifyOptions(reader_threads=threads, dense="off")
    found = classify_blocks(blocks, plan.grid, read, classifier, options)
    return {(one.block.cells.x, one.block.cells.y): one.scores for one in found}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_each_precision_says_on_the_gpu_what_float32_says_on_the_cpu(
    precision: Precision, shipped: Model, on_cpu: NDArray[np.float32]
) -> None:
    if precision != "fp32" and precision not in ring_of(GPU).accelerator.halves:
        pytest.skip(f"this GPU computes no {precision}")
    try:
        engine = CudaEngine(shipped, ring_of(GPU), precision, 512)
    except ValueError as error:
        assert precision != "fp32"
        pytest.skip(f"this GPU's {precision} is refused: {error}")
    moved = np.abs(engine.probabilities(patches_of(shipped), STAINED) - on_cpu)
    assert moved.max() <= (1e-3 if precision in ("fp32", "fp16") else 1e-2)  # law 3
    assert moved.mean() <= TOLERANCES[precision].mean
    assert (moved.max() > 1e-5) == (
        precision != "fp32"
    )  # it is what it says: TF32 would move float32 by 5e-4


def test_float32_is_not_tf32_once_a_classifier_was_made(shipped: Model) -> None:
    torch.backends.cudnn.allow_tf32 = True
    Classifier([shipped], GPU, ClassifyOptions(precision="fp32")).scores(patches_of(shipped, 3))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    images, kernel = torch.randn(4, 64, 32, 32, device=GPU), torch.randn(64, 64, 3, 3, device=GPU)
    exact = torch.nn.functional.conv2d(images.double(), kernel.double())
    assert ((torch.nn.functional.conv2d(images, kernel) - exact).abs().max() / exact.abs().max()) < 1e-5


def test_a_graph_in_16_bits_is_taken_unasked_and_said(
    shipped: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    classifier = classifier_of([shipped], patches_of(shipped, 64))
    assert classifier.engine_info[0]["engine"] == "cuda graph", classifier.engine_info
    assert classifier.precision in ring_of(GPU).accelerator.halves
    assert classifier.engine_info[0]["batch"] == 4096
    assert "4096 patches a batch" in caplog.text


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("channels", [3, 8])
def test_the_kernel_that_cuts_and_normalises_gives_the_bits_of_a_look_up(
    precision: Precision, channels: int
) -> None:
    pytest.importorskip("triton")
    random = torch.Generator(GPU).manual_seed(0)
    pixels = torch.randint(0, 256, (3_000_000,), dtype=torch.uint8, device=GPU, generator=random)
    corners = torch.randint(0, 2_000_000, (257,), device=GPU, generator=random)
    pitches = torch.randint(150, 6000, (257,), device=GPU, generator=random)
    table = torch.randn(768, device=GPU, generator=random)
    outs = [torch.full((257, 50, 50, channels), 7.0, dtype=DTYPES[precision], device=GPU) for _ in range(2)]
    for fused, out in zip((True, False), outs, strict=True):
        cut_normalised(pixels, corners, pitches, table, out, fused)
    assert torch.equal(*outs)
    assert (outs[0][..., 3:] == 7).all()


def test_order_threads_and_a_resume_change_no_bit(shipped: Model, make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(3000, 4000), compression=COMPRESSION), block_px=512)
    blocks, sample = list(plan.blocks()), patches_of(shipped, 64)
    whole = scored(slide, plan, classifier_of([shipped], sample), blocks, 1)
    for threads, todo in ((own_cores(), blocks), (3, blocks[::-1]), (2, blocks[7:]), (4, blocks[1::3])):
        again = classifier_of([shipped], sample)  # as after a kill
        for place, scores in scored(slide, plan, again, todo, threads).items():
            assert np.array_equal(scores, whole[place])


def test_an_ensemble_of_two_kinds_is_scored_as_each_by_itself(shipped: Model, make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(900, 1200)), block_px=256)
    other = random_model("residual_cnn", widths=[8, 16], blocks=[1, 1], squeeze=2)
    sample, blocks = patches_of(shipped, 64), list(plan.blocks())
    each = [scored(slide, plan, classifier_of([model], sample), blocks, 4) for model in (shipped, other)]
    both = scored(slide, plan, classifier_of([shipped, other], sample), blocks, 4)
    for place, scores in both.items():
        np.testing.assert_allclose(scores, (each[0][place] + each[1][place]) / 2, rtol=0, atol=1e-6)


def test_a_network_that_torch_alone_computes_still_goes_through(shipped: Model) -> None:
    card = replace(shipped.card, patch_px=50, architecture_options={"input_px": 64, "clahe": {}})
    model = replace(
        random_model("residual_cnn", widths=[8, 16], blocks=[1, 1], squeeze=2, input_px=64, clahe={})
    )
    model = replace(model, card=replace(card, mean=(0.0,) * 3, std=(1.0,) * 3))
    patches = patches_of(shipped, 70)
    classifier = classifier_of([model], patches, precision="fp32")
    on_gpu, slide = classifier.scores(patches), classifier.members[0].slide
    again = EagerEngine(replace(model, network=model.network.cpu()), CPU, "fp32", 64)
    np.testing.assert_allclose(on_gpu, again.probabilities(patches, slide), rtol=0, atol=1e-3)


def test_blocks_of_overlapping_patches_are_run_whole_on_the_gpu(make_slide: MakeSlide) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(230, 330)), block_px=256, stride_px=10)
    read = lambda box: slide.read_readable(box, plan.grid.plane)  # noqa: E731
    found = []
    for dense in ("require", "off"):
        options = ClassifyOptions(dense=dense, precision="fp32")  # type: ignore[arg-type]
        classifier = Classifier(
            [random_model("plain_cnn", input_px=50)] if False else [random_model()], GPU, options
        )
        found.append(
            np.concatenate(
                [one.scores for one in classify_blocks(plan.blocks(), plan.grid, read, classifier, options)]
            )
        )
    np.testing.assert_allclose(*found, rtol=0, atol=1e-4)


def test_a_full_gpu_takes_smaller_batches_and_says_the_same(
    shipped: Model, on_cpu: NDArray[np.float32], caplog: pytest.LogCaptureFixture
) -> None:
    ring_of(GPU)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(free - 450 * 2**20, dtype=torch.uint8, device=GPU)
    try:
        engine = CudaEngine(shipped, ring_of(GPU), "fp32", 4096)
        assert engine.batch_size < 4096
        assert "does not hold a batch of 4096 patches" in caplog.text
        moved = np.abs(
            engine.probabilities(patches_of(shipped, 300)[: engine.batch_size], STAINED)
            - on_cpu[: engine.batch_size]
        )
        assert moved.max() <= 1e-3
        eager = EagerEngine(shipped, GPU, "fp32", 4096)
        many = np.concatenate([patches_of(shipped)] * 14)[:4096]
        np.testing.assert_allclose(eager.probabilities(many, STAINED)[:300], on_cpu, rtol=0, atol=1e-3)
    finally:
        del ballast
        torch.cuda.empty_cache()


def test_memory_is_bounded_and_given_back_at_the_end_of_a_slide(
    shipped: Model, make_slide: MakeSlide
) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(4000, 4000), compression=COMPRESSION), block_px=2048)
    sample, blocks = patches_of(shipped, 64), list(plan.blocks())
    classifier = classifier_of([shipped], sample)
    scored(slide, plan, classifier, blocks, 4)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        scored(slide, plan, classifier, blocks, 8)
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() < 3e9


LOSE = """
import sys
sys.path[:0] = ["tests", "tests/inference", "tests/models", "tests/tiling"]
import numpy as np, torch
from dataclasses import replace
from models import brightness_model
from wsi_pipeline.base.errors import DeviceLostError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions

class Asserting(torch.nn.Module):
    broken = False
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(4))
    def forward(self, images):
        bright = (images.mean(dim=(1, 2, 3)) > 0.9).long() * 1000  # no row 1000: a device-side assert
        return torch.stack([self.rows[bright], images.mean(dim=(1, 2, 3))], 1)

model = replace(brightness_model(), network=Asserting().eval())
classifier = Classifier([model], torch.device("cuda"), ClassifyOptions(precision="fp32"))
dark = np.zeros((5, 50, 50, 3), np.uint8)
print(classifier.scores(dark), classifier.engine_info[0]["engine"])
for _ in range(2):
    try:
        classifier.scores(np.full((5, 50, 50, 3), 255, np.uint8))
    except DeviceLostError as error:
        print("LOST", error)
"""


def test_a_gpu_that_is_lost_is_said_to_be_and_stays_so() -> None:
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", LOSE], capture_output=True, text=True, cwd=root, check=False, timeout=120
    )
    assert run.stdout.count("LOST cuda:0 does no more work for this process") == 2, (
        run.stdout + run.stderr[-2000:]
    )
    assert "cuda graph" in run.stdout


def test_native_precisions_are_those_of_the_tensor_cores() -> None:
    major, _ = torch.cuda.get_device_capability()
    assert has_bf16(GPU) == (major >= 8)
    assert ("bf16" in ring_of(GPU).accelerator.halves) == (major >= 8)
    assert ("fp16" in ring_of(GPU).accelerator.halves) == (major >= 7)


def test_all_cores_that_are_granted_decode_before_a_gpu() -> None:
    assert reader_threads(ClassifyOptions(), GPU) == own_cores()


def test_a_slide_is_mapped_on_the_gpu_as_on_the_cpu_and_goes_on_to_the_same_bits(
    tmp_path: Path, shipped: Model
) -> None:
    path = write_slide(tmp_path / "a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1, 4))
    config = InferConfig(grid=GridOptions(block_px=256))

    def heatmap(
        out: str, device: torch.device, precision: str, stop_at: int | None = None
    ) -> NDArray[np.float32]:
        def progress(done: int, total: int) -> None:
            if stop_at is not None and done >= stop_at:
                raise KeyboardInterrupt

        options = replace(config, classify=ClassifyOptions(precision=precision))  # type: ignore[arg-type]
        model = load_model("idc_default")
        result = infer_slide(
            path,
            tmp_path / out,
            options,
            Classifier([model], device, options.classify),
            RunOptions(progress=progress),
        )
        return map_in(result.folder)

    right = heatmap("cpu", CPU, "fp32")
    assert np.isfinite(right).sum() > 50
    np.testing.assert_allclose(heatmap("exact", GPU, "fp32"), right, rtol=0, atol=1e-3)
    whole = heatmap("whole", GPU, "auto")
    np.testing.assert_allclose(whole, right, rtol=0, atol=5e-3)
    with pytest.raises(KeyboardInterrupt):
        heatmap("broken off", GPU, "auto", stop_at=30)
    assert np.array_equal(heatmap("broken off", GPU, "auto"), whole, equal_nan=True)


def test_a_slide_of_another_scale_is_resampled_there_as_on_the_host(
    shipped: Model, make_slide: MakeSlide
) -> None:
    path = make_slide("a.tiff", noise(2000, 3000), factors=(1, 4), mpp=(0.5, 0.5), compression=COMPRESSION)
    for mpp in (0.52, 1.4):
        model = replace(shipped, card=replace(shipped.card, mpp=mpp))
        slide = open_slide(path)
        options = GridOptions(patch_px=50, mpp=mpp, block_px=512)
        whole = np.ones((10, 10), np.bool_)
        plane = Plane(slide.size0.width / 10, slide.size0.height / 10)
        plan = plan_patches(slide, whole, ~whole, plane, options)
        read, blocks, found = slide.reader(plan.grid.plane), list(plan.blocks()), []
        for reads in (read, lambda box, read=read: read(box)):
            classifier = classifier_of([model], patches_of(model, 64))
            scores = [
                one.scores for one in classify_blocks(blocks, plan.grid, reads, classifier, ClassifyOptions())
            ]
            found.append(np.concatenate(scores))
        assert len(found[0]) > 200
        np.testing.assert_allclose(*found, rtol=0, atol=1e-3)
