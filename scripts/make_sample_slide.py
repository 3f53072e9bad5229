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
import io
import json
import math
import os
import sys
import time
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
from scipy import ndimage

Array = np.ndarray[Any, Any]

SCENE_UM = 0.5  # the scene's lattice: about what a 0.75 NA objective resolves
MID_UM = 2.0  # slow fields (distances, nests, fibre coordinates) are computed here, then interpolated
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


# ------------------------------------------------------------------ randomness as a function of place


def hash01(ix: Array, iy: Array, salt: int) -> Array:
    """Uniform float32 in [0, 1) of whole numbers (ix, iy) and a salt: the same wherever it is asked."""
    h = ix.astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1)
    h ^= iy.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77)
    h ^= np.uint32((salt * 0xC2B2AE3D) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    h ^= h >> np.uint32(16)
    return (h >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)


class Noise:
    """Smooth noise of zero mean and unit variance over the plane, periodic after many features."""

    def __init__(self, rng: np.random.Generator, size: int, feature_px: int) -> None:
        white = rng.standard_normal((size, size), dtype=np.float32)
        table = ndimage.gaussian_filter(white, feature_px / 2, mode="wrap")
        self._table = (table - table.mean()) / table.std()
        self._feature_px = feature_px

    def at(self, x: Array, y: Array, feature_x: float, feature_y: float, salt: int) -> Array:
        """Noise at points (x, y), interpolated; blobs are about `feature_x` by `feature_y` units wide."""
        rows = y * (self._feature_px / feature_y) + 61.7 * salt
        columns = x * (self._feature_px / feature_x) + 137.3 * salt
        return ndimage.map_coordinates(self._table, (rows, columns), order=1, mode="grid-wrap")


def smooth_step(values: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, a straight ramp between."""
    return np.clip((values - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)


# ------------------------------------------------------------------ what the scene is made of


@dataclass(frozen=True)
class Blob:
    """A star-shaped outline: radius, as a fraction, by angle around a centre, in micrometres."""

    x_um: float
    y_um: float
    radius_x_um: float
    radius_y_um: float
    amplitudes: Array
    phases: Array

    def radius_at(self, angle: Array) -> Array:
        """Radius by angle, as a fraction of the mean radius."""
        radius = np.ones_like(angle)
        for k, (amplitude, phase) in enumerate(zip(self.amplitudes, self.phases, strict=True), start=2):
            radius += amplitude * np.cos(k * angle + phase)
        return radius

    def depth_um(self, x_um: Array, y_um: Array) -> Array:
        """How far inside the outline points lie, along the ray from its centre; negative outside."""
        u, v = (x_um - self.x_um) / self.radius_x_um, (y_um - self.y_um) / self.radius_y_um
        return (self.radius_at(np.arctan2(v, u)) - np.hypot(u, v)) * min(self.radius_x_um, self.radius_y_um)

    def polygon_um(self, vertices: int) -> Array:
        """The outline as a ring of points (x, y) of shape (vertices, 2)."""
        angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
        radius = self.radius_at(angle)
        return np.stack(
            [
                self.x_um + self.radius_x_um * radius * np.cos(angle),
                self.y_um + self.radius_y_um * radius * np.sin(angle),
            ],
            axis=1,
        )


def random_blob(
    rng: np.random.Generator, centre_um: tuple[float, float], radius_um: tuple[float, float], roughness: float
) -> Blob:
    """A blob whose outline's waves fall off with their number."""
    waves = np.arange(2, 16)
    amplitudes = roughness * rng.uniform(0.4, 1.0, waves.size) / waves**0.9
    phases = rng.uniform(0, 2 * np.pi, waves.size)
    return Blob(*centre_um, *radius_um, amplitudes, phases)


@dataclass(frozen=True)
class Scene:
    """All that is decided before the first pixel: outlines, glands, noise tables, nuclei to stamp."""

    seed: int
    width_um: float
    height_um: float
    section: Blob
    masses: tuple[Blob, ...]
    acini: Array  # float32 (n, 5): x, y, outer radius, lumen radius, phase of the wobble; um
    vessels: Array  # the same of small vessels
    lobules: Array  # float32 (n, 3): x, y, radius of the loose stroma around acini; um
    slow: Noise
    fine: Noise
    stamps: dict[str, Array]  # kind: float32 (variants, side, side), haematoxylin relative to the kind's mean

    def tissue_depth_um(self, x_um: Array, y_um: Array) -> Array:
        """Distance inside the section's outline, um; negative on glass."""
        rough = (
            self.slow.at(x_um, y_um, 620, 620, 4) * 55
            + self.slow.at(x_um, y_um, 160, 160, 1) * 14
            + self.slow.at(x_um, y_um, 35, 35, 2) * 4
        )
        return self.section.depth_um(x_um, y_um) + rough

    def tumour_depth_um(self, x_um: Array, y_um: Array) -> Array:
        """Distance inside the nearest mass, um; negative outside."""
        return np.max([mass.depth_um(x_um, y_um) for mass in self.masses], axis=0)

    @property
    def margin_um(self) -> float:
        """Width of the margin in which a mass thins out."""
        return min(90.0, 0.015 * min(self.width_um, self.height_um))

    def truth(self, x_um: Array, y_um: Array) -> Array:
        """uint8: 0 tissue that is not tumour, 1 carcinoma, 255 glass."""
        kind = (self.tumour_depth_um(x_um, y_um) > 0).astype(np.uint8)
        kind[self.tissue_depth_um(x_um, y_um) < 0] = 255
        return kind


def make_scene(width_um: float, height_um: float, seed: int) -> Scene:
    """The scene of a seed: tumour, ducts and section are laid out in proportion, cells are of true size."""
    rng = np.random.default_rng(seed)
    slow, fine = Noise(rng, 1024, 8), Noise(rng, 2048, 8)
    centre = (width_um / 2, height_um / 2)
    section = random_blob(rng, centre, (0.43 * width_um, 0.425 * height_um), 0.06)
    short = min(width_um, height_um)
    masses = (
        random_blob(rng, (0.37 * width_um, 0.47 * height_um), (0.225 * short, 0.21 * short), 0.16),
        random_blob(rng, (0.735 * width_um, 0.60 * height_um), (0.115 * short, 0.105 * short), 0.16),
    )
    stamps = {
        "tumour": np.stack([nucleus_stamp(rng, 37, (3.6, 7.0), (0.55, 0.95), 0.35) for _ in range(160)]),
        "epithelium": np.stack([nucleus_stamp(rng, 25, (2.9, 3.6), (0.75, 0.95), 0.15) for _ in range(64)]),
        "lymphocyte": np.stack([nucleus_stamp(rng, 21, (2.7, 3.4), (0.85, 1.0), 0.12) for _ in range(48)]),
        "spindle": np.stack(
            [
                nucleus_stamp(rng, 37, (5.0, 7.5), (0.16, 0.30), 0.12, angle=math.pi * step / SPINDLE_ANGLES)
                for step in range(SPINDLE_ANGLES)
                for _ in range(SPINDLE_VARIANTS)
            ]
        ),
    }
    scene = Scene(
        seed,
        width_um,
        height_um,
        section,
        masses,
        np.empty((0, 5)),
        np.empty((0, 5)),
        np.empty((0, 3)),
        slow,
        fine,
        stamps,
    )
    acini, lobules = place_glands(rng, scene)
    vessels = place_vessels(rng, scene, lobules)
    return Scene(seed, width_um, height_um, section, masses, acini, vessels, lobules, slow, fine, stamps)


SPINDLE_ANGLES, SPINDLE_VARIANTS = 24, 6


def nucleus_stamp(
    rng: np.random.Generator,
    side: int,
    long_um: tuple[float, float],
    flatness: tuple[float, float],
    chromatin: float,
    angle: float | None = None,
) -> Array:
    """A nucleus on a square of `side` lattice points: float32, about 1 inside and 0 outside.

    `long_um` bounds the longer half axis, `flatness` the ratio of the axes, `chromatin` is how coarse it is.
    """
    half_long = rng.uniform(*long_um)
    half_short = half_long * rng.uniform(*flatness)
    angle = rng.uniform(0, math.pi) if angle is None else angle
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) * SCENE_UM
    u = (x * math.cos(angle) + y * math.sin(angle)) / half_long
    v = (y * math.cos(angle) - x * math.sin(angle)) / half_short
    around = np.arctan2(v, u)
    edge = 1.0
    for k, amplitude in ((2, 0.05), (3, 0.06), (5, 0.03)):
        edge = edge + amplitude * rng.uniform(-1, 1) * np.cos(k * around + rng.uniform(0, 2 * math.pi))
    radius = np.hypot(u, v) / edge
    inside = np.clip((1 - radius) * half_short / 0.7 + 0.5, 0, 1)
    clumps = ndimage.gaussian_filter(rng.standard_normal((side, side)), 1.4)
    clumps /= clumps.std()
    rim = np.exp(-(((radius - 0.88) / 0.16) ** 2))
    texture = 1 - 0.5 * chromatin + chromatin * (0.55 * clumps + 0.9 * rim)
    return (inside * np.clip(texture, 0.25, 1.6) * rng.uniform(0.8, 1.15)).astype(np.float32)


def place_glands(rng: np.random.Generator, scene: Scene) -> tuple[Array, Array]:
    """Benign ducts and lobules away from the masses: acini and the loose stroma about each lobule."""
    acini: list[tuple[float, ...]] = []
    lobules: list[tuple[float, ...]] = []
    area_mm2 = scene.width_um * scene.height_um / 1e6
    for _ in range(max(2, round(0.75 * area_mm2))):
        x, y = rng.uniform(0, scene.width_um), rng.uniform(0, scene.height_um)
        is_duct = rng.random() < 0.45
        reach = rng.uniform(35, 80) if is_duct else rng.uniform(60, 130)
        here = np.array([x]), np.array([y])
        crowded = any(math.hypot(x - lx, y - ly) < reach + lr + 60 for lx, ly, lr in lobules)
        on_edge = scene.tissue_depth_um(*here)[0] < reach + 100
        if crowded or on_edge or scene.tumour_depth_um(*here)[0] > -(reach + 180):
            continue
        lobules.append((x, y, reach + 25))
        if is_duct:
            acini.append((x, y, reach, reach - rng.uniform(13, 17), rng.uniform(0, 2 * math.pi)))
            continue
        placed: list[tuple[float, float, float]] = []
        for _ in range(500):
            radius = rng.uniform(11, 19)
            away = reach * math.sqrt(rng.random())
            turn = rng.uniform(0, 2 * math.pi)
            ax, ay = x + away * math.cos(turn), y + away * math.sin(turn)
            if all(math.hypot(ax - px, ay - py) > radius + pr + 1.5 for px, py, pr in placed):
                placed.append((ax, ay, radius))
                acini.append((ax, ay, radius, max(1.5, radius - 12), rng.uniform(0, 2 * math.pi)))
    return np.array(acini, np.float32).reshape(-1, 5), np.array(lobules, np.float32).reshape(-1, 3)


def place_vessels(rng: np.random.Generator, scene: Scene, lobules: Array) -> Array:
    """Small vessels in the stroma, none in a mass or a lobule."""
    vessels = []
    for _ in range(round(1.5 * scene.width_um * scene.height_um / 1e6)):
        x, y = rng.uniform(0, scene.width_um), rng.uniform(0, scene.height_um)
        outer = rng.uniform(12, 32)
        inner, phase = outer * rng.uniform(0.45, 0.7), rng.uniform(0, 2 * math.pi)
        here = np.array([x]), np.array([y])
        free = all(math.hypot(x - lx, y - ly) > lr + outer + 20 for lx, ly, lr in lobules)
        inside = scene.tissue_depth_um(*here)[0] > 120 and scene.tumour_depth_um(*here)[0] < -80
        if free and inside:
            vessels.append((x, y, outer, inner, phase))
    return np.array(vessels, np.float32).reshape(-1, 5)


# ------------------------------------------------------------------ the scene at points


@dataclass(frozen=True)
class Window:
    """A rectangle of the scene's lattice: first column and row, and size, in lattice points."""

    column: int
    row: int
    width: int
    height: int

    def grid_um(self, step_um: float, margin: int) -> tuple[Array, Array, int, int]:
        """Points (x, y) of a grid of `step_um` over the window and a margin, and its first indices."""
        per = round(step_um / SCENE_UM)
        first_x, first_y = self.column // per - margin, self.row // per - margin
        count_x = (self.column + self.width - 1) // per + margin + 1 - first_x
        count_y = (self.row + self.height - 1) // per + margin + 1 - first_y
        x = ((first_x + np.arange(count_x) + 0.5) * step_um).astype(np.float32)
        y = ((first_y + np.arange(count_y) + 0.5) * step_um).astype(np.float32)
        x_um, y_um = np.meshgrid(x, y)
        return x_um, y_um, first_x, first_y


@dataclass
class Layers:
    """The slow fields of a window on the MID_UM grid, and how to take them to the lattice or to points."""

    window: Window
    x_um: Array
    y_um: Array
    first_x: int
    first_y: int

    def to_lattice(self, field: Array) -> Array:
        """The field at every point of the window, interpolated."""
        per = round(MID_UM / SCENE_UM)
        left = self.window.column / per - self.first_x
        top = self.window.row / per - self.first_y
        box = (left, top, left + self.window.width / per, top + self.window.height / per)
        size = (self.window.width, self.window.height)
        image = Image.fromarray(np.ascontiguousarray(field, np.float32))
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))

    def at(self, field: Array, x_um: Array, y_um: Array) -> Array:
        """The field at points, from the nearest grid point."""
        column = np.clip((x_um / MID_UM).astype(np.int64) - self.first_x, 0, field.shape[1] - 1)
        row = np.clip((y_um / MID_UM).astype(np.int64) - self.first_y, 0, field.shape[0] - 1)
        return field[row, column]


