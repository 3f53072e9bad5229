"""What the sample slide's scene is made of, decided before the first pixel: outlines, glands, vessels, nuclei."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from scripts.sample_slide.sample_noise import Array, Noise

SCENE_UM = 0.5  # the scene's lattice: about what a 0.75 NA objective resolves
SPINDLE_ANGLES, SPINDLE_VARIANTS = 24, 6


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
