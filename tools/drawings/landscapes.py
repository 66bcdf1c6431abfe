"""The illustrated scenes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from drawings.canvas import Canvas
from drawings.palette import COLOURS, rgb
from drawings.scene import Landscape
from drawings.shapes import Array, polygon, star


@dataclass(frozen=True, eq=False)
class Light:
    """How a time of day looks. Skies and seas go from a colour at the top to one at the bottom."""

    sky: tuple[Array, Array]
    sea: tuple[Array, Array]
    tint: Array
    """What the light leaves of a thing's colour."""
    windows: Array

    def on(self, code: str) -> Array:
        """The colour of six hexadecimal digits in this light."""
        return rgb(code) * self.tint


_LIGHTS: Mapping[str, Light] = {
    "day": Light(
        sky=(rgb("63BDF0"), rgb("D3EEFA")),
        sea=(rgb("2F8FC4"), rgb("1B6A9E")),
        tint=np.array([1.0, 1.0, 1.0], np.float32),
        windows=rgb("DDF3FB"),
    ),
    "sunset": Light(
        sky=(rgb("EE6A50"), rgb("FFCF7A")),
        sea=(rgb("D96F63"), rgb("7C4A78")),
        tint=np.array([1.0, 0.91, 0.84], np.float32),
        windows=rgb("DDDDD3"),
    ),
    "night": Light(
        sky=(rgb("141A40"), rgb("3A4382")),
        sea=(rgb("27347A"), rgb("121A45")),
        tint=np.array([0.76, 0.78, 0.9], np.float32),
        windows=rgb("FFE08A"),
    ),
}


@dataclass(frozen=True, eq=False)
class Stage:
    """Where a subject is painted: around `x`, on ground that begins at `horizon`."""

    canvas: Canvas
    light: Light
    colour: Array
    """The subject's, in this light."""
    x: float
    horizon: float
    rng: np.random.Generator

    def jitter(self) -> float:
        """A small shift, so that no two pictures are alike."""
        return self.rng.uniform(-0.01, 0.01)

    def meadows(self, far: str, near: str, *, depth: float, swing: float) -> None:
        """Two hills, the nearer one `depth` below the horizon."""
        self.canvas.hill(self.horizon, swing, self.light.on(far), self.rng)
        self.canvas.hill(self.horizon + depth, swing * 0.7, self.light.on(near), self.rng)


def paint_landscape(canvas: Canvas, scene: Landscape) -> None:
    """Paint a scene that leaves nothing open over the whole canvas."""
    rng = np.random.default_rng([scene.variation, 2])
    light = _LIGHTS[scene.time]
    canvas.fill(*light.sky)
    # The sun or moon stands on the right, the subject a little to the left. Were it sometimes the other way round,
    # which no caption tells, a small network would often paint two.
    _HEAVENS[scene.time](canvas, canvas.across * 0.81, rng)
    stage = Stage(
        canvas,
        light,
        colour=COLOURS[scene.colour] * np.sqrt(light.tint),  # in the best light, so that it can be told
        x=canvas.across * 0.46,
        horizon=canvas.down * rng.uniform(0.67, 0.69),
        rng=rng,
    )
    _SUBJECTS[scene.subject](stage)


def _day(canvas: Canvas, x: float, rng: np.random.Generator) -> None:
    y = 0.2 + rng.uniform(-0.01, 0.01)
    canvas.disc(x, y, 0.14, rgb("FFF3C4"), opacity=0.45, blur=0.1)
    canvas.disc(x, y, 0.085, rgb("FFDB4D"))
    x = canvas.across - x
    puffs = [(x - 0.075, y, 0.04), (x, y - 0.015, 0.058), (x + 0.075, y, 0.045)]
    canvas.discs(puffs, rgb("FFFFFF"), opacity=0.9)


def _sunset(canvas: Canvas, x: float, rng: np.random.Generator) -> None:
    y = 0.46 + rng.uniform(-0.01, 0.01)
    canvas.disc(x, y, 0.2, rgb("FFE3A0"), opacity=0.5, blur=0.14)
    canvas.disc(x, y, 0.11, rgb("FFF0B8"))