def scattered(
    layers: Layers, spacing_um: float, salt: int, jitter: float
) -> tuple[Array, Array, Array, Array]:
    """Points on a jittered grid over the window and a margin: x, y (um) and whole-number names of each."""
    x, y = layers.x_um, layers.y_um
    ix, iy = np.meshgrid(
        np.arange(math.floor(x[0, 0] / spacing_um) - 1, math.ceil(x[0, -1] / spacing_um) + 1),
        np.arange(math.floor(y[0, 0] / spacing_um) - 1, math.ceil(y[-1, 0] / spacing_um) + 1),
    )
    ix, iy = ix.ravel(), iy.ravel()
    shift_x = 0.5 + jitter * (hash01(ix, iy, salt) - 0.5)
    shift_y = 0.5 + jitter * (hash01(ix, iy, salt + 1) - 0.5)
    shift_x = shift_x + 0.5 * (iy & 1)  # rows set off by half a step: closer to how cells pack
    return (ix + shift_x) * spacing_um, (iy + shift_y) * spacing_um, ix, iy


def fat_field(scene: Scene, layers: Layers) -> Array:
    """Depth inside the nearest fat vacuole, um (negative between vacuoles): cells around scattered seeds."""
    x, y = layers.x_um, layers.y_um
    spacing = 64.0  # adipocytes are 50-100 um wide
    margin = 2 * spacing
    ix, iy = np.meshgrid(
        np.arange(math.floor((x[0, 0] - margin) / spacing), math.ceil((x[0, -1] + margin) / spacing)),
        np.arange(math.floor((y[0, 0] - margin) / spacing), math.ceil((y[-1, 0] + margin) / spacing)),
    )
    ix, iy = ix.ravel(), iy.ravel()
    seed = scene.seed
    sx = (ix + 0.5 * (iy & 1) + 0.75 * hash01(ix, iy, seed + 11)) * np.float32(spacing)
    sy = (iy + 0.75 * hash01(ix, iy, seed + 12)) * np.float32(spacing)
    is_fat = fatness(scene, sx, sy) > 0.9 * (hash01(ix, iy, seed + 13) - 0.5)
    reach = 25 + 14 * hash01(ix, iy, seed + 14)
    bonus = 10 * hash01(ix, iy, seed + 15)  # larger cells push their walls outward
    nearest = np.full(x.shape, 1e3, np.float32)
    second = nearest.copy()
    limit = np.full(x.shape, -10, np.float32)
    for cx, cy, radius, grow in zip(sx[is_fat], sy[is_fat], reach[is_fat], bonus[is_fat], strict=True):
        distance = np.hypot(x - cx, y - cy)
        weighted = distance - grow
        closer = weighted < nearest
        second = np.where(closer, nearest, np.minimum(second, weighted))
        limit = np.where(closer, radius + grow - distance, limit)
        nearest = np.where(closer, weighted, nearest)
    return np.minimum((second - nearest) / 2, limit)


