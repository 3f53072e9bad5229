"""Which colour map lies farthest from haematoxylin and eosin: a table in docs/history.md.

    python -m scripts.results.measure_colours ../shared/data/idc/sheets ../shared/data/slides/breast_40x.svs ...

A colour map of probabilities lies on tissue or beside it. Its colours should be none of the tissue's nor of glass, and
steps of the probability should look alike. Measured by CIEDE2000 (1 is about what one just sees), with the colours as
they are and as people without red, green or blue cones see them (Machado, Oliveira and Fernandes 2009, doi
10.1109/TVCG.2009.113, severity 1). Maps of cmcrameri and cmocean are taken along where these are installed.

Pictures (.webp, .png, .jpg) count pixel by pixel, slides at 0.5 um per pixel.
"""

import argparse
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import Colormap
from numpy.typing import NDArray
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from scripts.doc_sections import put_section
from wsi_pipeline.base.geometry import Box, Plane, Size
from wsi_pipeline.results.figures.palette import COLOURS, UNCERTAINTY_COLOURS
from wsi_pipeline.slides.slide import open_slide

DOC, SECTION = Path("docs/history.md"), "colour maps"
PICTURES = (".webp", ".png", ".jpg")
# Paler than this (optical density of the channel most absorbed) is glass.
LEAST_OD = 0.15
SLIDE_MPP = 0.5
# Linear RGB as seen with these cones missing.
VISIONS: dict[str, NDArray[np.float64]] = {
    "full": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no blue": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# Perceptually uniform and rising in lightness, by their makers' word; uniformity is measured here all the same.
OF_MATPLOTLIB = ("viridis", "cividis", "plasma", "magma", "inferno", "bone")
OF_CRAMERI = ("batlow", "imola", "bamako", "davos", "nuuk", "tokyo", "hawaii", "lapaz", "oslo")
OF_CMOCEAN = ("haline", "thermal", "algae_r", "speed_r", "deep_r")
# What a map of probabilities needs before its distance from tissue counts: a high end that is not taken for glass, and
# a scale with steps to tell apart.
LEAST_FROM_GLASS, LEAST_LENGTH = 25.0, 60.0
# As scanners show it.
GLASS = np.array([[241, 240, 242]]) / 255
ROWS = 10
OURS, OUR_UNCERTAINTY = "**ours**", "ours, of uncertainty"
STARTS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)


@dataclass(frozen=True)
class Measured:
    """What was found of one map: CIEDE2000."""

    name: str
    nearest: float
    """The colour of the map nearest to tissue: its distance to the nearest twentieth of tissue pixels."""

    mean: float
    """The same, mean over the map's colours."""

    nearest_blind: float
    """As `nearest`, the worst of the three kinds of colour blindness."""

    mean_blind: float
    """As `mean`, the worst of them."""

    glass: float
    """From glass to the map's colour nearest to it."""

    length: float
    """The way from 0 to 1, with the vision that it is shortest for: how many just visible steps the scale has."""

    evenness: float
    """The smallest of 16 steps as a share of their mean, the worst of all kinds of vision."""

    rises: bool
    """Whether lightness grows all along it, with each kind of vision."""


