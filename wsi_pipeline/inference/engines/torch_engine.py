"""Torch as it stands: the network layer by layer. What every other engine is measured against."""

from collections import Counter
from contextlib import nullcontext
from copy import deepcopy
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsi_pipeline.inference.engines.batching import Precision
from wsi_pipeline.models.architectures.slide_condition import head_inputs, with_slide_inputs
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import Model, calibrated, class_probabilities, network_logits, normalised
from wsi_pipeline.models.onnx_network import is_onnx
from wsi_pipeline.models.slide_input import SlideInput
from wsi_pipeline.models.stain import Tables, normalise_stain


class EagerEngine:
    """A model on a device, in float32 or under bfloat16 autocast; `all_classes`: it gives the probability of each.

    `fold` takes batch normalisation into the convolutions before it: fewer passes over memory on a CPU, and a
    probability moved by some 1e-7. Raises what torch.fx raises where it cannot follow the network.
    """

    # On a CPU, torch's own threads share a batch; on a GPU, one thread launches.
    parallel_batches = 1

    def __init__(
        self,
        model: Model,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        batch_size: int,
        fold: bool = False,
        all_classes: bool = False,
    ):
        self._probabilities_of = class_probabilities if all_classes else calibrated
        self.name = "onnx by openvino" if is_onnx(model.network) else "torch"
        self.precision: Precision = precision
        self.batch_sizes = (batch_size,)
        self._model, self._device = model, device
        network = with_slide_inputs(model.network)
        self._network = folded(network) if fold else network.to(device)
        self._tables: tuple[Tables, torch.Tensor] | None = None

    def probabilities(self, batch: NDArray[np.uint8], slide: SlideInput) -> NDArray[np.float32]:
        """float32 [n] or [n, classes], 0 to 1, of uint8 patches [n, S, S, 3] of that slide.

        In halves where a GPU's memory does not hold what they need at once.
        """
        try:
            return self._probabilities(batch, slide)
        except torch.cuda.OutOfMemoryError:
            if len(batch) < 2:
                raise
        # Not in the handler: the error holds what was allocated.
        torch.cuda.empty_cache()
        middle = len(batch) // 2
        return np.concatenate([self.probabilities(part, slide) for part in (batch[:middle], batch[middle:])])

    def _probabilities(self, batch: NDArray[np.uint8], slide: SlideInput) -> NDArray[np.float32]:
        with torch.inference_mode(), self._autocast():
            if self._device.type == "cpu":
                patches = torch.from_numpy(normalise_stain(batch, slide.tables))
            else:
                patches = self._on_device(batch, slide.tables)
            inputs = head_inputs(self._model.network, slide.head)
            head = [torch.from_numpy(values).to(self._device) for values in inputs]
            logits = network_logits(self._network, self._model.card, patches, *head)
            return self._probabilities_of(logits, self._model.card).float().cpu().numpy()

    def _on_device(self, batch: NDArray[np.uint8], tables: Tables | None) -> torch.Tensor:
        """The patches, brought as uint8 and stain-normalised there."""
        patches = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
        if tables is None:
            return patches
        kept = self._tables  # one slide's, batch after batch
        if kept is None or kept[0] is not tables:
            self._tables = kept = (tables, torch.from_numpy(tables.ravel()).to(self._device))
        starts = torch.arange(
            0, 768, 256, device=self._device, dtype=torch.int32
        )  # of R, G, B, one after another
        return kept[1].index_select(0, (patches.int() + starts).ravel()).view(patches.shape)

    def _autocast(self) -> "torch.autocast | nullcontext[None]":
        if self.precision == "bf16":
            return torch.autocast(self._device.type, torch.bfloat16)
        return nullcontext()


def input_table(card: ModelCard, tables: Tables | None) -> NDArray[np.float32]:
    """float32 [768], of R, then G, then B: each value, stain-normalised by `tables`, then scaled as the card says."""
    values = np.tile(np.arange(256, dtype=np.uint8), (3, 1)) if tables is None else tables  # [3, 256]
    pixels = torch.from_numpy(np.ascontiguousarray(values.T)).view(1, 1, 256, 3)
    return normalised(pixels, card.mean, card.std)[0, :, 0].contiguous().numpy().ravel()


def folded(network: nn.Module) -> nn.Module:
    """A copy of the network, eval mode, with batch normalisation taken into the convolutions before it."""
    from torch.fx import symbolic_trace  # takes half a second to import

    traced = symbolic_trace(deepcopy(network))
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for norm in list(traced.graph.nodes):
        if norm.op != "call_module" or not isinstance(modules[norm.target], nn.BatchNorm2d):
            continue
        conv = norm.args[0]
        alone = conv.op == "call_module" and len(conv.users) == 1 and calls[conv.target] == 1
        if not alone or not isinstance(modules[conv.target], nn.Conv2d):
            continue
        parent, _, name = conv.target.rpartition(".")
        setattr(
            traced.get_submodule(parent),
            name,
            fuse_conv_bn_eval(modules[conv.target], modules[norm.target]),
        )
        norm.replace_all_uses_with(conv)
        traced.graph.erase_node(norm)
    traced.recompile()
    return traced.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload, no-any-return]
