"""What of a slide absorbs light and is not taken for tissue, piece by piece.

    python -m scripts.results.measure_grey_tissue SLIDE...

Stained tissue whose colours mix to grey is missed, and so is dust, which should be: look at the slide at the place that
is said. A piece absorbs MIN_OD and more on average over the channels; gaps of up to six pixels of the plane are within.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.tissue import Tissue, TissueOptions, channel_od, find_tissue

MIN_OD, SMOOTH_PX, GAP_PX = 0.06, 1.0, 3
MIN_PIECE_UM2 = TissueOptions().min_object_um2


def main() -> int:
    """Print a line a piece; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", type=Path, nargs="+", metavar="SLIDE")
    for path in parser.parse_args().slides:
        with open_slide(path) as slide:
            plane = slide.plane_at(TissueOptions().mpp)
            rgb = slide.read_whole(plane).rgb
            mpp = (plane.downsample_x * slide.mpp[0], plane.downsample_y * slide.mpp[1])
        found = find_tissue(rgb, plane, mpp, TissueOptions())
        print(path.name, *pieces(rgb, found, mpp), sep="\n  ", flush=True)
    return 0


def pieces(rgb: RgbImage, found: Tissue, mpp: tuple[float, float]) -> list[str]:
    """A line on each piece, the largest first."""
    smooth = ndimage.gaussian_filter(rgb.astype(np.float32), (SMOOTH_PX, SMOOTH_PX, 0))
    od = np.stack(channel_od(smooth, found.glass[0]))  # [3, row, col]
    mean, spread = od.mean(axis=0), od.max(axis=0) - od.min(axis=0)
    dark = mean >= MIN_OD
    labels, count = ndimage.label(ndimage.binary_closing(dark, iterations=GAP_PX))
    pixel_um2 = mpp[0] * mpp[1]
    lines = []
    for piece in range(1, count + 1):
        where = (labels == piece) & dark
        area_um2 = int(where.sum()) * pixel_um2
        if area_um2 < MIN_PIECE_UM2:
            continue
        row, column = (round(float(at.mean())) for at in np.nonzero(where))
        of_od, of_spread = np.median(mean[where]), np.median(spread[where])
        line = (
            f"{area_um2 / 1e6:.3f} mm2 at {column * mpp[0] / 1000:.1f}, {row * mpp[1] / 1000:.1f} mm: "
            f"{found.mask[where].mean():.0%} is tissue; in the median optical density {of_od:.2f}, "
            f"spread {of_spread:.3f}, their ratio {np.median(spread[where] / mean[where]):.2f}"
        )
        lines.append((area_um2, line))
    return [line for _, line in sorted(lines, reverse=True)]


if __name__ == "__main__":
    sys.exit(main())