def main() -> None:
    """Measure, print, and write the section. Each path given counts as much as the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tissue", type=Path, nargs="+", help="slides, pictures, or folders of pictures")
    parser.add_argument("--pixels", type=int, default=2000, help="tissue pixels compared with (default 2000)")
    args = parser.parse_args()
    places = [sorted(path.iterdir()) if path.is_dir() else [path] for path in args.tissue]
    tissue = np.concatenate([tissue_pixels(files, args.pixels // len(places)) for files in places])
    found = [measure(name, colours, tissue) for name, colours in candidates().items()]
    text = table(found, sum(map(len, places)))
    print(text)
    put_section(DOC, SECTION, text)


def candidates() -> dict[str, NDArray[np.float64]]:
    """sRGB colours [256, 3], 0 to 1, by name; "viridis from 0.3" is its upper part, stretched."""
    maps: dict[str, Colormap] = {name: matplotlib.colormaps[name] for name in OF_MATPLOTLIB}
    for package, names in (("cmcrameri.cm", OF_CRAMERI), ("cmocean.cm", OF_CMOCEAN)):
        try:
            module = import_module(package)
        except ImportError:
            print(f"{package.partition('.')[0]} is not installed: its maps are left out")
            continue
        maps |= {name: getattr(module, name) for name in names}
    sampled = {
        name if start == 0 else f"{name} from {start:g}": np.asarray(colours(np.linspace(start, 1, 256)))[
            :, :3
        ]
        for name, colours in maps.items()
        for start in STARTS
    }
    own = {OURS: COLOURS, OUR_UNCERTAINTY: UNCERTAINTY_COLOURS}
    return sampled | {name: colours(np.linspace(0, 1, 256))[:, :3] for name, colours in own.items()}


def tissue_pixels(files: list[Path], count: int) -> NDArray[np.float64]:
    """sRGB [N, 3], 0 to 1, of so many pixels of tissue, as many of each file."""
    rng = np.random.default_rng(0)
    each, pixels = -(-count // len(files)), []
    for file in files:
        if file.suffix.lower() in PICTURES:
            with Image.open(file) as picture:
                rgb = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        else:
            with open_slide(file) as slide:
                plane = Plane(SLIDE_MPP / slide.mpp[0], SLIDE_MPP / slide.mpp[1])
                size = Size(
                    int(slide.size0.width / plane.downsample_x), int(slide.size0.height / plane.downsample_y)
                )
                rgb = slide.reader(plane)(Box(0, 0, size.width, size.height)).rgb.reshape(-1, 3)
        tissue = rgb[rgb.min(axis=1) < 255 * 10**-LEAST_OD]
        if len(tissue):
            pixels.append(tissue[rng.integers(0, len(tissue), each)])
    return np.concatenate(pixels) / 255


def measure(name: str, colours: NDArray[np.float64], tissue: NDArray[np.float64]) -> Measured:
    """How far the map's colours, sRGB [256, 3], are from tissue's, sRGB [N, 3], from glass, and from one another."""
    some = colours[:: len(colours) // 32]
    distance, lengths, evenness, rises = [], [], [], []
    for matrix in VISIONS.values():
        seen = as_seen(tissue, matrix)
        distance.append([_nearest(colour, seen) for colour in as_seen(some, matrix)])
        steps = as_seen(colours[np.linspace(0, 255, 17).astype(int)], matrix)
        apart = deltaE_ciede2000(steps[:-1], steps[1:])
        lengths.append(apart.sum())
        evenness.append(apart.min() / apart.mean())
        rises.append(bool(np.all(np.diff(steps[:, 0]) > 0)))
    full, *blind = distance  # in the order of VISIONS
    lab = as_seen(some, VISIONS["full"])
    glass = deltaE_ciede2000(lab, np.broadcast_to(as_seen(GLASS, VISIONS["full"]), lab.shape))
    return Measured(
        name,
        float(np.min(full)),
        float(np.mean(full)),
        float(np.min(blind)),
        float(np.mean(blind, axis=1).min()),
        float(glass.min()),
        float(min(lengths)),
        float(min(evenness)),
        all(rises),
    )


def _nearest(colour: NDArray[np.float64], tissue: NDArray[np.float64]) -> float:
    """Distance of a Lab colour to the twentieth of tissue, Lab [N, 3], that is nearest to it."""
    # scikit-image compares as many colours as its first argument has: it does not broadcast.
    apart = deltaE_ciede2000(np.broadcast_to(colour, tissue.shape), tissue)
    return float(np.quantile(apart, 0.05))


def as_seen(rgb: NDArray[np.float64], vision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lab [N, 3] of sRGB [N, 3] as seen with that vision."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ vision.T, 0, 1)
    srgb = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab: NDArray[np.float64] = rgb2lab(srgb)
    return lab


def table(found: list[Measured], files: int) -> str:
    """Those that can be read and are farthest from tissue, then matplotlib's own, as Markdown."""
    readable = [m for m in found if m.rises and m.length >= LEAST_LENGTH and m.glass >= LEAST_FROM_GLASS]
    farthest = sorted(readable, key=lambda m: -m.nearest)[:ROWS]
    others = [m for m in found if m.name in (*OF_MATPLOTLIB, OUR_UNCERTAINTY) and m not in farthest]
    lines = [
        f"| {m.name} | {m.nearest:.0f} | {m.mean:.0f} | {m.nearest_blind:.0f} | {m.mean_blind:.0f} | {m.glass:.0f} "
        f"| {m.length:.0f} | {m.evenness:.2f} |"
        for m in [*farthest, *sorted(others, key=lambda m: -m.nearest)]
    ]
    return "\n".join(
        [
            f"{len(found)} maps and upper parts of maps against tissue of {files:,} pictures and slides, CIEDE2000. "
            f"Of the {len(readable)} whose lightness rises with any colour vision, with {LEAST_LENGTH:g} visible "
            f"steps, and {LEAST_FROM_GLASS:g} from glass: the {len(farthest)} farthest from tissue; then others. "
            "Written by `python -m scripts.results.measure_colours`.",
            "",
            "| map | nearest colour to tissue | mean colour | colour-blind: nearest | mean | nearest to glass "
            "| from 0 to 1 | smallest of 16 steps / mean |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
