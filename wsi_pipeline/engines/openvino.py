"""OpenVINO: the network's graph compiled for this CPU, in float32, bfloat16 or 8-bit integers.

A batch has a fixed size in a compiled graph: a short one is filled up, and what the filling gives is dropped.
Each lane computes on one thread, so that a batch gives the same bits however many there are.
"""

import threading
import warnings
from functools import cached_property

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import nn

from wsi_pipeline.engines.eager import folded
from wsi_pipeline.engines.lanes import Precision
from wsi_pipeline.engines.quantise import Ranges, conv_ranges, quantised
from wsi_pipeline.model import Model, calibrated, has_bf16, normalised
from wsi_pipeline.stain import Tables, restained

# What is left of a block goes in batches this much smaller.
SMALLER = 4
# Torch's loops over float32 take so many at once, or a divisor of it.
VECTORS = 64


class Graphs:
    """A model's graphs, one a batch size: uint8 patches in, logits out."""

    def __init__(self, model: Model, batch_size: int):
        self.model = model
        self.batch_sizes = tuple(sorted({batch_size, max(1, batch_size // SMALLER)}, reverse=True))
        self.core = openvino.Core()
        self._lock = threading.Lock()
        self._made: dict[int, tuple[openvino.Model, object]] = {}

    def of(self, batch_size: int) -> openvino.Model:
        """The graph for so many patches; raises what OpenVINO or the tracing of the network raises."""
        with self._lock:
            if batch_size not in self._made:
                self._made[batch_size] = _graph(self._whole, batch_size, self.model.card.patch_px)
            return self._made[batch_size][0]

    def ranges(self, patches: NDArray[np.uint8]) -> Ranges:
        """What the convolutions of the network are given where it sees these patches, uint8 [n, S, S, 3]."""
        size = self.batch_sizes[-1]
        graph = self.of(size)
        batches = [filled(patches[i : i + size], size) for i in range(0, len(patches), size)]
        return conv_ranges(self.core, graph, batches)

    @cached_property
    def _whole(self) -> nn.Module:
        try:
            network = folded(self.model.network)
        except Exception:  # torch.fx cannot follow every network; OpenVINO folds most of it by itself
            network = self.model.network
        return _FromBytes(network, self.model).eval()


class OpenVinoEngine:
    """Compiled graphs of a model, in the precision asked for; `ranges` are needed for int8, and only for it."""

    name = "openvino"

    def __init__(self, graphs: Graphs, precision: Precision, lanes: int, ranges: Ranges | None = None):
        self.precision: Precision = precision
        self.lanes = lanes
        self.batch_sizes = graphs.batch_sizes
        self._graphs, self._ranges = graphs, ranges
        self._lock = threading.Lock()
        self._compiled: dict[int, openvino.CompiledModel] = {}
        self._own = threading.local()

    def probabilities(self, batch: NDArray[np.uint8], tables: Tables | None) -> NDArray[np.float32]:
        """float32 [n], 0 to 1, of uint8 patches [n, S, S, 3], their stain by `tables`."""
        size = min(size for size in self.batch_sizes if size >= len(batch))
        images = np.ascontiguousarray(filled(restained(batch, tables), size))
        found = self._request(size).infer([images], share_inputs=True, share_outputs=True)
        # Torch computes what does not fill its vectors by other means, one bit apart: nothing here may hang on the
        # patch's place in the batch.
        logits = torch.zeros(-(-size // VECTORS) * VECTORS, found[0].shape[1])  # [rounded up, classes]
        logits[:size] = torch.from_numpy(found[0])
        return calibrated(logits, self._graphs.model.card).numpy()[: len(batch)]

    def _request(self, size: int) -> openvino.InferRequest:
        """This thread's own."""
        requests: dict[int, openvino.InferRequest] = self._own.__dict__.setdefault("requests", {})
        if size not in requests:
            with self._lock:
                if size not in self._compiled:
                    self._compiled[size] = self._compile(size)
            requests[size] = self._compiled[size].create_infer_request()
        return requests[size]

    def _compile(self, size: int) -> openvino.CompiledModel:
        graph = self._graphs.of(size)
        if self.precision == "int8":
            assert self._ranges is not None
            graph = quantised(graph, self._ranges)
        # Of an int8 network, what lies between the convolutions takes bfloat16 where that is native.
        half = self.precision == "bf16" or (self.precision == "int8" and has_bf16())
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            "NUM_STREAMS": self.lanes,
            "INFERENCE_NUM_THREADS": self.lanes,
            "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
        }
        return self._graphs.core.compile_model(graph, "CPU", properties)


def filled(patches: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The patches, made up to `size` of them with black ones."""
    missing = size - len(patches)
    if not missing:
        return patches
    return np.concatenate([patches, np.zeros((missing, *patches.shape[1:]), np.uint8)])


class _FromBytes(nn.Module):
    """Logits [N, classes] of uint8 patches [N, S, S, 3]: the normalisation and the network, as one graph."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, network: nn.Module, model: Model):
        super().__init__()
        self.network = network
        card = model.card
        black, white = (
            normalised(torch.full((1, 1, 1, 3), value, dtype=torch.uint8), card.mean, card.std)
            for value in (0, 255)
        )
        self.register_buffer("shift", black)  # [1, 3, 1, 1]
        self.register_buffer("scale", (white - black) / 255)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        images = patches.permute(0, 3, 1, 2).float() * self.scale + self.shift  # [N, 3, S, S]
        return self.network(images)  # type: ignore[no-any-return]


def _graph(network: nn.Module, batch_size: int, patch_px: int) -> tuple[openvino.Model, object]:
    """The graph, and what holds the memory of its weights, which are torch's own."""
    shape = (batch_size, patch_px, patch_px, 3)
    example = torch.zeros(shape, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # the tracer's: what it gets wrong, the check against eager torch finds
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        # Not openvino.convert_model: that one reports its use to its makers where openvino-telemetry is installed.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, shared_memory=True)
        graph = frontend.convert(frontend.load(decoder))
    graph.reshape({0: list(shape)})
    return graph, decoder