def _night(canvas: Canvas, x: float, rng: np.random.Generator) -> None:
    y, radius = 0.2 + rng.uniform(-0.01, 0.01), 0.095
    for _ in range(9):
        star_x, star_y, size = (
            rng.uniform(0.04, canvas.across - 0.04),
            rng.uniform(0.04, 0.42),
            rng.uniform(0.012, 0.02),
        )
        if math.hypot(star_x - x, star_y - y) > 0.17:  # not on the moon or in its glow
            _paint_star(canvas, star_x, star_y, size)
    canvas.disc(x, y, 0.17, rgb("6C77B8"), opacity=0.35, blur=0.12)

    def crescent(px: Array, py: Array) -> Array:
        bite = np.hypot(px - x - 0.05, py - y + 0.03) - 0.8 * radius
        return np.maximum(np.hypot(px - x, py - y) - radius, -bite)

    canvas.paint(crescent, rgb("FFF2C6"), (x - radius, y - radius, x + radius, y + radius))


def _paint_star(canvas: Canvas, x: float, y: float, size: float) -> None:
    def distance(px: Array, py: Array) -> Array:
        return star((px - np.float32(x)) / size, (py - np.float32(y)) / size) * size

    canvas.paint(distance, rgb("F4EFD2"), (x - size, y - size, x + size, y + size), opacity=0.9)


def _house(stage: Stage) -> None:
    canvas, light, x = stage.canvas, stage.light, stage.x
    stage.meadows("8CCB6B", "68B556", depth=0.1, swing=0.03)
    base, wide, wood = stage.horizon + 0.17, 0.22, light.on("5A3D38")
    top = base - 0.3 + stage.jitter()
    canvas.box((x + 0.1, top - 0.19, x + 0.155, top), light.on("8A5A48"))  # chimney
    canvas.box((x - wide, top, x + wide, base), stage.colour, shade=0.05)
    roof = [(x - wide - 0.06, top + 0.01), (x, top - 0.22), (x + wide + 0.06, top + 0.01)]
    canvas.polygon(roof, light.on("A8594A"))
    canvas.box((x - 0.045, base - 0.15, x + 0.045, base), wood)  # door
    for middle in (x - 0.13, x + 0.13):
        canvas.box((middle - 0.047, top + 0.065, middle + 0.047, top + 0.159), wood)
        canvas.box((middle - 0.034, top + 0.078, middle + 0.034, top + 0.146), light.windows)


def _boat(stage: Stage) -> None:
    canvas, light, x = stage.canvas, stage.light, stage.x
    shore = stage.horizon - 0.06
    canvas.fill(*light.sea, start=shore)
    water = shore + 0.14
    mast = water - 0.5 + stage.jitter()
    canvas.box((x - 0.008, mast - 0.02, x + 0.008, water), light.on("5A3D38"))
    canvas.polygon([(x + 0.02, mast), (x + 0.23, water - 0.07), (x + 0.02, water - 0.07)], stage.colour, shade=0.05)
    jib = [(x - 0.02, mast + 0.08), (x - 0.02, water - 0.07), (x - 0.17, water - 0.07)]
    canvas.polygon(jib, stage.colour, shade=0.05)
    hull = [(x - 0.24, water - 0.04), (x + 0.26, water - 0.04), (x + 0.17, water + 0.06), (x - 0.16, water + 0.06)]
    canvas.polygon(hull, light.on("7B4B3A"), shade=0.06)
    foam = (light.sea[0] + light.sky[1]) / 2
    canvas.box((x - 0.22, water + 0.055, x + 0.22, water + 0.068), foam, corner=0.006)
    for _ in range(6):
        wave_x = stage.rng.uniform(0.1, canvas.across - 0.1)
        wave_y = stage.rng.uniform(water + 0.1, canvas.down - 0.04)
        canvas.box((wave_x - 0.06, wave_y - 0.006, wave_x + 0.06, wave_y + 0.006), foam, corner=0.006)


def _tree(stage: Stage) -> None:
    canvas, light, x, ground = stage.canvas, stage.light, stage.x, stage.horizon
    canvas.hill(ground, 0.02, light.on("A5D98A"), stage.rng)
    canvas.disc(x, ground + 0.9, 0.9, light.on("6FBF5C"))
    trunk = [(-0.045, 0.05), (-0.025, -0.2), (0.025, -0.2), (0.045, 0.05)]
    canvas.polygon([(x + dx, ground + dy) for dx, dy in trunk], light.on("7B523F"))
    top = ground - 0.3 + stage.jitter()
    crown = [(-0.12, 0.05, 0.12), (0.12, 0.05, 0.12), (0.0, -0.02, 0.15), (-0.07, -0.1, 0.12), (0.07, -0.1, 0.12)]
    canvas.discs([(x + dx, top + dy, radius) for dx, dy, radius in crown], stage.colour, shade=0.08)


