"""A GPU that is not there: torch's device 'meta', whose tensors have shapes and no values.

Reading a value (`item`, `bool`, `tolist`) or copying to the host raises by itself, as on a GPU it would make the host
wait. `nothing_waits` refuses what else would: host data that an operation brings along, or mixed devices.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_pipeline.models import model
from wsi_pipeline.models.architectures import clahe

GPU = torch.device("meta")


class _Strict(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = list(_tensors([*args, *(kwargs or {}).values()]))
        result = function(*args, **(kwargs or {}))
        there = any(value.device == GPU for value in [*given, *_tensors([result])])
        # A single number of the host goes along with the call.
        if there and any(value.device != GPU and value.ndim for value in given):
            raise AssertionError(f"{function}: mixes the host and the device")
        return result


class _NoNewTensors(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor) and result.device == GPU:
            raise AssertionError(f"{function}: brings values of the host to the device")
        return result


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """While it runs, whatever makes the host wait for the device raises."""
    with _NoNewTensors(), _Strict():
        yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device; there is no autocast on it."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    yield GPU
    for function in (model._scale_and_shift, clahe._luma_weights):  # what has no values is not used later
        function.cache_clear()