def ring_fields(layers: Layers, rings: Array) -> tuple[Array, Array]:
    """Depth inside the nearest ring's outer wall and inside its lumen, um; negative outside."""
    x, y = layers.x_um, layers.y_um
    wall = np.full(x.shape, -50, np.float32)
    lumen = wall.copy()
    for ring_x, ring_y, outer, inner, phase in rings:
        if near_window(layers, ring_x, ring_y, outer * 1.3 + 50):
            radius = outer * wobble(np.arctan2(y - ring_y, x - ring_x), phase)
            distance = np.hypot(x - ring_x, y - ring_y)
            wall = np.maximum(wall, radius - distance)
            lumen = np.maximum(lumen, radius - (outer - inner) - distance)
    return wall, lumen


def wobble(angle: Array, phase: float) -> Array:
    """Radius of a ring by angle, as a fraction of its mean."""
    return 1 + 0.10 * np.cos(2 * angle + phase) + 0.06 * np.cos(3 * angle + 2 * phase)


def within(discs: Array, x_um: Array, y_um: Array) -> Array:
    """1 inside discs (x, y, radius), 0 outside, with a soft edge of 40 um."""
    inside = np.zeros(x_um.shape, np.float32)
    for x, y, radius in discs:
        inside = np.maximum(inside, smooth_step(radius - np.hypot(x_um - x, y_um - y), -20, 20))
    return inside


