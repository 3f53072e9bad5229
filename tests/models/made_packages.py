"""Packages of other people's models, made for tests, and what their files give by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import noise
from PIL import Image
from torch import nn

from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.models.model import load_model

MEAN, STD = (0.72, 0.57, 0.68), (0.11, 0.15, 0.11)
CLASSES = ("Stroma", "Tumor", "Lymphocytes")


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes),
    ).eval()


def package(
    folder: Path,
    size: int | None = 48,
    classes: tuple[str, ...] = CLASSES,
    save: Callable[[nn.Module, Path, int], None] | None = None,
    **changed: Any,
) -> Path:
    """A package with that network; `size`: to which its patches of 70 px are resized."""
    save = save or save_torchscript
    folder.mkdir(exist_ok=True)
    steps: list[dict[str, Any]] = [
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": list(MEAN), "std": list(STD)}},
    ]
    if size:
        steps.insert(0, {"name": "Resize", "arguments": {"size": size}})
    config = {
        "spec_version": "1.0",
        "architecture": "tiny",
        "num_classes": len(classes),
        "class_names": list(classes),
        "name": "a-package",
        "patch_size_pixels": 70,
        "spacing_um_px": 0.5,
        "transform": steps,
    } | changed
    (folder / "config.json").write_text(json.dumps(config))
    save(network(len(classes)), folder, size or config["patch_size_pixels"])
    return folder


def save_torchscript(net: nn.Module, folder: Path, side: int) -> None:
    traced = torch.jit.trace(net, torch.zeros(1, 3, side, side))
    torch.jit.save(traced, folder / "torchscript_model.pt")


def save_onnx(net: nn.Module, folder: Path, side: int, batch: int | None = None) -> None:
    """`batch`: of which the file is made; None: free."""
    axes = {} if batch else {"dynamic_axes": {"x": {0: "n"}}}
    torch.onnx.export(
        net,
        (torch.zeros(batch or 1, 3, side, side),),
        folder / "model.onnx",
        dynamo=False,
        input_names=["x"],
        **axes,
    )


def patches(count: int = 20) -> np.ndarray:
    big = noise(70 * count, 70, seed=5).reshape(count, 70, 70, 3) // 2 + 90
    return np.asarray(big.astype(np.uint8))


def by_hand(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, size: int | None = 48) -> np.ndarray:
    """What whoever made the package gets: Pillow resizes, the file is run on one patch after another, softmax.

    `run` gives logits [1, classes] of a patch [1, 3, S, S].
    """
    rows = []
    for image in images:
        picture = Image.fromarray(image)
        if size:
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        values = (np.asarray(picture, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        logits = torch.from_numpy(np.asarray(run(values.transpose(2, 0, 1)[None].copy())))
        rows.append((logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()).numpy()[0])
    return np.asarray(rows)


def torchscript_by_hand(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    script = torch.jit.load(folder / "torchscript_model.pt")

    def run(patch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = script(torch.from_numpy(patch)).numpy()
        return found

    return run


class Trap:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> Any:
        return Path.write_text, (self.place, "run")


def scores(name: str | Path, images: np.ndarray, trust: bool = False) -> np.ndarray:
    model = load_model(name, trust)
    return Classifier([model], torch.device("cpu"), ClassifyOptions(precision="fp32")).scores(images)


def save_exported(
    net: nn.Module, folder: Path, side: int, batch: int | None = None, most: int | None = None
) -> None:
    """`batch`: of which the file is made; None: free, up to `most`."""
    free = torch.export.Dim("n", max=most) if most else torch.export.Dim.DYNAMIC
    example = torch.zeros(batch or 2, 3, side, side)
    program = torch.export.export(net, (example,), dynamic_shapes=None if batch else ({0: free},))
    torch.export.save(program, folder / "model.pt2")
