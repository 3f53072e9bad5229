"""The sample slide's scene at points: how much haematoxylin and eosin is where."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from scripts.sample_slide.sample_noise import Array, hash01, smooth_step
from scripts.sample_slide.sample_scene import SCENE_UM, SPINDLE_ANGLES, SPINDLE_VARIANTS, Scene

MID_UM = 2.0  # slow fields (distances, nests, fibre coordinates) are computed here, then interpolated


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