def near_window(layers: Layers, x_um: float, y_um: float, reach_um: float) -> bool:
    """Whether a disc touches the window's grid."""
    x, y = layers.x_um, layers.y_um
    return bool(
        x[0, 0] - reach_um < x_um < x[0, -1] + reach_um and y[0, 0] - reach_um < y_um < y[-1, 0] + reach_um
    )


def fatness(scene: Scene, x_um: Array, y_um: Array) -> Array:
    """Where fat is likely: above 0. It keeps away from masses, glands and vessels and likes the edge."""
    clear_um = min(420.0, 0.07 * min(scene.width_um, scene.height_um))
    near_mass = smooth_step(scene.tumour_depth_um(x_um, y_um), -clear_um, 0.15 * clear_um)
    near_edge = smooth_step(scene.tissue_depth_um(x_um, y_um), 1.2 * clear_um, 0)
    taken = within(np.concatenate([scene.lobules, scene.vessels[:, :3] + (0, 0, 45)]), x_um, y_um)
    low = scene.slow.at(x_um, y_um, 900, 900, 31) + 0.45 * scene.slow.at(x_um, y_um, 260, 260, 32)
    return low - 0.25 + 0.5 * near_edge - 3.5 * near_mass - 2 * taken


def fibre_coordinates(scene: Scene, x_um: Array, y_um: Array, tumour: Array) -> tuple[Array, Array]:
    """(across, along), um: the first changes from fibre to fibre, the second runs with them.

    Fibres wind slowly, are crimped at the scale of a cell, and bend around a mass.
    """
    noise = scene.slow.at
    turn = 2 * math.pi * hash01(np.array([scene.seed]), np.array([7]), 3)[0]
    across = y_um * math.cos(turn) - x_um * math.sin(turn) + 0.5 * np.clip(-tumour, 0, 350)
    for amplitude, feature, salt in ((420, 1500, 22), (60, 320, 23), (10, 80, 25), (2.4, 24, 21)):
        across += amplitude * noise(x_um, y_um, feature, feature, salt)
    along = x_um * math.cos(turn) + y_um * math.sin(turn)
    for amplitude, feature, salt in ((300, 1500, 24), (7, 9, 28)):
        along += amplitude * noise(x_um, y_um, feature, feature, salt)
    return across, along


