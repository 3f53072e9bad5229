"""A step of training reads nothing from its device, brings nothing along, and is what it was on a CPU, bit for bit."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import brightness_model
from stand_in_gpu import gpu, nothing_waits  # noqa: F401  (a fixture)
from test_train import OPTIONS
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.training.augment import AugmentOptions, augmented, draw_views
from wsi_pipeline.learning.training.batches import make_batches
from wsi_pipeline.learning.training.distillation import load_teachers
from wsi_pipeline.learning.training.distributed import ProcessGroup
from wsi_pipeline.learning.training.optimiser import (
    _OPTIMISERS,
    MovingAverage,
    loss_scaler,
    make_optimiser,
    resume_optimiser,
)
from wsi_pipeline.learning.training.options import TrainOptions
from wsi_pipeline.learning.training.sampling import class_weights, epoch_batches
from wsi_pipeline.learning.training.train import Run, learning_rate, take_step, train_one_epoch
from wsi_pipeline.models.device_feed import NoCopies, feed
from wsi_pipeline.models.model import build_network, idc_probability, load_model, normalised

CPU = torch.device("cpu")
PX = 16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_side(count: int = 48) -> LabelledPatches:
    pixels = np.random.default_rng(0).integers(0, 256, (count, PX, PX, 3), np.uint8)
    patients = np.array(["a", "b"])[np.arange(count) // 2 % 2]
    return LabelledPatches(pixels, (np.arange(count) % 2).astype(np.uint8), patients)


def make_run(options: TrainOptions, device: torch.device) -> Run:
    torch.manual_seed(0)
    network = build_network(options.architecture, classes=2, **options.architecture_options).to(device)
    side = some_side()
    return Run(
        options=options,
        card=brightness_model().card,
        network=network,
        learner=network,
        average=MovingAverage(network, options.average_decay),
        optimiser=make_optimiser(network, options),
        scaler=loss_scaler(CPU, options),
        weights=None,
        train=side,
        val=side,
        device=device,
        group=ProcessGroup(device=device),
    )


RESIDUAL = {"widths": [4, 8], "blocks": [1, 1], "squeeze": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixup": 0.2, "optimiser": "sgd", "optimiser_options": {"momentum": 0.9}},
        {"augment": AugmentOptions(turns=False, flips=True, shear_deg=5), "optimiser": "rmsprop"},
        {"architecture": "cancernet", "architecture_options": {"input_px": PX}},
        {"architecture_options": {**RESIDUAL, "clahe": {"tiles": 4}}, "normalisation": "none"},
    ],
)
def test_no_step_makes_the_host_wait_for_the_device(gpu, changes):  # noqa: F811
    options = replace(OPTIONS, **changes)
    run = make_run(options, gpu)
    rows = iter(np.arange(48).reshape(3, 16))
    batches = make_batches(run.train, rows, options, torch.Generator().manual_seed(0), pinned=False)
    first, *others = feed(batches, NoCopies(gpu))
    take_step(run, first, 0.1)  # what is kept for all steps is brought there with the first
    with nothing_waits():
        for batch in others:
            assert take_step(run, batch, 0.1).device == gpu


def test_nor_does_a_step_of_a_network_that_hears_of_its_slide_with_teachers_weights_and_doubted_labels(
    gpu,  # noqa: F811
):
    # As the shipped model was trained, and all that its steps had not.
    options = replace(
        OPTIONS,
        architecture_options={**RESIDUAL, "slide_condition": {"hidden": 4}},
        slides_a_batch=2,
        teacher_views=2,
        class_balance="weights",
    )
    run, teacher = make_run(options, gpu), load_model("idc_default")
    teacher.network.to(gpu)
    weights = class_weights(run.train.labels, 2).to(gpu)
    run = replace(run, weights=weights, teachers=(teacher,))
    rows = iter(np.arange(48).reshape(3, 16))
    batches = make_batches(run.train, rows, options, torch.Generator().manual_seed(0), pinned=False)
    first, *others = feed(batches, NoCopies(gpu))
    assert first.slides is not None
    take_step(run, first, 0.1, trusted=0.75)
    with nothing_waits():
        for batch in others:
            assert take_step(run, batch, 0.1, trusted=0.75).device == gpu


def test_the_stand_in_for_a_gpu_refuses_what_would_wait(gpu):  # noqa: F811
    there = torch.ones(3, device=gpu)
    for waits in (lambda: there.sum().item(), lambda: bool(there.sum() > 0), lambda: there.cpu()):
        with nothing_waits(), pytest.raises(RuntimeError, match="meta tensor"):
            waits()
    for mixes in (
        lambda: torch.tensor([1.0, 2.0], device=gpu),
        lambda: torch.baddbmm(there.view(1, 1, 3), torch.ones(1, 1, 2), torch.ones(1, 2, 3, device=gpu)),
        lambda: there.copy_(torch.ones(3)),
    ):
        with nothing_waits(), pytest.raises((RuntimeError, AssertionError)):
            mixes()


def plain_epoch(run: Run, average: AveragedModel, epoch: int) -> float:
    """An epoch as it reads in a textbook, everything drawn, moved and read where it stands."""
    options = run.options
    generator = torch.Generator().manual_seed(options.seed * 100_003 + epoch)
    batches = list(epoch_batches(run.train, options, generator))
    torch.manual_seed(options.seed * 100_003 + epoch)
    run.network.train()
    losses = torch.zeros(())
    for step, rows in enumerate(batches):
        for parameters in run.optimiser.param_groups:
            parameters["lr"] = learning_rate(epoch + step / len(batches), options, [])
        patches = torch.from_numpy(run.train.pixels[rows])
        targets = F.one_hot(torch.from_numpy(run.train.labels[rows]).long(), 2).float()
        patches = augmented(patches, draw_views(len(rows), PX, options.augment, generator))
        share = torch.distributions.Beta(options.mixup, options.mixup).sample((len(rows),))
        share, other = torch.maximum(share, 1 - share), torch.randperm(len(rows))
        patches = torch.lerp(patches[other], patches, share[:, None, None, None])
        targets = torch.lerp(targets[other], targets, share[:, None])
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            logits = run.network(normalised(patches, run.card.mean, run.card.std))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=options.label_smoothing)
        run.optimiser.zero_grad()
        loss.backward()
        run.optimiser.step()
        average.update_parameters(run.network)
        losses += loss.detach()
    return float(losses / len(batches))


def test_an_epoch_on_a_cpu_is_the_plain_loop_bit_for_bit_dropout_and_all():
    # CancerNet has dropout, which draws from the generator that blends are drawn from.
    network = {"architecture": "cancernet", "architecture_options": {"input_px": PX}}
    options = replace(OPTIONS, **network, mixup=0.3, average_decay=0.5)
    ours, plain = make_run(options, CPU), make_run(options, CPU)
    decay = options.average_decay

    @torch.no_grad()
    def update(means: list[torch.Tensor], now: list[torch.Tensor], count: torch.Tensor) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        for mean, current in zip(means, now, strict=True):
            if mean.is_floating_point():
                mean.lerp_(current, 1 - keep)
            else:
                mean.copy_(current)

    average = AveragedModel(plain.network, multi_avg_fn=update, use_buffers=True)
    for epoch in range(2):
        loss, _, _ = train_one_epoch(ours, epoch, [])
        assert loss == plain_epoch(plain, average, epoch)
    for found, wanted in (
        (ours.network.state_dict(), plain.network.state_dict()),
        (ours.average.state_dict(), average.state_dict()),
    ):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_an_average_takes_as_many_calls_however_many_layers_a_network_has():
    counts = []
    for layers in (1, 20):
        network = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)) for _ in range(layers))
        )
        average = MovingAverage(network, 0.9)
        average.update()
        with Calls() as calls:
            average.update()
        counts.append(calls.count)
    assert counts == [2, 2]  # numbers, and counters of batches


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("adamw", {}, {"fused": True}),
        ("adam", {}, {"fused": True}),
        ("sgd", {"momentum": 0.9}, {"momentum": 0.9, "fused": True}),
        ("rmsprop", {}, {}),
        ("adamw", {"foreach": True}, {"foreach": True}),
    ],
)
def test_an_optimiser_takes_its_step_in_one_kernel_on_a_gpu(name, given, wanted, monkeypatch):
    found = {}

    class Weights:
        device, ndim = torch.device("cuda"), 2

    class Network:
        def parameters(self):
            return iter([Weights()])

    monkeypatch.setitem(_OPTIMISERS, name, lambda groups, lr, **how: found.update(how))
    make_optimiser(Network(), replace(OPTIONS, optimiser=name, optimiser_options=given))
    assert found == wanted
    monkeypatch.setattr(Weights, "device", CPU)
    found.clear()
    make_optimiser(Network(), replace(OPTIONS, optimiser=name, optimiser_options=given))
    assert found == given


def test_an_average_goes_on_from_what_was_kept_of_it():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def move() -> None:
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data.add_(torch.ones_like(tensor) if tensor.dtype == torch.int64 else 0.1)

    whole = MovingAverage(network, 0.9)
    for _ in range(3):
        move()
        whole.update()
    resumed = MovingAverage(network, 0.9)
    resumed.load_state_dict(whole.state_dict())
    for _ in range(3):
        move()
        whole.update()
        resumed.update()
    found, wanted = resumed.state_dict(), whole.state_dict()
    assert int(found["n_averaged"]) == 6
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_form_that_an_optimiser_computes_in_is_that_of_the_device_it_resumes_on():
    run = make_run(OPTIONS, CPU)
    state = run.optimiser.state_dict()
    for group in state["param_groups"]:
        group["fused"], group["lr"] = True, 0.5  # as a GPU leaves it
    resume_optimiser(run.optimiser, state)
    assert [group["fused"] for group in run.optimiser.param_groups] == [None, None]
    assert [group["lr"] for group in run.optimiser.param_groups] == [0.5, 0.5]


def test_teachers_cast_once_say_what_autocast_makes_them_say_bit_for_bit():
    patches = torch.randint(
        256, (8, 50, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    plain = load_model("idc_default")
    options = replace(OPTIONS, teachers=("idc_default",), patch_px=50, mpp=4.0, bf16=True)
    (teacher,) = load_teachers(options, CPU)
    assert any(p.dtype == torch.bfloat16 for p in teacher.network.parameters())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = (idc_probability(m.network, m.card, patches) for m in (teacher, plain))
    assert torch.equal(found, wanted)
    (exact,) = load_teachers(replace(options, bf16=False), CPU)
    assert all(p.dtype == torch.float32 for p in exact.network.parameters())
