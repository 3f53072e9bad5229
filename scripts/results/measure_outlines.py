"""How right outlines are on whole mounts, for cells of several sizes: overlap, area, boundary, and what the grid does.

Each mount is mapped as `infer-slide` maps it, with patches side by side (cells of 200 um) and overlapping (100 um),
and once more with the grid moved by half a patch. The truth is the set's own labels, squares of 200 um: boundaries
are compared with the outline of those squares, so no distance can be much below 50 um.

python -m scripts.results.measure_outlines runs/results/slides --manifest ../shared/data/idc/manifest.csv
"""

import argparse
import csv
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.ndimage
import tifffile
from numpy.typing import NDArray

import wsi_pipeline as wp
from scripts.doc_sections import put_section
from wsi_pipeline.results.regions import rasterise
from wsi_pipeline.slides.annotations.cell_labels import IDC, UNLABELLED, labels_of_picture
from wsi_pipeline.slides.names import slide_name

# Pixels that masks are compared on.
PIXEL_UM = 20.0
PATCH_PX, MPP = 50, 4.0
CELLS_UM = (200, 100)
ABOUT = (
    "The validation patients' whole mounts, mapped with cells of several sizes (`--cell-um`). *Dice*: tissue in "
    "regions against labelled IDC, over all of them. *Area*: IDC in regions over IDC labelled, median and range of "
    "those that hold 1 mm2 or more. *To labels*: from each point of a region's outline to the nearest of the labels' "
    "outline, which is one of squares of 200 um itself, median and what 95 of 100 points lie within; large where a "
    "region has no labelled IDC near it. *From labels*: from each point of the labels' outline to the nearest of a "
    "region's; large where IDC was missed. Whole mounts without a region or without labelled IDC have neither. "
    "*Shifted*: Dice between the regions and those of the same "
    "whole mount with the grid moved by half a patch along x and y. Written by "
    "`python -m scripts.results.measure_outlines runs/results/slides --manifest ../shared/data/idc/manifest.csv "
    "--out docs/results.md`, after `make results` made the slides."
)

log = logging.getLogger("measure_outlines")


def main() -> None:
    """Map, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", type=Path, help="whole mounts with their pictures of labels")
    parser.add_argument("--manifest", type=Path, required=True, help="says which patients are of which side")
    parser.add_argument("--split", default="val", help="the side to measure on")
    parser.add_argument("--cells-um", type=int, nargs="*", default=CELLS_UM)
    parser.add_argument("--threshold-low", type=float, help="of DelineateOptions: hysteresis")
    parser.add_argument("--out", type=Path, help="a page whose section on outlines is written anew")
    parser.add_argument("--json", type=Path, help="the numbers go here too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with options.manifest.open(newline="") as file:
        side = {row["patient"] for row in csv.DictReader(file) if row["split"] == options.split}
    mounts = [path for path in sorted(options.slides.glob("*.tif*")) if slide_name(path) in side]
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as work:
        for cell_um in options.cells_um:
            measured = [measure(path, cell_um, options.threshold_low, Path(work)) for path in mounts]
            found[cell_um] = total(measured)
            rows.append(row_of(cell_um, found[cell_um]))
            print(rows[-1], flush=True)
    text = "\n".join(
        [
            f"{len(mounts)} whole mounts.",
            "",
            "| cells, um | Dice | area, median (range) | to labels, um | from labels, um | shifted | seconds each |",
            "| ---: | ---: | --- | --- | --- | ---: | ---: |",
            *rows,
        ]
    )
    print(text)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    if options.out:
        put_section(options.out, "outlines", f"## Outlines\n\n{ABOUT}\n\n{text}")


def measure(path: Path, cell_um: int, low: float | None, work: Path) -> dict[str, object]:
    """What one mount comes to."""
    with wp.open_slide(path) as slide:
        step = PIXEL_UM / slide.mpp[0]
        shape = (int(slide.size0.height / step), int(slide.size0.width / step))
        picture = path.with_name(f"{slide.name}_labels.png")
        labels = labels_of_picture(picture, slide.size0, wp.Plane(step, step), shape)
    idc, known = labels == IDC, labels != UNLABELLED
    config = wp.InferConfig(
        grid=wp.GridOptions(cell_um=cell_um), delineate=wp.DelineateOptions(threshold_low=low)
    )
    began = time.perf_counter()
    here = regions_of(path, config, work / "here", idc.shape)
    seconds = time.perf_counter() - began
    moved_path = shifted(path, work / path.name)
    moved = regions_of(moved_path, config, work / "moved", idc.shape, PATCH_PX // 2)
    return {
        "idc": idc,
        "found": here & known,
        "moved": moved & known,
        "seconds": seconds,
        "to_labels": boundary_um(here & known, idc),
        "from_labels": boundary_um(idc, here & known),
    }


def regions_of(
    path: Path, config: wp.InferConfig, out: Path, shape: tuple[int, ...], moved_px: int = 0
) -> NDArray[np.bool_]:
    """Regions on pixels of PIXEL_UM, from where the slide began before it was moved by so many level-0 pixels."""
    shutil.rmtree(out, ignore_errors=True)
    result = wp.infer_slide(path, out, config=config)
    step = PIXEL_UM / result.summary["mpp"][0]
    plane = wp.Plane(step, step, moved_px, moved_px)
    return rasterise(list(result.regions), plane, (shape[0], shape[1]))


def shifted(path: Path, to: Path) -> Path:
    """The mount with half a patch of its own background added at the left and the top, so that the grid moves."""
    with tifffile.TiffFile(path) as file:
        pixels = file.pages[0].asarray()
    pad = PATCH_PX // 2
    pixels = np.pad(pixels, ((pad, 0), (pad, 0), (0, 0)), mode="edge")
    with tifffile.TiffWriter(to) as writer:
        writer.write(
            pixels,
            tile=(256, 256),
            photometric="rgb",
            metadata=None,
            resolution=(1e4 / MPP, 1e4 / MPP),
            resolutionunit="CENTIMETER",
        )
    return to


def boundary_um(of: NDArray[np.bool_], to: NDArray[np.bool_]) -> NDArray[np.float64]:
    """From each pixel of the outline of one mask to the nearest of another's, in um; none where either is empty."""
    edges = [mask & ~scipy.ndimage.binary_erosion(mask) for mask in (of, to)]
    if not all(edge.any() for edge in edges):
        return np.empty(0)
    distance = scipy.ndimage.distance_transform_edt(~edges[1])
    return np.asarray(distance[edges[0]] * PIXEL_UM)