def nest_depth(
    scene: Scene, layers: Layers, tumour: Array, vacuole: Array, across: Array, along: Array
) -> Array:
    """About how far inside a nest of carcinoma points lie, um; negative outside.

    Blobs in places, cords along the fibres in others, sheets where much has grown; sparse at the margin.
    """
    x, y, noise = layers.x_um, layers.y_um, scene.slow.at
    cords = smooth_step(noise(x, y, 600, 600, 41), -0.4, 0.6)
    blobs = noise(x, y, 30, 30, 42) + 0.55 * noise(x, y, 14, 14, 43)
    strands = noise(along, across, 90, 15, 44) + 0.45 * noise(x, y, 14, 14, 45)
    growth = blobs * (1 - cords) + strands * cords + 0.3 * noise(x, y, 420, 420, 46)
    sparse = np.exp(-np.maximum(tumour, 0) / scene.margin_um) + 0.05 * np.maximum(-tumour, 0)
    depth = (growth + 0.45 - sparse) * 13  # noise to um: one unit of the blobs' noise in about 13 um
    return np.where((vacuole > -2) | (tumour < -80), np.minimum(depth, -8), depth)


@dataclass
class Fields:
    """The slow fields of a window on its grid: depths inside things in um (negative outside), or 0 to 1."""

    tissue: Array
    tumour: Array
    vacuole: Array
    nest: Array
    hollow: Array  # 0 to 1: lumen of a tubule within a nest
    wall: Array  # of glands
    lumen: Array
    vessel: Array
    blood: Array
    loose: Array  # 0 to 1: stroma of a lobule
    across: Array
    along: Array


