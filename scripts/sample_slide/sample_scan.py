"""The sample slide's scene as a scanner gives it: light, pixels, the file's pyramid, and the truth beside it."""

import io
import json
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from scripts.sample_slide.sample_noise import Array, hash01
from scripts.sample_slide.sample_scene import SCENE_UM, Scene
from scripts.sample_slide.sample_stains import Window, stains
from wsi_pipeline.base.files import new_file

TRUTH_UM = 4.0  # scale of the truth picture: that of the public IDC patches
GLASS = 243  # level of empty glass in scans of whole mounts
# Tissue, carcinoma, glass: the values 0 and 1 of the truth picture would look alike.
TRUTH_PALETTE = bytes([222, 170, 200, 160, 20, 60]) + bytes([GLASS] * 762)
TILE_PX = 256
BLOCK_TILES = 4
LEVEL_STEP = 4
NOISE_SD = 1.3  # scanner noise, grey levels at level 0
JPEG_QUALITY = 80

# Optical densities (red, green, blue) of unit stain: medians over 61 patients of the public IDC patches
# (Macenko's method, first and last percentile of the angle; quartiles 0.51-0.56, 0.71-0.75, 0.41-0.45 and
# 0.08-0.11, 0.82-0.85, 0.51-0.56), eosin's blue a little lower to give the median colours of stroma.
HAEMATOXYLIN = np.array([0.54, 0.74, 0.42], np.float32)
EOSIN = np.array([0.091, 0.834, 0.50], np.float32)


def render(scene: Scene, window: Window) -> Array:
    """The window as 8 bit RGB of shape (height, width, 3): the light the stains let through."""
    image = np.full((window.height, window.width, 3), GLASS, np.uint8)
    stain = stains(scene, window)
    if stain is None:
        return image
    haem, eosin = (np.float32(-math.log(10)) * value for value in (stain.haem, stain.eosin))
    for channel in range(3):
        light = np.exp(haem * HAEMATOXYLIN[channel] + eosin * EOSIN[channel])
        image[..., channel] = np.clip(light * GLASS + 0.5, 8, GLASS)
    return image


@dataclass(frozen=True)
class Scan:
    """How the scene is sampled: micrometres per pixel and size in pixels at level 0."""

    mpp_x: float
    mpp_y: float
    width0: int
    height0: int
    noise: Array  # int8 (side, side, 3) stored as uint8, laid over the scan at shifting offsets


def plan_scan(width_um: float, height_um: float, mpp: tuple[float, float], seed: int) -> Scan:
    """A scan that holds at least the asked size, in multiples of 64 px so that every level is exact."""
    multiple = LEVEL_STEP**3
    width0, height0 = (
        math.ceil(round(length / step / multiple, 6)) * multiple
        for length, step in zip((width_um, height_um), mpp, strict=True)
    )
    rng = np.random.default_rng([seed, 1])
    side = TILE_PX * BLOCK_TILES + 256
    noise = np.rint(rng.normal(0, NOISE_SD, (side, side, 3))).clip(-6, 6).astype(np.int8).view(np.uint8)
    return Scan(*mpp, width0, height0, noise)


def scan_block(scene: Scene, scan: Scan, x0: int, y0: int, width: int, height: int) -> Array:
    """Level-0 pixels [x0, x0 + width) by [y0, y0 + height) as uint8 RGB, area-averaged from the lattice."""
    step_x, step_y = scan.mpp_x / SCENE_UM, scan.mpp_y / SCENE_UM
    left, top, right, bottom = x0 * step_x, y0 * step_y, (x0 + width) * step_x, (y0 + height) * step_y
    margin_x, margin_y = (math.ceil(2 * max(1.0, step)) + 2 for step in (step_x, step_y))
    column, row = math.floor(left) - margin_x, math.floor(top) - margin_y
    window = Window(column, row, math.ceil(right) + margin_x - column, math.ceil(bottom) + margin_y - row)
    lattice = Image.fromarray(render(scene, window))
    box = (left - column, top - row, right - column, bottom - row)
    pixels = np.asarray(lattice.resize((width, height), Image.Resampling.BICUBIC, box=box))
    shift_x, shift_y = (int(256 * hash01(np.array([x0]), np.array([y0]), salt)[0]) for salt in (1, 2))
    # Light never comes within 6 levels of 0 or 255, so the noise cannot wrap around.
    pixels = np.clip(pixels, 6, 249)
    return pixels + scan.noise[shift_y : shift_y + height, shift_x : shift_x + width]


def encode_tiles(pixels: Array, compression: str) -> list[list[bytes]]:
    """Rows of encoded tiles of a block; what a tile lacks at the right and bottom repeats its last pixel."""
    height, width = pixels.shape[:2]
    pad = ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0))
    padded = np.pad(pixels, pad, mode="edge") if pad[0][1] or pad[1][1] else pixels
    rows = []
    for top in range(0, padded.shape[0], TILE_PX):
        tiles = [
            padded[top : top + TILE_PX, left : left + TILE_PX] for left in range(0, padded.shape[1], TILE_PX)
        ]
        rows.append([encode_tile(tile, compression) for tile in tiles])
    return rows


