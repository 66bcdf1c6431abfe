"""From a scene to pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drawings.canvas import Canvas
from drawings.landscapes import paint_landscape
from drawings.palette import COLOURS
from drawings.sampling import resolved
from drawings.scene import Landscape, Scene, Shapes
from drawings.shapes import SHAPES, Array

RADII = {"small": 0.135, "medium": 0.19, "large": 0.265}
"""Radius of a shape of each size, in units of the picture's shorter side."""

# Drawings of the same words differ by little: a network that cannot know where an edge will be draws a blur between all
# the places where it may be, and learns of shapes only that they are somehow round.
_SWAY = 0.01
"""How far a group may stand off its place to either side, as a share of the axis."""
_MARGIN = 0.05
_GAP = 2.35  # distance of neighbouring shapes' middles, in radii


@dataclass(frozen=True)
class Placement:
    """Where one shape stands, in units of the picture's shorter side, and how far it is turned, in radians."""

    x: float
    y: float
    radius: float
    angle: float


def draw(scene: Scene, width: int = 512, height: int = 512) -> NDArray[np.uint8]:
    """The picture of a scene: [height, width, 3] uint8, sRGB. The same scene and size give the same bytes."""
    scene = resolved(scene)
    canvas = Canvas(width, height)
    if isinstance(scene, Landscape):
        paint_landscape(canvas, scene)
    else:
        _paint_shapes(canvas, scene)
    return canvas.pixels()


def placements(scene: Shapes, across: float, down: float) -> list[Placement]:
    """Where the shapes of a scene stand on a picture `across` by `down` units large."""
    rng = np.random.default_rng([scene.variation, 1])
    radius = RADII[scene.size] * rng.uniform(0.97, 1.03)
    offsets = _arrangement(scene, rng)
    reach_x = radius * (1.08 + max(abs(x) for x, _ in offsets))
    reach_y = radius * (1.08 + max(abs(y) for _, y in offsets))
    x = across * _along(scene.position, ("left", "right"), reach_x / across, rng)
    y = down * _along(scene.position, ("top", "bottom"), reach_y / down, rng)
    lean = rng.uniform(-0.03, 0.03)
    return [Placement(x + dx * radius, y + dy * radius, radius, lean + rng.uniform(-0.01, 0.01)) for dx, dy in offsets]


def _arrangement(scene: Shapes, rng: np.random.Generator) -> Sequence[tuple[float, float]]:
    """Where the shapes of a group stand around its middle, in radii."""
    ends = {1: [0.0], 2: [-_GAP / 2, _GAP / 2], 3: [-_GAP, 0.0, _GAP]}[scene.count]
    if scene.position in ("left", "right"):
        return [(0.0, along) for along in ends]
    if scene.count == 3 and scene.position == "center" and (scene.size != "small" or rng.random() < 0.5):
        height = _GAP * math.sqrt(3) / 2
        return [(0.0, -height / 2), (-_GAP / 2, height / 2), (_GAP / 2, height / 2)]
    return [(along, 0.0) for along in ends]


def _along(position: str, sides: tuple[str, str], reach: float, rng: np.random.Generator) -> float:
    """The middle of a group that reaches so far to either side, as a share of an axis; `sides` are its two ends."""
    edge = max(reach + _MARGIN, 0.24)
    sway = rng.uniform(-_SWAY, _SWAY)
    if sides[0] in position:
        return edge + (sway + _SWAY) / 2
    if sides[1] in position:
        return 1 - edge - (sway + _SWAY) / 2
    return 0.5 + sway


def _paint_shapes(canvas: Canvas, scene: Shapes) -> None:
    ground = COLOURS[scene.background]
    canvas.fill(ground * 1.03, ground * 0.97)
    placed = placements(scene, canvas.across, canvas.down)
    for place in placed:
        _paint_shape(canvas, scene.shape, place, ground * 0.72, drop=0.09)
    for place in placed:
        _paint_shape(canvas, scene.shape, place, COLOURS[scene.colour])


def _paint_shape(canvas: Canvas, shape: str, place: Placement, colour: Array, drop: float = 0.0) -> None:
    """One shape; or, as much further down as `drop` radii, its soft shadow."""
    cos, sin, radius = math.cos(place.angle), math.sin(place.angle), place.radius
    cx, cy = place.x + drop * radius / 3, place.y + drop * radius

    def distance(x: Array, y: Array) -> Array:
        x, y = (x - np.float32(cx)) / radius, (y - np.float32(cy)) / radius
        return SHAPES[shape](x * cos + y * sin, y * cos - x * sin) * radius

    reach = 1.15 * radius
    box = (cx - reach, cy - reach, cx + reach, cy + reach)
    if drop:
        canvas.paint(distance, colour, box, blur=0.35 * radius, opacity=0.6)
    else:
        canvas.paint(distance, colour, box, shade=0.05)
