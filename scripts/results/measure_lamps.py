"""How much the share of tissue changes when the lamp dims or has a tint.

    python -m scripts.results.measure_lamps SLIDE... [--mpp 0.687]

The low-power plane of each slide is multiplied, channel by channel, by each lamp of a grid, and its tissue found. A
picture (.jpg) is read as a slide is, at `--mpp`.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.tissue import Tissue, TissueOptions, find_tissue

BRIGHTNESS = tuple(round(0.5 + 0.05 * step, 2) for step in range(11))
TINTS = tuple(itertools.product((0.85, 0.925, 1.0), repeat=3))


def main() -> int:
    """Print a line a slide; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", type=Path, nargs="+", metavar="SLIDE")
    parser.add_argument("--mpp", type=float, help="um per pixel, where the file does not say")
    args = parser.parse_args()
    for path in args.slides:
        rgb, mpp = read_plane(path, args.mpp)
        share = float(tissue_under(rgb, mpp, (1, 1, 1)).mask.mean())
        dimmed = [float(tissue_under(rgb, mpp, (b, b, b)).mask.mean()) for b in BRIGHTNESS]
        changes = [
            float(tissue_under(rgb, mpp, tuple(b * t for t in tint)).mask.mean()) - share
            for b in (1.0, 0.75, 0.5)
            for tint in TINTS
        ] + [one - share for one in dimmed]
        print(
            f"{path.stem}: share {share:.3f}; at brightness {BRIGHTNESS[0]} to {BRIGHTNESS[-1]} "
            f"{' '.join(f'{one:.3f}' for one in dimmed)}; furthest off under {len(changes)} lamps "
            f"{max(changes, key=abs):+.3f}",
            flush=True,
        )
    return 0


def read_plane(path: Path, mpp: float | None) -> tuple[RgbImage, tuple[float, float]]:
    """The low-power plane, uint8 [row, column, 3], and its um per pixel along x and y."""
    wanted = TissueOptions().mpp
    if path.suffix.lower() in (".jpg", ".jpeg"):
        if mpp is None:
            raise SystemExit(f"{path}: a picture has no scale, give --mpp")
        Image.MAX_IMAGE_PIXELS = None
        with Image.open(path) as picture:
            size = (round(picture.width * mpp / wanted), round(picture.height * mpp / wanted))
            return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX)), (wanted, wanted)
    slide = open_slide(path, mpp)
    plane = slide.plane_at(wanted)
    rgb = slide.read_whole(plane).rgb
    return rgb, (plane.downsample_x * slide.mpp[0], plane.downsample_y * slide.mpp[1])


def tissue_under(rgb: RgbImage, mpp: tuple[float, float], lamp: tuple[float, ...]) -> Tissue:
    """The tissue of the plane under a lamp that lets such shares of red, green and blue through."""
    lit = np.rint(rgb * np.asarray(lamp)).astype(np.uint8)
    return find_tissue(lit, Plane(1, 1), mpp, TissueOptions())


if __name__ == "__main__":
    sys.exit(main())
