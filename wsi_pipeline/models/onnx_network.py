"""Networks of ONNX files, computed by OpenVINO on the CPU in float32."""

import io
import threading
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.base.text import counted
from wsi_pipeline.models.onnx_file import OnnxFile

# Patches that are computed at once on a thread, where the file leaves that free, and pixels of them.
BATCH, PIXELS_A_BATCH = 16, 2**20
# Of those that the file asks for.
MOST_PIXELS_A_BATCH = 2**25
# Values between two layers, of one patch: as many as a first layer of 256 channels has, or this.
MOST_VALUES, MOST_CHANNELS = 2**24, 256


class OnnxNetwork(nn.Module):
    """The network of an ONNX file: what it gives of prepared patches.

    On the CPU whatever the device: patches go there and their values back. Batches are of one size, filled up with
    zeros, so that how many threads there are does not change a bit.
    """

    def __init__(self, file: OnnxFile, side: int, path: Path):
        """`side`: of the patches in pixels; `path`: for messages.

        Raises ModelError where OpenVINO is not installed, and where the file is no network of such patches.
        """
        super().__init__()
        try:
            from wsi_pipeline.models.quiet_openvino import openvino
        except ImportError as error:
            raise ModelError(
                f"{path}: OpenVINO computes ONNX files, and is not installed ({error}): pip install '.[onnx]'"
            ) from error
        self._tensor = openvino.Tensor
        self.threads = max(torch.get_num_threads(), 1)
        core = openvino.Core()
        try:
            graph = core.read_model(io.BytesIO(file.content))
            self.batch = _shape_graph(graph, side, path)
            _check_sizes(graph, side, path)
            properties = {
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": self.threads,
                "INFERENCE_NUM_THREADS": self.threads,
                "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
            }
            compiled = core.compile_model(graph, "CPU", properties)
            self._requests = [compiled.create_infer_request() for _ in range(self.threads)]
        except (RuntimeError, ValueError) as error:  # names in it may be no text
            raise ModelError(
                f"{path}: OpenVINO cannot read it as a network of patches of {side} x {side} px: "
                f"{' '.join(str(error).split())[-300:]}"
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
                request.set_input_tensor(self._tensor(filled, shared_memory=True))
                request.start_async()
            for request, batch in begun:
                request.wait()
                parts.append(request.get_output_tensor().data[: len(batch)].astype(np.float32))
        return np.concatenate(parts)


def is_onnx(network: nn.Module) -> bool:
    """Whether an ONNX file is somewhere in it, which only OpenVINO computes."""
    return any(isinstance(module, OnnxNetwork) for module in network.modules())


def _shape_graph(graph: Any, side: int, path: Path) -> int:
    """Settle the graph to batches of one size of such patches, and say which. Raises ModelError."""
    from wsi_pipeline.models.quiet_openvino import openvino

    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        names = [
            ", ".join(sorted(port.get_any_name() for port in ports))
            for ports in (graph.inputs, graph.outputs)
        ]
        raise ModelError(
            f"{path}: found the inputs {names[0]} and the outputs {names[1]}, expected one of each: patches "
            f"[N, 3, {side}, {side}], and a value for each class; export it so"
        )
    if (last := graph.outputs[0].get_node().input_value(0).get_node().get_type_name()) in (
        "Sigmoid",
        "Softmax",
    ):
        raise ModelError(f"{path}: ends with a {last}, expected logits, before it; export it without")
    shape, kind = graph.inputs[0].get_partial_shape(), graph.inputs[0].get_element_type()
    fits = shape.rank.is_static and len(shape) == 4 and kind == openvino.Type.f32
    wanted = zip(list(shape)[1:], (3, side, side), strict=True) if fits else ()
    if not fits or not all(length.is_dynamic or length.get_length() == n for length, n in wanted):
        raise ModelError(
            f"{path}: found an input {shape} of {kind.get_type_name()}, expected [N, 3, {side}, {side}] of f32; "
            "correct patch_size_pixels or Resize of its config.json, or export it so"
        )
    # Batches of the file's own size, where it has one; one by one, where something in it knows of one alone.
    free = [max(min(BATCH, PIXELS_A_BATCH // side**2), 1), 1]
    for batch in free if shape[0].is_dynamic else [int(shape[0].get_length())]:
        if batch * side**2 > MOST_PIXELS_A_BATCH:
            raise ModelError(
                f"{path}: wants {counted(batch, 'patch')} at once, which would fill the memory; export it with N free"
            )
        try:
            graph.reshape([batch, 3, side, side])
        except RuntimeError:
            if batch == 1:
                raise
            continue
        found = graph.outputs[0].get_partial_shape()
        if found.is_static and len(found) == 2 and found[0].get_length() == batch:
            return batch
    raise ModelError(f"{path}: gives {found} of {counted(batch, 'patch')}, expected [{batch}, classes]")


def _check_sizes(graph: Any, side: int, path: Path) -> None:
    """Raises ModelError for what would fill the memory: values between layers, and what is computed of constants alone.

    A file of some bytes can ask for any number of values.
    """
    most = max(MOST_VALUES, MOST_CHANNELS * side**2)
    batch = int(graph.inputs[0].get_shape()[0])
    fed: set[str] = set()
    constant = 0
    for node in graph.get_ordered_ops():
        before = [port.get_source_output().get_node().get_name() for port in node.inputs()]
        is_fed = node.get_type_name() == "Parameter" or any(name in fed for name in before)
        if is_fed:
            fed.add(node.get_name())
        if node.get_type_name() in ("Constant", "Result"):
            continue
        for port in node.outputs():
            shape = port.get_partial_shape()
            if not shape.is_static:
                raise ModelError(
                    f"{path}: found values of shape {shape} in it, expected shapes that are known"
                )
            size = prod(shape.to_shape())
            constant += 0 if is_fed else size
            if size > most * (batch if is_fed else 1) or constant > most:
                raise ModelError(
                    f"{path}: its {node.get_type_name()} makes {size:,} values of shape {shape}, expected at most "
                    f"{most:,} a patch; it would fill the memory"
                )
