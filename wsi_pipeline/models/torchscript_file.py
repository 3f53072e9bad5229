"""A network as TorchScript, read by torch's own reader.

It builds tensors and code of its own language: no pickle of Python objects is ever executed, and a file that is one is
refused.
"""

import io
import zipfile
from pathlib import Path

import torch
from torch import nn

from wsi_pipeline.base.errors import ModelError

# Operators of TorchScript that touch files; a network needs none.
FORBIDDEN = ("aten::save", "aten::from_file", "prim::rpc_async", "prim::rpc_sync", "prim::rpc_remote")


def load_torchscript(weights: bytes, path: Path) -> nn.Module:
    """The network; raises ModelError for what is no TorchScript, before anything of it is read."""
    try:
        with zipfile.ZipFile(io.BytesIO(weights)) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ModelError(
            f"{path}: expected TorchScript (torch.jit.save), which is a zip archive: {error}"
        ) from error
    if "constants.pkl" not in inside or not any(name.startswith("code/") for name in inside):
        raise ModelError(
            f"{path}: found a pickle of Python objects, which can run any program when it is loaded; expected "
            "TorchScript: save it with torch.jit.save(torch.jit.trace(network, example), path)"
        )
    try:
        network: nn.Module = torch.jit.load(io.BytesIO(weights), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        problem = " ".join(str(error).split())[-300:]
        raise ModelError(f"{path}: cannot be read as TorchScript: {problem}; get it again") from error
    graph = str(getattr(network.eval(), "inlined_graph", ""))
    if found := [name for name in FORBIDDEN if name in graph]:
        raise ModelError(
            f"{path}: found {', '.join(found)} in its code; expected a network that touches no files"
        )
    return network
