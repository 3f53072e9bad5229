#!/usr/bin/env python3
"""Make a sample slide: a whole mount of breast drawn by rule, with its true outlines of carcinoma.

No pixel of a real slide is in it. The scene (glass, fat, stroma, benign ducts and lobules, two masses of
invasive ductal carcinoma with lymphocytes about them) is a function of position in micrometres and of the
seed, so the same scene can be scanned at any scale:

    scene      concentrations of haematoxylin and eosin at each point of the SCENE_UM lattice
    render     Beer-Lambert law: what white light is left after them, 8 bit RGB on that lattice
    scan       the lattice resampled to the wanted micrometres per pixel, scanner noise added
    write      tiles of a pyramid (1, 4, 16, 64), made block by block; only the second level is held whole

Beside the slide lie `<name>_truth.png` (4 um/px: 0 tissue that is not tumour, 1 carcinoma, 255 glass) and
`<name>_truth.geojson` (the outlines in level-0 pixels, class Tumor, as QuPath reads them).
"""

import argparse
import os
import sys
import time
from pathlib import Path

from scripts.sample_slide.sample_scan import plan_scan, truth_png, write_pyramid, write_truth
from scripts.sample_slide.sample_scene import make_scene


def make_sample_slide(
    path: str | Path,
    width_mm: float = 8.0,
    height_mm: float = 6.0,
    mpp: float | tuple[float, float] = 0.25,
    seed: int = 1,
    compression: str = "jpeg",
    workers: int | None = None,
) -> Path:
    """Path of the slide made, its truth beside it.

    `width_mm`, `height_mm`: size of the scene. `mpp`: micrometres per pixel at level 0, one for both axes or
    (x, y). `seed`: another seed is another section. `compression`: "jpeg" or "deflate" (lossless). `workers`:
    threads, None = one a core. The same arguments give the same pixels.

    Raises ValueError where an argument has no meaning.
    """
    path = Path(path)
    scale = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    if compression not in ("jpeg", "deflate"):
        raise ValueError(f"compression is jpeg or deflate, not {compression!r}")
    if not (min(scale) > 0 and max(scale) <= 4 and min(width_mm, height_mm) >= 0.5):
        raise ValueError(
            f"a scene is 0.5 mm or more a side at 4 um/px or finer, not {width_mm} x {height_mm} mm at {mpp}"
        )
    scene = make_scene(width_mm * 1000, height_mm * 1000, seed)
    scan = plan_scan(scene.width_um, scene.height_um, scale, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_truth(path, scene, scan)
    write_pyramid(path, scene, scan, compression, workers or os.cpu_count() or 1)
    return path


def main() -> int:
    """Command line: make one slide, say what was made."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: make_sample_slide.py sample.svs --width-mm 8 --height-mm 6 --mpp 0.25 --seed 1",
    )
    parser.add_argument("out", type=Path, help="slide to write: .svs (one scale) or .tiff")
    parser.add_argument(
        "--width-mm", type=float, default=8.0, help="width of the scene (default %(default)s)"
    )
    parser.add_argument(
        "--height-mm", type=float, default=6.0, help="height of the scene (default %(default)s)"
    )
    parser.add_argument(
        "--mpp",
        type=float,
        nargs="+",
        default=[0.25],
        help="um per pixel, one or x and y (default 0.25: 40x)",
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed is another section (default 1)")
    parser.add_argument(
        "--compression", choices=["jpeg", "deflate"], default="jpeg", help="default %(default)s"
    )
    options = parser.parse_args()
    if len(options.mpp) > 2:
        parser.error("--mpp takes one number, or two: x and y")
    began = time.perf_counter()
    try:
        path = make_sample_slide(
            options.out,
            options.width_mm,
            options.height_mm,
            (options.mpp[0], options.mpp[-1]),
            options.seed,
            options.compression,
        )
    except ValueError as error:
        parser.error(str(error))
    megabytes = path.stat().st_size / 1e6
    print(
        f"{path}: {megabytes:.0f} MB in {time.perf_counter() - began:.0f} s; truth in {truth_png(path).name}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
