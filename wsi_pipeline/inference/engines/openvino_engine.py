"""OpenVINO: the network's graph compiled for this CPU, in float32, bfloat16 or 8-bit integers.

Stain and normalisation are one table, looked up inside of the graph: so a slide's stain is brought to the training
data's at no cost.
A batch has a fixed size in a compiled graph: a short one is filled up, and what the filling gives is dropped.
Each batch is computed on one thread, so that it gives the same bits however many there are.
"""

import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.inference.engines.batching import Precision
from wsi_pipeline.inference.engines.quantise import Ranges, conv_ranges, quantised
from wsi_pipeline.inference.engines.torch_engine import folded, input_table
from wsi_pipeline.models.architectures.slide_condition import Features, SlideConditioned, head_inputs
from wsi_pipeline.models.calibration import class_probabilities, probability
from wsi_pipeline.models.model import Model, has_bf16
from wsi_pipeline.models.quiet_openvino import FrontEndManager, TorchScriptPythonDecoder, openvino
from wsi_pipeline.models.slide_input import UNKNOWN_SLIDE, SlideInput

# What is left of a block goes in batches this much smaller.
SMALLER = 4
# Batches handed over for each thread that computes: while one ends and the next is made ready, no core may wait.
BATCHES_A_THREAD = 2


class Graphs:
    """A model's graphs, one a batch size: uint8 patches [n, S, S, 3] and a table by `table_of` in, logits out.

    Of a network that hears of its slide the features come out, [n, C], and `logits_of` is its last layer.
    """

    def __init__(self, model: Model, batch_size: int):
        self.model = model
        self.batch_sizes = tuple(sorted({batch_size, max(1, batch_size // SMALLER)}, reverse=True))
        self.core = openvino.Core()
        self._lock = threading.Lock()
        self._made: dict[int, tuple[openvino.Model, object]] = {}
        self._table = (UNKNOWN_SLIDE, input_table(model.card, None))

    def table_of(self, slide: SlideInput) -> NDArray[np.float32]:
        """What the network is given for each value of R, G and B of the slide, float32 [768]."""
        kept = self._table  # one slide's, batch after batch
        if kept[0] is not slide:
            self._table = kept = (slide, input_table(self.model.card, slide.tables))
        return kept[1]

    def logits_of(self, values: NDArray[np.float32], slide: SlideInput) -> NDArray[np.float32]:
        """Logits [n, classes] of what a graph gives."""
        head = head_inputs(self.model.network, slide.head)
        if not head:
            return values
        # Not in the graph, and not by BLAS: there a patch's last bits hang on how many stand beside it.
        weight, bias = head
        logits: NDArray[np.float32] = np.einsum("nc,kc->nk", values, weight) + bias
        return logits

    def of(self, batch_size: int) -> openvino.Model:
        """The graph for so many patches; raises what OpenVINO or the tracing of the network raises."""
        with self._lock:
            if batch_size not in self._made:
                shape = (batch_size, self.model.card.patch_px, self.model.card.patch_px, 3)
                self._made[batch_size] = _graph(self._whole, shape, self.table_of(UNKNOWN_SLIDE))
            return self._made[batch_size][0]

    def ranges(self, patches: NDArray[np.uint8], slide: SlideInput) -> Ranges:
        """What the convolutions are given where the network sees these patches, uint8 [n, S, S, 3], of that slide."""
        size, table = self.batch_sizes[-1], self.table_of(slide)
        graph = self.of(size)
        batches: list[Sequence[NDArray[Any]]] = [
            (filled(patches[i : i + size], size), table) for i in range(0, len(patches), size)
        ]
        return conv_ranges(self.core, graph, batches)

    @cached_property
    def _whole(self) -> nn.Module:
        given = self.model.network
        network: nn.Module = Features(given.core) if isinstance(given, SlideConditioned) else given
        with suppress(Exception):  # torch.fx cannot follow every network; OpenVINO folds most of it by itself
            network = folded(network)
        return _FromBytes(network).eval()


class OpenVinoEngine:
    """Compiled graphs of a model, in the precision asked for; `ranges` are needed for int8, and only for it.

    `all_classes`: it gives the probability of each.
    """

    name = "openvino"

    def __init__(
        self,
        graphs: Graphs,
        precision: Precision,
        threads: int,
        ranges: Ranges | None = None,
        all_classes: bool = False,
    ):
        self._probabilities_of = class_probabilities if all_classes else probability
        self.precision: Precision = precision
        self.parallel_batches = BATCHES_A_THREAD * threads
        self.batch_sizes = graphs.batch_sizes
        self._graphs, self._ranges, self._threads = graphs, ranges, threads
        self._lock = threading.Lock()
        self._compiled: dict[int, openvino.CompiledModel] = {}
        self._own = threading.local()

    def probabilities(self, batch: NDArray[np.uint8], slide: SlideInput) -> NDArray[np.float32]:
        """float32 [n] or [n, classes], 0 to 1, of uint8 patches [n, S, S, 3] of that slide."""
        size = min(size for size in self.batch_sizes if size >= len(batch))
        patches = np.ascontiguousarray(filled(batch, size))
        request = self._request(size)
        # One call would do all of this, and take longer for it than the steps by themselves.
        for i, values in enumerate((patches, self._graphs.table_of(slide))):
            request.set_input_tensor(i, openvino.Tensor(values, shared_memory=True))
        request.start_async()
        request.wait()
        logits = self._graphs.logits_of(request.get_output_tensor().data[: len(batch)], slide)
        card = self._graphs.model.card
        # Not `model.calibrated`: torch takes longer to begin, and a last bit hangs on the patch's place in the batch.
        found = self._probabilities_of(
            logits, card.temperature, card.log_odds_shift, card.classes.index("idc")
        )
        return found.astype(np.float32)

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
            "NUM_STREAMS": self._threads,
            "INFERENCE_NUM_THREADS": self._threads,
            "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
        }
        compiled = self._graphs.core.compile_model(graph, "CPU", properties)
        # Where a CPU has no bfloat16, OpenVINO takes float32 without a word: then that is not what it is called.
        if (
            self.precision == "bf16"
            and compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16
        ):
            raise ValueError("this CPU computes it in float32")
        return compiled


def filled(patches: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The patches, made up to `size` of them with black ones."""
    missing = size - len(patches)
    if not missing:
        return patches
    return np.concatenate([patches, np.zeros((missing, *patches.shape[1:]), np.uint8)])


class _FromBytes(nn.Module):
    """Logits [N, classes] of uint8 patches [N, S, S, 3], and an input table, float32 [768], as one graph."""

    starts: torch.Tensor

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer(
            "starts", torch.arange(0, 768, 256, dtype=torch.int32)
        )  # of R, G, B in the table

    def forward(self, patches: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        images = table[patches.int() + self.starts].permute(0, 3, 1, 2)  # [N, 3, S, S]
        return self.network(images)  # type: ignore[no-any-return]


def _graph(
    network: nn.Module, shape: tuple[int, ...], table: NDArray[np.float32]
) -> tuple[openvino.Model, object]:
    """The graph of uint8 patches of that shape and such a table, and what holds its weights' memory, torch's own."""
    example = torch.zeros(shape, dtype=torch.uint8), torch.from_numpy(table)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # the tracer's: what it gets wrong, the check against eager torch finds
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        # Not openvino.convert_model: that one reports its use to its makers where openvino-telemetry is installed.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, shared_memory=True)
        graph = frontend.convert(frontend.load(decoder))
    graph.reshape({i: list(values.shape) for i, values in enumerate(example)})
    return graph, decoder
