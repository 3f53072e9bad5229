"""An ONNX file read whole and looked through before anything computes it: sizes, numbers, operators, files beside it.

The package `onnx`, the format's own, reads it; nothing in it is executed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_pipeline.base.errors import ModelError

if TYPE_CHECKING:  # an extra
    import onnx

# What protobuf can hold in one message; the files beside it count.
MOST_BYTES = 2**31 - 1
# How often these run is a value in the file: one may run for ever. A network that classifies patches needs none.
ENDLESS = ("Loop", "Scan")
# The names of ONNX's own operators.
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxFile:
    """A network as ONNX."""

    content: bytes
    """The model, with the weights that lay in files beside it."""

    sha256: str
    """Of the file, and of what it takes from files beside it."""


def read_onnx(path: Path) -> OnnxFile:
    """The network of the file.

    Raises ModelError where the package onnx is not installed, and where the file is no ONNX, is damaged, says of a
    tensor a shape that its data do not have, holds NaN, loops, brings operators of its own, or refers to files outside
    its own folder.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ModelError(
            f"{path}: ONNX files need packages that are not installed ({error}): pip install '.[onnx]'"
        ) from error
    try:
        size = path.stat().st_size
        _check_bytes(size, path)
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
        _check_version(model, path)
        _check_graph(model, path)
        digest = hashlib.sha256(content)
        if beside := [tensor for tensor in _tensors(model.graph) if tensor.data_location == tensor.EXTERNAL]:
            _check_bytes(size + sum(_bytes_beside(tensor, path) for tensor in beside), path)
            onnx.load_external_data_for_model(model, str(path.parent))
            for tensor in beside:
                digest.update(tensor.raw_data)
            content = model.SerializeToString()
        for tensor in _tensors(model.graph):
            _check_tensor(tensor, path)
        onnx.checker.check_model(model)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError, TypeError, KeyError) as error:
        problem = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: expected an ONNX file: {problem}; get it again") from error
    return OnnxFile(content, digest.hexdigest())


def _check_bytes(size: int, path: Path) -> None:
    if not 0 < size <= MOST_BYTES:
        raise ModelError(f"{path}: found {size:,} bytes with its weights, expected 1 to {MOST_BYTES:,}")


def _check_version(model: "onnx.ModelProto", path: Path) -> None:
    from onnx.defs import onnx_opset_version

    found = max((opset.version for opset in model.opset_import if opset.domain in STANDARD), default=0)
    if not 0 < found <= onnx_opset_version():
        raise ModelError(
            f"{path}: expected an ONNX file with operators of version 1 to {onnx_opset_version()}, found {found}; "
            "update onnx, or export it for an older one (opset_version)"
        )


def _check_graph(model: "onnx.ModelProto", path: Path) -> None:
    """Raises ModelError for what may run for ever, and for what no library of ours computes."""
    if not model.graph.node:
        raise ModelError(f"{path}: expected an ONNX file: it holds no network; get it again")
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    if endless := sorted({node.op_type for node in nodes} & {*ENDLESS}):
        raise ModelError(f"{path}: found the operator {', '.join(endless)}, expected a network without loops")
    own = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in STANDARD})
    if own or model.functions:
        named = own or [function.name for function in model.functions]
        raise ModelError(
            f"{path}: found operators of its own ({', '.join(named[:5])}), expected those of ONNX alone; export it "
            "without"
        )


def _graphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    """The graph, and those within its nodes: the branches of an If. Protobuf reads them 100 deep at most."""
    yield graph
    for attribute in chain.from_iterable(node.attribute for node in graph.node):
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graphs(inner)


def _tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    """All values that it holds."""
    for inner in _graphs(graph):
        yield from inner.initializer
        for sparse in inner.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for attribute in chain.from_iterable(node.attribute for node in inner.node):
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)


def _bytes_beside(tensor: "onnx.TensorProto", path: Path) -> int:
    """How many bytes of a file beside it hold the tensor. Raises ModelError."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.parent.resolve()
    place = (folder / location).resolve() if "\0" not in location else folder
    if not location or place == folder or not place.is_relative_to(folder):
        raise ModelError(
            f"{path}: found weights in '{location}', expected a file in its own folder, as it was exported"
        )
    if not place.is_file():
        raise ModelError(f"{place}: does not exist, and {path.name} has weights there; get it too")
    size, offset = place.stat().st_size, int(entries.get("offset") or 0)
    length = int(entries.get("length") or size - offset)
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{place}: has {size:,} bytes, expected {offset + length:,} as {path.name} says; get both again"
        )
    return length


def _check_tensor(tensor: "onnx.TensorProto", path: Path) -> None:
    """Raises ModelError where its shape is not that of its data, or one of its values is no number."""
    from onnx import helper, numpy_helper

    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    # Others are packed into less than a byte each, or are no numbers.
    if kind.kind not in "biuf" and kind.name != "bfloat16":
        raise ModelError(
            f"{path}: found values of type {kind.name} in '{tensor.name}', expected floats, integers or booleans; "
            "export it in float32"
        )
    if np.isnan(numpy_helper.to_array(tensor)).any():
        raise ModelError(f"{path}: found NaN in its weights '{tensor.name}'; get it again")
