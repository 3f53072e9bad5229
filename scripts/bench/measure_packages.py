"""What each kind of other people's models costs: one network as TorchScript, ONNX and torch.export, and an encoder.

    python -m scripts.bench.measure_packages                           # prints
    python -m scripts.bench.measure_packages --docs docs/packages.md

The network is torchvision's ResNet18 with random weights and three classes, the encoder timm's ViT-S/16, made for
patches of that size, under a linear layer; patches are noise, of two sizes. Speed: classification of
patches in memory, with the package's own normalisation, counted in processor time, as other work may share the machine;
rounds interleaved.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scripts.doc_sections import put_section
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.models.architectures.registry import build_network
from wsi_pipeline.models.architectures.torchvision_guard import torchvision
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import load_model, save_model
from wsi_pipeline.models.stain import patch_densities

CPU = torch.device("cpu")
SIDES, PATCHES, ROUNDS = (224, 512), 8, 2
CLASSES = ("Stroma", "Tumor", "Lymphocytes")
MEAN, STD = (0.7, 0.6, 0.7), (0.2, 0.2, 0.2)
ENCODER = "vit_small_patch16_224"


def main() -> int:
    """Print what was measured, and write it into a page if one is named; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, help="a page to write the table into")
    args = parser.parse_args()
    text = "\n".join(table(SIDES, PATCHES, ROUNDS))
    print(text)
    if args.docs:
        put_section(args.docs, "scripts/bench/measure_packages.py", text)
    return 0


def table(sides: Sequence[int], patches: int, rounds: int) -> list[str]:
    """A row a side and kind."""
    lines = [
        f"ResNet18, {len(CLASSES)} classes, {patches} patches a round, mean of {rounds} rounds; "
        f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}.",
        "",
        "| | computed by | patches a second and core | times TorchScript | from the network itself, furthest "
        "| seconds to load |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            lines += _rows(Path(folder), side, patches, rounds)
    return lines


@dataclass(eq=False)
class _Way:
    classifier: Classifier
    load_s: float
    expected: NDArray[np.float32]
    """What the network itself gives of the patches, [n]."""


def _rows(folder: Path, side: int, count: int, rounds: int) -> list[str]:
    network = _network()
    patches = np.random.default_rng(0).integers(90, 255, (count, side, side, 3), np.uint8)
    expected = _by_hand(network, patches, CLASSES.index("Tumor"))
    ways = {
        name: _Way(*_loaded(_saved_package(folder / name, network, side, save)), expected)
        for name, save in KINDS.items()
    }
    one = ClassifyOptions(other_classes=False)
    first = next(iter(KINDS))
    alone = Classifier([load_model(folder / first, trust=True)], CPU, one)
    ways[f"{first}, one class kept"] = _Way(alone, ways[first].load_s, expected)
    ways[f"encoder {ENCODER}"] = _encoder(folder / "encoder.safetensors", side, patches)
    for way in ways.values():  # as on a slide, whose sample the engines are checked on
        way.classifier = way.classifier.adapted(patch_densities(patches), patches)
    speed: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way.classifier.scores(patches)
            if round_:  # the first one chooses the engine
                speed[name].append(count / (time.process_time() - began))
    rows = []
    for name, way in ways.items():
        times = np.mean(speed[name]) / np.mean(speed[first])
        differs = np.abs(way.classifier.scores(patches) - way.expected).max()
        info = way.classifier.engine_info[0]
        rows.append(
            f"| {side} px, {name} | {info['engine']}, {info['precision']} | {np.mean(speed[name]):.1f} "
            f"| {times:.2f} | {differs:.1g} | {way.load_s:.1f} |"
        )
    return rows


def _network() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.resnet18(num_classes=len(CLASSES))
    return network.eval().requires_grad_(False)


def _encoder(path: Path, side: int, patches: NDArray[np.uint8]) -> _Way:
    """An encoder with random weights, as train-model leaves it: our own file, and its card."""
    torch.manual_seed(0)
    options = {"encoder": ENCODER, "shape": {"img_size": side}}
    network = build_network("encoder", **options).eval().requires_grad_(False)
    card = ModelCard(
        name="random",
        architecture="encoder",
        architecture_options=options,
        patch_px=side,
        mpp=0.5,
        mean=MEAN,
        std=STD,
    )
    save_model(path, network, card)
    return _Way(*_loaded(path), _by_hand(network, patches, card.classes.index("idc")))


def _by_hand(network: nn.Module, patches: NDArray[np.uint8], mapped: int) -> NDArray[np.float32]:
    """Probability of the mapped class, float32 [n]."""
    found = []
    for patch in patches:
        values = (patch.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        with torch.inference_mode():
            logits = network(torch.from_numpy(values.transpose(2, 0, 1)[None]))
        found.append(float(logits.softmax(1)[0, mapped]))
    return np.array(found, np.float32)


def _saved_package(
    folder: Path, network: nn.Module, side: int, save: Callable[[nn.Module, Path, int], None]
) -> Path:
    folder.mkdir()
    config = {
        "spec_version": "1.0",
        "architecture": "resnet18",
        "name": "random",
        "num_classes": len(CLASSES),
        "class_names": CLASSES,
        "patch_size_pixels": side,
        "spacing_um_px": 0.5,
        "transform": [{"name": "ToTensor"}, {"name": "Normalize", "arguments": {"mean": MEAN, "std": STD}}],
    }
    (folder / "config.json").write_text(json.dumps(config))
    save(network, folder, side)
    return folder


def _loaded(path: Path) -> tuple[Classifier, float]:
    """A classifier of the model there, and the seconds that it took."""
    began = time.perf_counter()
    model = load_model(path, trust=True)
    return Classifier([model], CPU, ClassifyOptions()), time.perf_counter() - began


def _save_torchscript(network: nn.Module, folder: Path, side: int) -> None:
    traced = torch.jit.trace(network, torch.zeros(1, 3, side, side))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, folder / "torchscript_model.pt")  # type: ignore[no-untyped-call]


def _save_onnx(network: nn.Module, folder: Path, side: int) -> None:
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, side, side),),
        folder / "model.onnx",
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )


def _save_exported(network: nn.Module, folder: Path, side: int) -> None:
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(network, (torch.zeros(2, 3, side, side),), dynamic_shapes=free)
    torch.export.save(program, folder / "model.pt2")


KINDS = {"TorchScript": _save_torchscript, "ONNX": _save_onnx, "torch.export": _save_exported}


if __name__ == "__main__":
    sys.exit(main())
