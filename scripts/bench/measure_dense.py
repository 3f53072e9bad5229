"""What running networks over whole blocks gives: how far from patch by patch, and how much faster.

    python -m scripts.bench.measure_dense --slide ../shared/data/slides/breast_40x.svs

Writes a section of docs/performance.md. Networks of configs/train are taken untrained, with batch norms as the slide's
patches make them: what padding does to a map does not wait for training. `--model` adds trained ones.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from scripts.bench.bench_cases import first_blocks
from scripts.doc_sections import put_section
from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.base.geometry import Box
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions, classify_blocks
from wsi_pipeline.learning.training.options import load_train_options
from wsi_pipeline.models.architectures.cancernet import CancerNet
from wsi_pipeline.models.architectures.fully_convolutional import DenseForm, dense_form
from wsi_pipeline.models.architectures.inputs import PreparedInput
from wsi_pipeline.models.architectures.registry import build_network
from wsi_pipeline.models.architectures.residual import ResidualCnn
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import Model, load_model, normalised
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.overview import make_overview

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "configs/train"
STRIDES = (10, 5)
ROUNDS, SIDE_PX = 3, 310
# Of the first blocks, so that patch by patch ends.
MOST_PATCHES = 30_000


def main() -> int:
    """Measure and write; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="a trained .safetensors (repeat)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args()
    slide = open_slide(args.slide)
    rgb = _densest(slide)
    trained = [load_model("idc_default"), *(load_model(path) for path in args.model)]
    rows = [f"| {m.card.name}, trained | {_apart(m.card, m.network, rgb)} |" for m in trained]
    for path in sorted(CONFIGS.glob("*.yaml")):
        card, network = _untrained(path, rgb)
        rows.append(f"| {path.stem}, untrained | {_apart(card, network, rgb)} |")
        print(rows[-1], flush=True)
    card, network = _untrained(CONFIGS / "idc_dense.yaml", rgb)
    text = [
        *_equality_lines(args.slide.name, rows),
        *_sharing_lines(trained[0].network),
        *_speed_lines(slide, Model(card, network, "0" * 64)),
    ]
    put_section(args.out, "dense", "\n".join(text))
    print("\n".join(text))
    return 0