def slow_fields(scene: Scene, layers: Layers) -> Fields | None:
    """What lies where in a window; None where it is all glass."""
    x, y, noise = layers.x_um, layers.y_um, scene.slow.at
    tissue = scene.tissue_depth_um(x, y)
    if tissue.max() < -20:
        return None
    tumour = scene.tumour_depth_um(x, y)
    wall, lumen = ring_fields(layers, scene.acini)
    vessel, blood = ring_fields(layers, scene.vessels)
    vacuole = np.where(np.maximum(wall, vessel) > -12, -10, fat_field(scene, layers))
    across, along = fibre_coordinates(scene, x, y, tumour)
    nest = nest_depth(scene, layers, tumour, vacuole, across, along)
    tubules = noise(x, y, 24, 24, 48) + 0.5 * noise(x, y, 500, 500, 49)
    hollow = smooth_step(nest, 6, 8) * smooth_step(tubules, 2.1, 2.25)
    loose = within(scene.lobules, x, y)
    return Fields(tissue, tumour, vacuole, nest, hollow, wall, lumen, vessel, blood, loose, across, along)


@dataclass
class Stains:
    """Haematoxylin and eosin at each point of a window: float32, in units of the stains' directions."""

    haem: Array
    eosin: Array

    def lay(self, cover: Array, haem: Array | float, eosin: Array | float) -> None:
        """Replace what is there by these stains, as far as `cover` (0 to 1) says."""
        self.haem += cover * (haem - self.haem)
        self.eosin += cover * (eosin - self.eosin)

    def clear(self, cover: Array, left: float = 0.0) -> None:
        """Take tissue away where `cover` is 1, but for the share `left`."""
        self.haem *= 1 - (1 - left) * cover
        self.eosin *= 1 - (1 - left) * cover