def encode_tile(tile: Array, compression: str) -> bytes:
    """One storage tile as TIFF stores it."""
    if compression == "deflate":
        return zlib.compress(tile.tobytes(), 4)
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def in_order(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], Any]], ahead: int) -> Iterator[Any]:
    """Results of the calls in their order, at most `ahead` of them waiting."""
    waiting: deque[Future[Any]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def level0_tiles(
    scene: Scene, scan: Scan, compression: str, reduced: Array, pool: ThreadPoolExecutor, workers: int
) -> Iterator[bytes]:
    """Encoded tiles of level 0, row by row; fills `reduced` with level 1 on the way."""
    block_px = TILE_PX * max(
        1, min(BLOCK_TILES, int(BLOCK_TILES * 0.25 / min(scan.mpp_x, scan.mpp_y) + 0.01))
    )

    def make(x0: int, y0: int) -> list[list[bytes]]:
        width, height = min(block_px, scan.width0 - x0), min(block_px, scan.height0 - y0)
        pixels = scan_block(scene, scan, x0, y0, width, height)
        small = Image.fromarray(pixels).reduce(LEVEL_STEP)
        x1, y1 = x0 // LEVEL_STEP, y0 // LEVEL_STEP
        reduced[y1 : y1 + small.height, x1 : x1 + small.width] = small
        return encode_tiles(pixels, compression)

    columns = range(0, scan.width0, block_px)
    calls = (lambda x0=x0, y0=y0: make(x0, y0) for y0 in range(0, scan.height0, block_px) for x0 in columns)
    blocks = in_order(pool, calls, 3 * workers)
    for _ in range(0, scan.height0, block_px):
        row_of_blocks = [next(blocks) for _ in columns]
        for rows in zip(*row_of_blocks, strict=True):
            for tiles in rows:
                yield from tiles


def write_pyramid(path: Path, scene: Scene, scan: Scan, compression: str, workers: int) -> None:
    """The slide as a tiled pyramid; Aperio's description where the name ends in .svs, else plain TIFF."""
    if path.suffix == ".svs" and scan.mpp_x != scan.mpp_y:
        raise ValueError(
            f"{path}: an .svs has one scale for x and y, not {scan.mpp_x} and {scan.mpp_y}: use .tiff"
        )
    raw_bytes = 3 * scan.width0 * scan.height0  # classic TIFF ends at 4 GiB
    kind: dict[str, Any] = {"compression": "adobe_deflate", "photometric": "rgb"}
    if compression == "jpeg":
        kind = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)}
    with (
        ThreadPoolExecutor(workers) as pool,
        new_file(path) as file,
        tifffile.TiffWriter(file, bigtiff=raw_bytes > 3.9e9) as tiff,
    ):

        def write_level(tiles: Iterator[bytes], width: int, height: int, downsample: int) -> None:
            size = f"{scan.width0}x{scan.height0} [0,0 {width}x{height}] ({TILE_PX}x{TILE_PX})"
            scale = f"AppMag = {10 / scan.mpp_x:g}|MPP = {scan.mpp_x:g}"
            tiff.write(
                tiles,
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                subfiletype=0 if downsample == 1 else 1,
                resolution=(1e4 / scan.mpp_x / downsample, 1e4 / scan.mpp_y / downsample),
                resolutionunit="CENTIMETER",
                description=f"Aperio Image Library (generated scene)\r\n{size}|{scale}"
                if path.suffix == ".svs"
                else None,
                metadata=None,
                software="make_sample_slide",
                **kind,
            )

        level = np.empty((scan.height0 // LEVEL_STEP, scan.width0 // LEVEL_STEP, 3), np.uint8)
        tiles = level0_tiles(scene, scan, compression, level, pool, workers)
        write_level(tiles, scan.width0, scan.height0, 1)
        for downsample in (LEVEL_STEP, LEVEL_STEP**2, LEVEL_STEP**3):
            encoded = (tile for row in encode_tiles(level, compression) for tile in row)
            write_level(encoded, level.shape[1], level.shape[0], downsample)
            level = np.asarray(Image.fromarray(level).reduce(LEVEL_STEP))


def write_truth(path: Path, scene: Scene, scan: Scan) -> None:
    """`<name>_truth.png` and `<name>_truth.geojson` beside the slide."""
    rows = math.ceil(scan.height0 * scan.mpp_y / TRUTH_UM)
    columns = math.ceil(scan.width0 * scan.mpp_x / TRUTH_UM)
    truth = np.empty((rows, columns), np.uint8)
    x_um = ((np.arange(columns) + 0.5) * TRUTH_UM)[None, :]
    for top in range(0, rows, 256):
        y_um = ((np.arange(top, min(top + 256, rows)) + 0.5) * TRUTH_UM)[:, None]
        truth[top : top + 256] = scene.truth(*np.broadcast_arrays(x_um, y_um))
    picture = Image.fromarray(truth)
    picture.putpalette(TRUTH_PALETTE)
    picture.save(truth_png(path))
    features = []
    for number, mass in enumerate(scene.masses, start=1):
        ring = mass.polygon_um(720) / (scan.mpp_x, scan.mpp_y)
        points = [[round(float(x0), 1), round(float(y0), 1)] for x0, y0 in [*ring, ring[0]]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [points]},
                "properties": {
                    "objectType": "annotation",
                    "name": f"Carcinoma {number}",
                    "classification": {"name": "Tumor", "color": [200, 0, 0]},
                },
            }
        )
    truth_geojson(path).write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def truth_png(path: Path) -> Path:
    """Where a slide's truth picture lies."""
    return path.with_name(path.stem + "_truth.png")


def truth_geojson(path: Path) -> Path:
    """Where a slide's true outlines lie."""
    return path.with_name(path.stem + "_truth.geojson")