def _mountains(stage: Stage) -> None:
    light, x, base = stage.light, stage.x, stage.horizon + 0.12
    peak = 0.4 + stage.jitter()
    hazy = 0.6 * stage.colour + 0.4 * light.sky[1]
    _paint_mountain(stage, (x - 0.33, peak + 0.05), 0.42, hazy, snow=0.055)
    _paint_mountain(stage, (x + 0.36, peak + 0.02), 0.4, hazy, snow=0.055)
    _paint_mountain(stage, (x, peak - 0.1), 0.5, stage.colour, snow=0.09)
    stage.canvas.hill(base - 0.03, 0.02, light.on("7CBF6A"), stage.rng)
    stage.canvas.hill(base + 0.08, 0.015, light.on("5FA653"), stage.rng)


def _paint_mountain(stage: Stage, peak: tuple[float, float], wide: float, colour: Array, *, snow: float) -> None:
    """A mountain, and the snow that reaches so far down from its peak."""
    x, y = peak
    corners = [(x, y), (x + wide, stage.horizon + 0.12), (x - wide, stage.horizon + 0.12)]
    stage.canvas.polygon(corners, colour, shade=0.06)
    rock = polygon(corners)

    def cap(px: Array, py: Array) -> Array:
        return np.maximum(rock(px, py), py - np.float32(y + snow) - 0.015 * np.sin(70 * (px - np.float32(x))))

    stage.canvas.paint(cap, stage.light.on("F7F9FC"), (x - wide, y, x + wide, y + snow + 0.02))


def _flower(stage: Stage) -> None:
    canvas, light, x = stage.canvas, stage.light, stage.x
    stage.meadows("8CCB6B", "68B556", depth=0.12, swing=0.025)
    y, foot, stem = 0.43 * canvas.down + stage.jitter(), 0.94 * canvas.down, light.on("3F8F45")
    canvas.box((x - 0.014, y, x + 0.014, foot), stem)
    for side in (-1, 1):
        leaf = [(0, -0.1), (0.07, -0.19), (0.17, -0.21), (0.1, -0.11)]
        canvas.polygon([(x + side * dx, foot + dy) for dx, dy in leaf[::side]], stem)
    turn = stage.rng.uniform(0, 1)
    angles = [2 * math.pi * (petal + turn) / 6 for petal in range(6)]
    petals = [(x + 0.125 * math.cos(angle), y + 0.125 * math.sin(angle), 0.085) for angle in angles]
    canvas.discs(petals, stage.colour, shade=0.06)
    canvas.disc(x, y, 0.07, light.on("8A5A3C"))


def _balloon(stage: Stage) -> None:
    canvas, light, x = stage.canvas, stage.light, stage.x
    stage.meadows("A5D98A", "6FBF5C", depth=0.1, swing=0.05)
    y, radius = 0.36 * canvas.down + stage.jitter(), 0.2
    for side in (-1, 1):
        rope = [(0.085, 0.2), (0.095, 0.2), (0.045, 0.31), (0.035, 0.31)]
        canvas.polygon([(x + side * dx, y + dy) for dx, dy in rope[::side]], light.on("5A3D38"))
    skirt = polygon([(-0.165, 0.11), (0.165, 0.11), (0.08, 0.235), (-0.08, 0.235)])

    def envelope(px: Array, py: Array) -> Array:
        px, py = px - np.float32(x), py - np.float32(y)
        return np.minimum(np.hypot(px, py) - radius, skirt(px, py))

    canvas.paint(envelope, stage.colour, (x - radius, y - radius, x + radius, y + 0.235), shade=0.08)
    canvas.box((x - 0.055, y + 0.3, x + 0.055, y + 0.37), light.on("8A5A3C"), corner=0.012)


_HEAVENS: Mapping[str, Callable[[Canvas, float, np.random.Generator], None]] = {
    "day": _day,
    "sunset": _sunset,
    "night": _night,
}
_SUBJECTS: Mapping[str, Callable[[Stage], None]] = {
    "house": _house,
    "boat": _boat,
    "tree": _tree,
    "mountains": _mountains,
    "flower": _flower,
    "balloon": _balloon,
}