def stains(scene: Scene, window: Window) -> Stains | None:
    """The stains at each point of the window; None where it is all glass."""
    layers = Layers(window, *window.grid_um(MID_UM, margin=10))
    fields = slow_fields(scene, layers)
    if fields is None:
        return None
    x, y, up, noise = layers.x_um, layers.y_um, layers.to_lattice, scene.slow.at
    grain = scene.fine.at(*np.broadcast_arrays(up(x), up(y)), 3.5, 3.5, 3)
    across, along = up(fields.across), up(fields.along)
    fibres = scene.fine.at(across, along, 2.2, 15, 1)
    bundles = scene.fine.at(across, along, 6, 38, 2)
    nuclei = stamp_nuclei(scene, layers, fields)

    # Stroma: fibres in bundles that part here and there, looser in lobules, paler and bluer in a mass (the
    # paler pixels of real carcinoma hold about 0.12 of either stain). Eosin and its unevenness over some 50 um
    # are such that patches have the median colour and the contrast of real fibrous stroma.
    provoked = up(smooth_step(fields.tumour, -50, 60))
    parting = up(0.6 * noise(x, y, 350, 350, 26))
    tissue = smooth_step(bundles + 0.5 * fibres + 0.2 * grain + parting, -2.1, -1.6)
    eosin = 0.275 + 0.02 * grain + 0.03 * (fibres + bundles) + up(0.06 * noise(x, y, 55, 55, 27))
    haem = 0.03 + 0.012 * (bundles + grain) + 0.08 * provoked
    eosin = (
        np.maximum(eosin, 0.06)
        * (1 - up(0.35 * fields.loose))
        * (1 - 0.35 * provoked)
        * (0.15 + 0.85 * tissue)
    )
    stain = Stains(np.maximum(haem, 0.01) * (0.3 + 0.7 * tissue), eosin)

    # Carcinoma: cytoplasm that takes both stains; here and there a nest has shrunk from its stroma.
    nest = up(fields.nest)
    inside = smooth_step(nest, -0.8, 0.8)
    retracted = up(smooth_step(noise(x, y, 70, 70, 47), 0.7, 1.0))
    stain.clear(smooth_step(nest, -5.5, -4) * (1 - inside) * retracted, left=0.08)
    stain.lay(inside, 0.16 + 0.03 * grain, 0.11 + 0.025 * grain)
    stain.clear(up(fields.hollow), left=0.08)

    if fields.wall.max() > -2:
        stain.lay(smooth_step(up(fields.wall), -0.7, 0.7), 0.11, 0.14 + 0.02 * grain)
        stain.clear(smooth_step(up(fields.lumen), -0.7, 0.7), left=0.06)
    if fields.vessel.max() > -2:  # a wall of muscle, red cells within
        stain.lay(smooth_step(up(fields.vessel), -1.5, 1.5), 0.05, 0.30 + 0.03 * grain)
        red_cells = 0.45 * smooth_step(grain, -1.3, -0.9)
        stain.lay(smooth_step(up(fields.blood), -0.7, 0.7), 0.0, red_cells)
    stain.clear(smooth_step(up(fields.vacuole) + 0.25 * fibres, 0.9, 2.1), left=0.013)

    stain.eosin *= 1 - 0.8 * np.minimum(nuclei, 1)
    np.maximum(stain.haem, nuclei, out=stain.haem)
    present = smooth_step(up(fields.tissue), -1.5, 1.5)
    stain.eosin *= present * (1 + up(0.10 * noise(x, y, 1300, 1300, 61)))  # staining is never even
    stain.haem *= present * (1 + up(0.08 * noise(x, y, 1100, 1100, 62)))
    return stain


