"""Batches reach the device in their order, ahead of use where it pays, and what fails on the way is raised."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import torch

from wsi_pipeline.models.device_feed import NoCopies, StreamCopies, copies_to, feed, map_tensors, rows_of

CPU = torch.device("cpu")


class Inner(NamedTuple):
    values: torch.Tensor


class Outer(NamedTuple):
    number: torch.Tensor
    inner: Inner | None
    plain: tuple[int, ...]


def made(count: int, log: list[str]) -> Iterator[Outer]:
    for number in range(count):
        log.append(f"made {number}")
        yield Outer(torch.tensor(number), Inner(torch.ones(2)) if number else None, (1, 2))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_come_in_their_order_and_all_of_them(ahead: int):
    found = [int(batch.number) for batch in feed(made(5, []), NoCopies(CPU, ahead))]
    assert found == [0, 1, 2, 3, 4]
    assert list(feed(iter(()), NoCopies(CPU, ahead))) == []


def test_on_a_cpu_a_batch_is_made_when_it_is_asked_for_and_not_copied():
    log: list[str] = []
    batches = feed(made(3, log), copies_to(CPU))
    first = next(batches)
    assert log == ["made 0"]
    log.append("used 0")
    next(batches)
    assert log == ["made 0", "used 0", "made 1"]
    assert map_tensors(first, lambda tensor: tensor.to(CPU)).number is first.number


def test_with_one_ahead_the_next_batch_is_made_while_this_one_is_used():
    log: list[str] = []
    batches = feed(made(3, log), NoCopies(CPU, ahead=1))
    next(batches)
    batches.close()  # waits for the thread
    assert log == ["made 0", "made 1"]


@pytest.mark.parametrize("ahead", [0, 1])
def test_what_fails_while_a_batch_is_made_is_raised_where_it_is_used(ahead: int):
    def broken() -> Iterator[Inner]:
        yield Inner(torch.zeros(1))
        raise ValueError("no more")

    batches = feed(broken(), NoCopies(CPU, ahead))
    next(batches)
    with pytest.raises(ValueError, match="no more"):
        next(batches)


def test_tensors_inside_are_moved_and_plain_values_stay():
    batch = Outer(torch.tensor(3), Inner(torch.ones(2)), (1, 2))
    doubled = map_tensors(batch, lambda tensor: tensor * 2)
    assert isinstance(doubled, Outer)
    assert int(doubled.number) == 6
    assert doubled.inner is not None
    assert doubled.inner.values.tolist() == [2, 2]
    assert doubled.plain == (1, 2)


def test_rows_are_those_of_the_array():
    array = np.random.default_rng(0).integers(0, 255, (9, 4, 4, 3), np.uint8)
    rows = np.array([8, 0, 3])
    found = rows_of(torch.from_numpy(array), torch.from_numpy(rows))
    assert np.array_equal(found.numpy(), array[rows])


def test_before_a_gpu_the_next_batch_is_copied_beside_the_computation_which_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
):
    # CUDA's calls are written down instead of made; batches stay on the CPU.
    log: list[str] = []

    class Stream:
        def __init__(self, *_: object):
            self.name = "copies"

        def wait_event(self, event: object) -> None:
            log.append(f"{self.name} waits for {event}")

    class Event:
        def record(self, stream: Stream) -> None:
            log.append(f"marked on {stream.name}")

        def __str__(self) -> str:
            return "the copy"

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        log.append(f"on {chosen.name}")
        yield
        log.append("off")

    computing = Stream()
    computing.name = "computation"
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: computing)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, by: log.append(f"kept for {by.name}"))
    assert isinstance(copies_to(torch.device("cuda")), StreamCopies)
    copies = StreamCopies(CPU)
    batches = feed(made(2, log), copies)
    assert copies.ahead == 1
    assert int(next(batches).number) == 0
    assert list(batches)
    copied = ["on copies", "marked on copies", "off"]
    order = [line for line in log if not line.startswith("kept")]
    first = order.index("computation waits for the copy")
    assert order[:4] == ["made 0", *copied]
    assert order.count("computation waits for the copy") == 2
    assert first >= 4
    assert log.count("kept for computation") == len(pinned) == 3  # one tensor, then two


@pytest.mark.gpu
def test_a_gpu_gets_the_same_batches_while_it_computes():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    weights = torch.rand(2000, 2000, device=device)
    pixels = torch.randint(256, (4096, 50, 50, 3), dtype=torch.uint8)
    rows = [torch.randperm(4096)[:512] for _ in range(20)]
    sums = []
    for batch in feed((Inner(rows_of(pixels, some, pinned=True)) for some in rows), copies_to(device)):
        weights = (weights @ weights).clamp(0, 1)
        sums.append(batch.values.sum(dtype=torch.int64))
        del batch  # its memory may be given out again
    assert torch.stack(sums).tolist() == [int(pixels[some].sum(dtype=torch.int64)) for some in rows]
