"""A network as torch.export saves it (.pt2).

`torch.export.load` executes pickles of Python objects (tensors that it could not write plainly, constants, example
inputs) and evaluates expressions of shapes as Python (sympy.sympify): whoever made the file may run any program. So it
is opened where the user says that it may be trusted, and never else.
"""

import io
from pathlib import Path

import torch
from torch import nn

from wsi_pipeline.base.errors import ModelError


class ExportedNetwork(nn.Module):
    """The exported graph, given batches of a size that it takes."""

    def __init__(self, program: torch.export.ExportedProgram):
        super().__init__()
        self.graph = program.module()
        signature = program.graph_signature.user_inputs
        (given,) = [node for node in program.graph.nodes if node.name in signature]
        batch = given.meta["val"].shape[0]
        self.fixed = batch if isinstance(batch, int) else None
        """Patches that it takes at once; None: any number up to `most`."""
        self.most: int | None = self.fixed
        if not isinstance(batch, int):
            highest = program.range_constraints[batch.node.expr].upper
            self.most = int(highest) if highest.is_number and highest < 2**31 else None

    def train(self, mode: bool = True) -> "ExportedNetwork":
        """As it was exported: such a graph is of one mode, and refuses to be asked for another."""
        self.training = mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the graph gives, [N, outputs], of patches [N, 3, side, side]."""
        found = []
        for batch in torch.split(x, self.most or len(x)):
            missing = self.fixed - len(batch) if self.fixed else 0
            filled = torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch
            found.append(self.graph(filled)[: len(batch)])
        return torch.cat(found)


def load_exported(content: bytes, path: Path, trust: bool) -> nn.Module:
    """The network; raises ModelError unless it is to be trusted, and where it is none of one input."""
    if not trust:
        raise ModelError(
            f"{path}: a file of torch.export can run any program while it is loaded; expected --trust (from Python "
            "load_model(..., trust=True)) where you trust whoever made it, or the network as ONNX or TorchScript"
        )
    try:
        program = torch.export.load(io.BytesIO(content))
    except Exception as error:  # whatever torch's reader meets in a damaged one
        problem = " ".join(str(error).split())[-300:] or type(error).__name__
        raise ModelError(
            f"{path}: cannot be read as a file of torch.export: {problem}; get it again"
        ) from error
    if len(program.graph_signature.user_inputs) != 1 or len(program.graph_signature.user_outputs) != 1:
        raise ModelError(
            f"{path}: found {len(program.graph_signature.user_inputs)} inputs and "
            f"{len(program.graph_signature.user_outputs)} outputs, expected one of each: patches, and a value for each "
            "class; export it so"
        )
    return ExportedNetwork(program)
