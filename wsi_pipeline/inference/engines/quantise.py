"""Convolutions in 8-bit integers: weights in steps of each output channel, what flows in steps of each convolution.

The steps of what flows span what convolutions were given on some patches (the calibration); larger values are cut
off there. Post-training quantisation as of Jacob et al., CVPR 2018; OpenVINO makes integer kernels of it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.models.quiet_openvino import openvino, ops

LEVELS = 256

# Least and largest value that each convolution is given, in the graph's order.
Ranges = Sequence[tuple[float, float]]


def conv_ranges(
    core: openvino.Core, graph: openvino.Model, batches: Iterable[Sequence[NDArray[Any]]]
) -> Ranges:
    """Over all batches, each the graph's own inputs, computed in float32."""
    graph = graph.clone()
    results = []
    for conv in _convolutions(graph):
        given = conv.input(0).get_source_output()
        axes = ops.constant(np.arange(given.get_partial_shape().rank.get_length()))
        results += [ops.result(reduce(given, axes)) for reduce in (ops.reduce_min, ops.reduce_max)]
    probe = openvino.Model(results, graph.get_parameters())
    request = core.compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    found = np.array(
        [list(request.infer(list(batch)).values()) for batch in batches], float
    )  # [batches, 2 convs]
    return list(zip(found[:, 0::2].min(axis=0).tolist(), found[:, 1::2].max(axis=0).tolist(), strict=True))


def quantised(graph: openvino.Model, ranges: Ranges) -> openvino.Model:
    """The graph with its convolutions rounded; one whose weights are no constants stays as it is."""
    graph = graph.clone()
    rounded: dict[tuple[str, int], openvino.Output] = {}
    for conv, (low, high) in zip(_convolutions(graph), ranges, strict=True):
        weights = conv.input(1).get_source_output()
        if weights.get_node().get_type_name() != "Constant" or not high > low:
            continue
        given = conv.input(0).get_source_output()
        key = (given.get_node().get_friendly_name(), given.get_index())
        if key not in rounded:  # two convolutions of one input share its steps
            first, last = _with_zero(low, high)
            rounded[key] = _rounded(given, np.float32(first), np.float32(last), LEVELS)
        conv.input(0).replace_source_output(rounded[key])
        values = np.asarray(weights.get_node().data)
        largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True).astype(np.float32)
        largest = np.maximum(largest, np.finfo(np.float32).tiny)  # a channel without weights
        conv.input(1).replace_source_output(_rounded(weights, -largest, largest, LEVELS - 1))
    graph.validate_nodes_and_infer_types()
    return graph


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """The range widened and moved so that 0 is one of its steps: padding and ReLU must stay exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (LEVELS - 1)
    below = round(-low / step)
    return -below * step, (LEVELS - 1 - below) * step


def _rounded(
    values: openvino.Output,
    low: NDArray[np.float32] | np.float32,
    high: NDArray[np.float32] | np.float32,
    levels: int,
) -> openvino.Output:
    low_node, high_node = ops.constant(low), ops.constant(high)
    return ops.fake_quantize(values, low_node, high_node, low_node, high_node, levels).output(0)


def _convolutions(graph: openvino.Model) -> list[openvino.Node]:
    kinds = ("Convolution", "GroupConvolution")
    return [node for node in graph.get_ordered_ops() if node.get_type_name() in kinds]