def _equality_lines(slide: str, rows: Sequence[str]) -> list[str]:
    return [
        "### Equality",
        "",
        f"Each network run over {SIDE_PX} x {SIDE_PX} px of {slide} at 4 um/px as it stands, whatever its padding, "
        "against the same patches one by one: the largest difference of the probability, and of the log odds the "
        "root mean square in units of their own spread over the patches.",
        "",
        "| network | step | probability, largest | log odds, of their spread |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _apart(card: ModelCard, network: nn.Module, rgb: NDArray[np.uint8]) -> str:
    """How far the form for whole blocks is from patch by patch: cells of a table row."""
    try:
        form = naive_form(network, card.patch_px)
    except ModelError as error:
        return f"refused: {error} | | "
    step, size = form.step_px, card.patch_px
    pixels = normalised(torch.from_numpy(rgb[None]), card.mean, card.std)  # [1, 3, H, W]
    with torch.inference_mode():
        whole = _odds(form.logits(pixels))[0]  # [rows, columns]
        fit = (SIDE_PX - size) // step + 1  # padding gives more
        whole = whole[:fit, :fit]
        every = max(1, whole.shape[0] // 8)
        places = [(r, c) for r in range(0, whole.shape[0], every) for c in range(0, whole.shape[1], every)]
        patches = torch.cat([pixels[:, :, r * step :, c * step :][:, :, :size, :size] for r, c in places])
        alone = _odds(network(patches.contiguous(memory_format=torch.channels_last)))
    dense = torch.stack([whole[place] for place in places])
    largest = (dense.sigmoid() - alone.sigmoid()).abs().max().item()
    relative = ((dense - alone).square().mean().sqrt() / alone.std()).item()
    return f"{step} px | {largest:.2g} | {relative:.2g}"


def naive_form(network: nn.Module, patch_px: int) -> DenseForm:
    """As `dense_form`, and also of architectures that it refuses for never being the same."""
    try:
        return dense_form(network, patch_px)
    except ModelError:
        inner = network.network if isinstance(network, PreparedInput) else network
        if isinstance(network, PreparedInput) and (network.clahe or network.input_px != patch_px):
            raise
    with torch.no_grad():
        if isinstance(inner, CancerNet):
            return _of_cancernet(inner, patch_px)
        return _of_torchvision(inner, patch_px)


def _of_cancernet(network: CancerNet, patch_px: int) -> DenseForm:
    linear, norm, head = network.dense[1], network.dense[3], network.head
    side = network.features(torch.zeros(1, 3, patch_px, patch_px)).shape[-1]
    kernel = linear.weight.view(linear.out_features, -1, side, side)

    def logits(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(F.conv2d(network.features(x), kernel, linear.bias))
        hidden = F.batch_norm(
            hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
        return F.conv2d(hidden, head.weight[:, :, None, None], head.bias)

    return DenseForm(logits, 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in network.features))


def _of_torchvision(network: nn.Module, patch_px: int) -> DenseForm:
    if hasattr(network, "layer4"):  # ResNets
        children = [child for name, child in network.named_children() if name not in ("avgpool", "fc")]
        features, heads = nn.Sequential(*children), [network.fc]
    elif isinstance(network.classifier, nn.Linear):  # DenseNets
        features, heads = nn.Sequential(network.features, nn.ReLU()), [network.classifier]
    else:  # VGG, whose 7x7 input is one position of the map, repeated
        first, *others = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
        summed = nn.Linear(first.in_features // 49, first.out_features)
        summed.weight.copy_(first.weight.view(first.out_features, -1, 49).sum(dim=2))
        summed.bias.copy_(first.bias)
        features, heads = network.features, [summed, *others]
    side = features(torch.zeros(1, 3, patch_px, patch_px)).shape[-1]

    def logits(x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(features(x), side, stride=1)
        for i, head in enumerate(heads):
            x = F.conv2d(torch.relu(x) if i else x, head.weight[:, :, None, None], head.bias)
        return x

    return DenseForm(logits, 32)


def _odds(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1] - logits[:, 0]


def _untrained(path: Path, rgb: NDArray[np.uint8]) -> tuple[ModelCard, nn.Module]:
    """A config's network with random weights, its batch norms as patches of `rgb` make them, and a card."""
    options = load_train_options(path)
    torch.manual_seed(0)
    network = build_network(options.architecture, classes=2, **options.architecture_options)
    for name, value in network.named_parameters():
        if "norm2.weight" in name:  # zero at the start of a training: blocks would be passed by
            nn.init.ones_(value)
    shipped = load_model("idc_default").card
    card = replace(
        shipped,
        name=path.stem,
        architecture=options.architecture,
        architecture_options=options.architecture_options,
        context=None,
        stain_normalisation=0.0,
        temperature=1.0,
        log_odds_shift=0.0,
        bf16=False,
    )
    px = options.patch_px
    patches = [
        rgb[y : y + px, x : x + px] for y in range(0, SIDE_PX - px, 40) for x in range(0, SIDE_PX - px, 40)
    ]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None  # the plain mean
    if norms:
        with torch.no_grad():
            network.train()(normalised(torch.from_numpy(np.stack(patches)[:32]), card.mean, card.std))
    network = network.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    return card, network


def _sharing_lines(network: nn.Module) -> list[str]:
    """How much of the shipped network could be shared exactly, its padding and gates as they are."""
    assert isinstance(network, ResidualCnn)
    patches = torch.rand(128, 3, 50, 50).contiguous(memory_format=torch.channels_last)
    first = network.stages[0][0]
    before: list[float] = []
    whole: list[float] = []
    with torch.inference_mode():
        for _ in range(2 * ROUNDS):
            start = time.perf_counter()
            first.norm2(first.conv2(torch.relu(first.norm1(first.conv1(network.stem(patches))))))
            middle = time.perf_counter()
            network(patches)
            before.append(middle - start)
            whole.append(time.perf_counter() - middle)
    share = statistics.median(before) / statistics.median(whole)
    return [
        "The shipped network's first gate, which needs the mean over the whole patch, follows its third convolution. "
        f"Until there it spends {share:.0%} of its time; of those maps of 25 x 25, the inner 19 x 19 do not see the "
        f"padding. Sharing them exactly would save at most {share * (19 / 25) ** 2:.0%}, before the cost of putting "
        "the rims together: it is not done.",
        "",
    ]


def _speed_lines(slide: Slide, model: Model) -> list[str]:
    lines = [
        "### Speed",
        "",
        f"The network of configs/train/idc_dense.yaml on {slide.path.name} at 4 um/px, classify stage alone, float32, "
        f"{torch.get_num_threads()} threads, medians of {ROUNDS} rounds in turns.",
        "",
        "| stride | patches | patch by patch | over whole blocks | times as fast | largest difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stride in STRIDES:
        plan = _plan(slide, model.card, stride)
        seconds: dict[str, list[float]] = {"off": [], "require": []}
        scores: dict[str, NDArray[np.float32]] = {}
        for _ in range(ROUNDS):
            for dense, found in seconds.items():
                start = time.perf_counter()
                scores[dense] = _scored(slide, plan, model, dense)
                found.append(time.perf_counter() - start)
        alone, whole = (statistics.median(seconds[name]) for name in ("off", "require"))
        differs = np.nanmax(np.abs(scores["off"] - scores["require"]))
        lines.append(
            f"| {stride} px | {int(plan.scored.sum()):,} | {alone:.1f} s | {whole:.2f} s | {alone / whole:.1f} | "
            f"{differs:.1g} |"
        )
    return lines


def _scored(slide: Slide, plan: Plan, model: Model, dense: str) -> NDArray[np.float32]:
    options = ClassifyOptions(precision="fp32", dense=dense)  # type: ignore[arg-type]
    classifier = Classifier([model], CPU, options)
    read = plan.grid.reader(slide)
    return np.concatenate(
        [one.scores for one in classify_blocks(plan.blocks(), plan.grid, read, classifier, options)]
    )


def _plan(slide: Slide, card: ModelCard, stride: int) -> Plan:
    config = InferConfig()
    grid = replace(grid_for_model(config.grid, card.patch_px, card.mpp), stride_px=stride)
    return first_blocks(slide, make_overview(slide, config.overview, grid).plan, MOST_PATCHES)


def _densest(slide: Slide) -> NDArray[np.uint8]:
    """The square of `SIDE_PX` at 4 um/px that holds most colour, uint8 [row, column, RGB]."""
    plane = slide.plane_at(4.0)
    whole = slide.read_whole(plane).rgb
    colour = np.ptp(whole.astype(int), axis=2)
    corners = [
        (y, x)
        for y in range(0, max(1, colour.shape[0] - SIDE_PX), 60)
        for x in range(0, max(1, colour.shape[1] - SIDE_PX), 60)
    ]
    y, x = max(corners, key=lambda c: colour[c[0] : c[0] + SIDE_PX, c[1] : c[1] + SIDE_PX].sum())
    return slide.read(Box(x, y, SIDE_PX, SIDE_PX), plane)


if __name__ == "__main__":
    sys.exit(main())
