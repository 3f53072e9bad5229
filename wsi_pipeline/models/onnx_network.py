"""Networks of ONNX files, computed by OpenVINO on the CPU in float32."""

import threading
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.models.onnx_file import external_files

# Patches that are computed at once on a thread, where the file leaves that free, and pixels of them.
BATCH, PIXELS_A_BATCH = 16, 2**20
# Values between two layers, of one patch: as many as a first layer of 256 channels has, or this.
MOST_VALUES, MOST_CHANNELS = 2**24, 256


class OnnxNetwork(nn.Module):
    """The network of an ONNX file: what it gives of prepared patches.

    On the CPU whatever the device: patches go there and their values back. Each thread computes a batch of fixed size,
    filled up with zeros, so that how many threads there are does not change a bit.
    """

    def __init__(self, path: Path, side: int, output: str | None = None):
        """`side`: of the patches in pixels. `output`: the name of the one that is taken, where there are several.

        Raises ModelError where OpenVINO is not installed, and where the file is damaged, or no network of such patches.
        """
        super().__init__()
        self.files = (path, *external_files(path))
        """The file, and those beside it that hold its weights."""
        self.side = side
        try:
            from wsi_pipeline.models.quiet_openvino import openvino
        except ImportError as error:
            raise ModelError(
                f"{path}: OpenVINO reads ONNX files, and is not installed ({error}): pip install '.[openvino]'"
            ) from error
        self._openvino = openvino
        try:
            core = openvino.Core()
            graph = core.read_model(path)
            graph = _shaped(graph, side, output, path)
            _check_sizes(graph, side, path)
            self.batch = int(graph.inputs[0].get_shape()[0])
            self.threads = max(torch.get_num_threads(), 1)
            properties = {
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": self.threads,
                "INFERENCE_NUM_THREADS": self.threads,
                "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
            }
            compiled = core.compile_model(graph, "CPU", properties)
            self._requests = [compiled.create_infer_request() for _ in range(self.threads)]
        except RuntimeError as error:
            raise ModelError(
                f"{path}: OpenVINO cannot read it as a network of patches of {side} x {side} px: {_short(error)}"
            ) from error
        self._lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the file gives, float32 [N, outputs], of patches [N, 3, side, side]."""
        patches = x.detach().float().cpu().contiguous().numpy()
        with self._lock:
            found = self._computed(patches)
        return torch.from_numpy(found).to(x.device)

    def _computed(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        parts: list[NDArray[np.float32]] = []
        starts = range(0, len(patches), self.batch)
        for first in range(0, len(starts), self.threads):
            batches = [patches[start : start + self.batch] for start in starts[first : first + self.threads]]
            begun = list(zip(self._requests, batches, strict=False))
            inputs = []
            for request, batch in begun:
                filled = np.zeros((self.batch, *batch.shape[1:]), np.float32)
                filled[: len(batch)] = batch
                inputs.append(filled)  # kept until it is computed: the tensor only points at it
                request.set_input_tensor(self._openvino.Tensor(filled, shared_memory=True))
                request.start_async()
            for request, batch in begun:
                request.wait()
                parts.append(request.get_output_tensor().data[: len(batch)].astype(np.float32))
        return np.concatenate(parts) if parts else np.empty((0, 1), np.float32)


def _shaped(graph: Any, side: int, output: str | None, path: Path) -> Any:
    """The graph for batches of one size of such patches, with one output [batch, values]. Raises ModelError."""
    from wsi_pipeline.models.quiet_openvino import openvino

    if len(graph.inputs) != 1:
        raise ModelError(f"{path}: found {len(graph.inputs)} inputs, expected one: patches [N, 3, {side}, {side}]")
    shape, kind = graph.inputs[0].get_partial_shape(), graph.inputs[0].get_element_type()
    fits = shape.rank.is_static and len(shape) == 4 and kind == openvino.Type.f32
    if not fits or not all(d.is_dynamic or d.get_length() == n for d, n in zip(list(shape)[1:], (3, side, side))):
        raise ModelError(
            f"{path}: found an input {shape} of {kind.get_type_name()}, expected [N, 3, {side}, {side}] of f32, as its "
            "card says; correct patch_px or architecture_options.input_px of the card, or export it so"
        )
    outputs = {name: port for port in graph.outputs for name in port.get_names() or {""}}
    if output is None and len(graph.outputs) != 1 or output is not None and output not in outputs:
        raise ModelError(
            f"{path}: found the outputs {', '.join(sorted(outputs))}, expected "
            f"{f'one called {output!r}' if output else 'one'}; name it in its card: architecture_options.output"
        )
    chosen = graph.outputs[0] if output is None else outputs[output]
    graph = openvino.Model([chosen.get_node()], graph.get_parameters(), "network")
    given = shape[0]
    batches = [int(given.get_length())] if given.is_static else [max(min(BATCH, PIXELS_A_BATCH // side**2), 1), 1]
    for batch in batches:
        try:
            graph.reshape([batch, 3, side, side])
        except RuntimeError:
            if batch == batches[-1]:
                raise
            continue
        found = graph.outputs[0].get_partial_shape()
        if found.is_static and len(found) == 2 and found[0].get_length() == batch:
            return graph
    raise ModelError(f"{path}: gives {found} of {batch} patches, expected [{batch}, classes]")


def _check_sizes(graph: Any, side: int, path: Path) -> None:
    """Raises ModelError for what would fill the memory: values between layers, and what is computed of constants alone.

    A file of some bytes can ask for any number of values.
    """
    most = max(MOST_VALUES, MOST_CHANNELS * side**2)
    batch = int(graph.inputs[0].get_shape()[0])
    fed: set[str] = set()
    constant = 0
    for node in graph.get_ordered_ops():
        before = [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()]
        is_fed = node.get_type_name() == "Parameter" or any(name in fed for name in before)
        if is_fed:
            fed.add(node.get_friendly_name())
        if node.get_type_name() in ("Constant", "Result"):
            continue
        for port in node.outputs():
            shape = port.get_partial_shape()
            if not shape.is_static:
                raise ModelError(f"{path}: found values of shape {shape} in it, expected shapes that are known")
            size = prod(shape.to_shape())
            constant += 0 if is_fed else size
            if size > most * (batch if is_fed else 1) or constant > most:
                raise ModelError(
                    f"{path}: its {node.get_type_name()} makes {size:,} values of shape {shape}, expected at most "
                    f"{most:,} a patch; it would fill the memory"
                )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[-300:]
