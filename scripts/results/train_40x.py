"""A network of 50 x 50 px at 40x from one slide's outlines: their left half trains, their right half tests.

Each outline is cut at its middle, and the slide is cut into patches twice, as `left` and as
`right`, each labelled by its half of the outlines. The network is trained on the one and measured on the other.

python -m scripts.results.train_40x ../shared/data/slides/breast_40x.svs ../shared/data/slides/breast_40x.geojson \
    --out runs/train_40x
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import shapely

from wsi_pipeline.cli import infer_slide, tile_slides, train_model
from wsi_pipeline.models.model import load_model

TRAIN, TEST = "left", "right"
# Every other patch along x and y: neighbours at 40x say nearly the same.
TILES = "grid: {patch_px: 50, mpp: 0.25, stride_px: 100, min_tissue: 0.5}\n"


def halves(outlines: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The left halves of the outlines (GeoJSON), and the right ones: each is cut at its own middle."""
    sides: dict[str, list[dict[str, Any]]] = {TRAIN: [], TEST: []}
    for feature in outlines["features"]:
        polygon = shapely.geometry.shape(feature["geometry"])
        left, top, right, bottom = polygon.bounds
        middle = (left + right) / 2
        for name, start, end in ((TRAIN, left, middle), (TEST, middle, right)):
            half = shapely.intersection(polygon, shapely.box(start, top, end, bottom))
            sides[name].append({**feature, "geometry": shapely.geometry.mapping(half)})
    return {name: {**outlines, "features": features} for name, features in sides.items()}


def main(argv: list[str] | None = None) -> float:
    """Run it all; gives the AUROC on the half that was not trained on."""
    parser = argparse.ArgumentParser(
        description="Train on the left half of a slide's outlines, test on the right."
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("outlines", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="train/idc_40x")
    parser.add_argument("--tiles", default=TILES, help="config of tile-slides, as text")
    parser.add_argument("--map", action="store_true", help="map the slide with it, too")
    args = parser.parse_args(argv)
    folder = args.out / "outlines"
    folder.mkdir(parents=True, exist_ok=True)
    for name, half in halves(json.loads(args.outlines.read_text())).items():
        (folder / f"{name}.geojson").write_text(json.dumps(half))
    with (args.out / "slides.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("slide", "name"), *((args.slide.resolve(), name) for name in (TRAIN, TEST))]
        )
    (args.out / "tiles.yaml").write_text(args.tiles)
    tiles, run = args.out / "tiles", args.out / "model"
    cut = [args.out / "slides.csv", "--out", tiles, "--config", args.out / "tiles.yaml"]
    _run(tile_slides.main, *cut, "--annotations", folder, "--export")
    _run(train_model.main, "--config", args.config, "--data", tiles, "--out", run)
    (weights,) = run.glob("*.safetensors")
    auroc = float(load_model(weights).card.metrics["val"]["auroc"])
    print(f"AUROC on the right half: {auroc:.3f}")
    if args.map:
        _run(infer_slide.main, args.slide, "--out", args.out / "maps", "--model", weights)
    return auroc


def _run(command: Any, *arguments: Any) -> None:
    if code := command([str(each) for each in arguments]):
        raise SystemExit(code)


if __name__ == "__main__":
    main()
