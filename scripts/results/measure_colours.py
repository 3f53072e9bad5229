"""Which colour map lies farthest from haematoxylin and eosin: a table in docs/history.md.

    python -m scripts.results.measure_colours ../shared/data/idc/sheets ../shared/data/slides/breast_40x.svs ...

A colour map of probabilities lies on tissue or beside it. Its colours should be none of the tissue's, with any colour
vision, and steps of the probability should look alike. Measured by CIEDE2000 (1 is about what one just sees), with
the colours as they are and as people without red, green or blue cones see them (Machado, Oliveira and Fernandes 2009,
doi 10.1109/TVCG.2009.113, severity 1). Maps of cmcrameri and cmocean are taken along where these are installed.

Pictures (.webp, .png, .jpg) count pixel by pixel, slides at 0.5 um per pixel.
"""

import argparse
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from scripts.doc_sections import put_section
from wsi_pipeline.base.geometry import Box, Plane, Size
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
# How far from tissue the nearest colour of a map has to be to be considered: the scale then decides.
LEAST_DISTANCE = 14.0
ROWS = 100
STARTS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)


@dataclass(frozen=True)
class Measured:
    """What was found of one map, the worst of all kinds of colour vision: CIEDE2000."""

    name: str
    worst: float
    """The colour of the map nearest to tissue: its distance to the nearest twentieth of tissue pixels."""

    mean: float
    """The same, mean over the map's colours."""

    blended: float
    """The same mean, the map at half opacity on tissue."""

    length: float
    """The way from 0 to 1: how many just visible steps the scale has."""

    evenness: float
    """The smallest of 16 steps as a share of their mean."""

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
    found = sorted(
        (measure(name, colours, tissue) for name, colours in candidates().items()), key=lambda m: -m.worst
    )
    text = table(found, sum(map(len, places)))
    print(text)
    put_section(DOC, SECTION, text)


def candidates() -> dict[str, NDArray[np.float64]]:
    """sRGB colours [256, 3], 0 to 1, by name; "viridis from 0.3" is its upper part, stretched."""
    maps = {name: matplotlib.colormaps[name] for name in OF_MATPLOTLIB}
    for package, names in (("cmcrameri.cm", OF_CRAMERI), ("cmocean.cm", OF_CMOCEAN)):
        try:
            module = import_module(package)
        except ImportError:
            print(f"{package.partition('.')[0]} is not installed: its maps are left out")
            continue
        maps |= {name: getattr(module, name) for name in names}
    return {
        name if start == 0 else f"{name} from {start:g}": np.asarray(colours(np.linspace(start, 1, 256)))[
            :, :3
        ]
        for name, colours in maps.items()
        for start in STARTS
    }


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
    """How far the map's colours, sRGB [256, 3], are from tissue's and from one another, over all visions."""
    some = colours[:: len(colours) // 32]
    under = tissue[np.random.default_rng(1).integers(0, len(tissue), 8)]
    distance, blended, lengths, evenness, rises = [], [], [], [], []
    for matrix in VISIONS.values():
        seen = _lab(tissue, matrix)
        distance.append([_nearest(colour, seen) for colour in _lab(some, matrix)])
        mixed = (some[:, None] + under).reshape(-1, 3) / 2
        blended.append([_nearest(colour, seen) for colour in _lab(mixed, matrix)])
        steps = _lab(colours[np.linspace(0, 255, 17).astype(int)], matrix)
        apart = deltaE_ciede2000(steps[:-1], steps[1:])
        lengths.append(apart.sum())
        evenness.append(apart.min() / apart.mean())
        rises.append(bool(np.all(np.diff(steps[:, 0]) > 0)))
    return Measured(
        name,
        float(np.min(distance)),
        float(np.mean(distance, axis=1).min()),
        float(np.mean(blended, axis=1).min()),
        float(min(lengths)),
        float(min(evenness)),
        all(rises),
    )


def _nearest(colour: NDArray[np.float64], tissue: NDArray[np.float64]) -> float:
    """Distance of a Lab colour to the twentieth of tissue, Lab [N, 3], that is nearest to it."""
    # scikit-image compares as many colours as its first argument has: it does not broadcast.
    apart = deltaE_ciede2000(np.broadcast_to(colour, tissue.shape), tissue)
    return float(np.quantile(apart, 0.05))


def _lab(rgb: NDArray[np.float64], vision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lab [N, 3] of sRGB [N, 3] as seen with that vision."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ vision.T, 0, 1)
    srgb = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab: NDArray[np.float64] = rgb2lab(srgb)
    return lab


def table(found: list[Measured], files: int) -> str:
    """Those whose every colour keeps its distance, longest scale first, and matplotlib's own, as Markdown."""
    apart = sorted((m for m in found if m.rises and m.worst >= LEAST_DISTANCE), key=lambda m: -m.length)
    shown = apart[:ROWS] + [m for m in found if m.name in OF_MATPLOTLIB]
    lines = [
        f"| {m.name} | {m.worst:.0f} | {m.mean:.0f} | {m.blended:.0f} | {m.length:.0f} | {m.evenness:.2f} "
        f"| {'yes' if m.rises else 'no'} |"
        for m in shown
    ]
    return "\n".join(
        [
            f"{len(found)} maps and upper parts of maps against tissue of {files:,} pictures and slides; CIEDE2000, "
            f"the worst of four kinds of colour vision. {len(apart)} keep {LEAST_DISTANCE:g} from tissue with every "
            f"colour: first the {min(ROWS, len(apart))} of them with the longest scale, then matplotlib's maps as they are. "
            "Written by `python -m scripts.results.measure_colours`.",
            "",
            "| map | nearest colour to tissue | mean colour | at half opacity | from 0 to 1 | smallest of 16 steps "
            "/ mean | lightness rises |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