def stamp_nuclei(scene: Scene, layers: Layers, fields: Fields) -> Array:
    """Haematoxylin of all nuclei of the window: carcinoma, lymphocytes, fibroblasts, epithelium of glands."""
    window, seed, at = layers.window, scene.seed, layers.at
    canvas = np.zeros((window.height, window.width), np.float32)
    rings = np.maximum(fields.wall, fields.vessel)
    stroma = (fields.tissue > 3) & (fields.vacuole < 0.5) & (fields.nest < -2.5) & (rings < -2.5)

    x, y, ix, iy = scattered(layers, 9.8, seed + 101, 0.9)
    alone = hash01(ix, iy, seed + 105) < at(0.16 * smooth_step(fields.tumour, 0, 60), x, y)
    nested = at((fields.nest > 1.5) & (fields.hollow == 0) & (fields.tissue > 3), x, y)
    keep = nested | (alone & at(stroma, x, y))
    paint(canvas, window, scene.stamps["tumour"], x[keep], y[keep], ix[keep], iy[keep], 0.60, seed + 103)

    # Lymphocytes: a few everywhere, more within a mass, clusters about its outline.
    clusters = scene.slow.at(layers.x_um, layers.y_um, 150, 150, 51) - 1.5 - np.abs(fields.tumour + 40) / 260
    chance = np.clip(clusters, 0, 0.9) + 0.006 + 0.06 * smooth_step(fields.tumour, -40, 60)
    x, y, ix, iy = scattered(layers, 7.6, seed + 111, 0.75)
    keep = at(stroma, x, y) & (hash01(ix, iy, seed + 113) < at(chance, x, y))
    paint(canvas, window, scene.stamps["lymphocyte"], x[keep], y[keep], ix[keep], iy[keep], 0.9, seed + 114)

    # Fibroblasts lie along the fibres, more of them where the tumour provokes the stroma.
    chance = 0.22 + 0.55 * smooth_step(fields.tumour, -50, 50)
    x, y, ix, iy = scattered(layers, 17.0, seed + 121, 0.95)
    keep = at(stroma, x, y) & (hash01(ix, iy, seed + 123) < at(chance, x, y))
    x, y, ix, iy = x[keep], y[keep], ix[keep], iy[keep]
    slope_y, slope_x = np.gradient(fields.across)
    angle = np.arctan2(at(slope_x, x, y), -at(slope_y, x, y)) + 0.35 * (hash01(ix, iy, seed + 124) - 0.5)
    step = np.round(angle / np.pi * SPINDLE_ANGLES).astype(np.int64) % SPINDLE_ANGLES
    choice = step * SPINDLE_VARIANTS + (hash01(ix, iy, seed + 125) * SPINDLE_VARIANTS).astype(np.int64)
    paint(canvas, window, scene.stamps["spindle"], x, y, ix, iy, 0.62, seed + 126, choice)

    x, y, ix, iy = gland_nuclei(scene, layers)
    paint(canvas, window, scene.stamps["epithelium"], x, y, ix, iy, 0.72, seed + 131)
    return canvas


def gland_nuclei(scene: Scene, layers: Layers) -> tuple[Array, Array, Array, Array]:
    """Nuclei of benign glands, in one row along the wall: x, y (um) and their names."""
    xs, ys, names, numbers = [np.empty(0)], [np.empty(0)], [np.empty(0, int)], [np.empty(0, int)]
    for name, (gx, gy, outer, _, phase) in enumerate(scene.acini):
        if not near_window(layers, gx, gy, outer * 1.3 + 5):
            continue
        count = round(2 * math.pi * outer / 7.2)
        number = np.arange(count)
        named = np.full(count, name)
        angle = 2 * np.pi * (number + 0.5 * hash01(named, number, scene.seed + 132)) / count
        away = outer * wobble(angle, phase) - 3.6 - 2.5 * hash01(named, number, scene.seed + 133)
        xs.append(gx + away * np.cos(angle))
        ys.append(gy + away * np.sin(angle))
        names.append(named)
        numbers.append(number)
    return np.concatenate(xs), np.concatenate(ys), np.concatenate(names), np.concatenate(numbers)


def paint(
    canvas: Array,
    window: Window,
    stamps: Array,
    x_um: Array,
    y_um: Array,
    ix: Array,
    iy: Array,
    density: float,
    salt: int,
    choice: Array | None = None,
) -> None:
    """Lay stamps on the canvas, darkest wins; which stamp and how dark follow from each nucleus's name."""
    if choice is None:
        choice = (hash01(ix, iy, salt) * len(stamps)).astype(np.int64)
    darkness = density * (0.8 + 0.4 * hash01(ix, iy, salt + 1))
    side = stamps.shape[1]
    left = np.floor(x_um / SCENE_UM).astype(np.int64) - side // 2 - window.column
    top = np.floor(y_um / SCENE_UM).astype(np.int64) - side // 2 - window.row
    visible = (left > -side) & (top > -side) & (left < window.width) & (top < window.height)
    for which, dark, x, y in zip(
        choice[visible], darkness[visible], left[visible], top[visible], strict=True
    ):
        target = canvas[max(y, 0) : y + side, max(x, 0) : x + side]
        stamp = stamps[which, max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
        np.maximum(target, stamp * dark, out=target)


# ------------------------------------------------------------------ light, scanner, file


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
        tifffile.TiffWriter(path, bigtiff=raw_bytes > 3.9e9) as tiff,
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
    partial = path.with_name(path.stem + ".partial" + path.suffix)
    write_truth(path, scene, scan)
    write_pyramid(partial, scene, scan, compression, workers or os.cpu_count() or 1)
    partial.replace(path)
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