def total(measured: list[dict[str, object]]) -> dict[str, float]:
    """Over all mounts."""
    both = sum(int((m["found"] & m["idc"]).sum()) for m in measured)  # type: ignore[operator]
    one, other = (sum(int(m[name].sum()) for m in measured) for name in ("found", "idc"))  # type: ignore[attr-defined]
    same = sum(int((m["found"] & m["moved"]).sum()) for m in measured)  # type: ignore[operator]
    moved = sum(int(m["moved"].sum()) for m in measured)  # type: ignore[attr-defined]
    pixel_mm2 = (PIXEL_UM / 1000) ** 2
    areas = [
        m["found"].sum() / m["idc"].sum()  # type: ignore[attr-defined]
        for m in measured
        if m["idc"].sum() * pixel_mm2 >= 1  # type: ignore[attr-defined]
    ]
    to_labels, from_labels = (
        np.concatenate([m[name] for m in measured])  # type: ignore[misc]
        for name in ("to_labels", "from_labels")
    )
    return {
        "dice": 2 * both / (one + other),
        "area_median": float(np.median(areas)),
        "area_lowest": float(min(areas)),
        "area_highest": float(max(areas)),
        "areas": len(areas),
        "to_labels_median_um": float(np.median(to_labels)),
        "to_labels_95_um": float(np.percentile(to_labels, 95)),
        "from_labels_median_um": float(np.median(from_labels)),
        "from_labels_95_um": float(np.percentile(from_labels, 95)),
        "shifted_dice": 2 * same / (one + moved),
        "seconds": float(np.mean([m["seconds"] for m in measured])),  # type: ignore[arg-type]
    }


def row_of(cell_um: int, row: dict[str, float]) -> str:
    """A row of the table."""
    return (
        f"| {cell_um} | {row['dice']:.3f} | {row['area_median']:.2f} ({row['area_lowest']:.2f} to "
        f"{row['area_highest']:.2f}) | {row['to_labels_median_um']:.0f}, 95 % {row['to_labels_95_um']:.0f} | "
        f"{row['from_labels_median_um']:.0f}, 95 % {row['from_labels_95_um']:.0f} | "
        f"{row['shifted_dice']:.3f} | {row['seconds']:.1f} |"
    )


if __name__ == "__main__":
    main()
