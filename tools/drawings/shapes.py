"""Shapes as signed distances, after Inigo Quilez, https://iquilezles.org/articles/distfunctions2d.

Each takes x [1, n] and y [m, 1], y down, in units of the shape's radius, and gives [m, n] float32, negative inside.
All fit the square from -1.1 to 1.1 and look equally large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Distance = Callable[[Array, Array], Array]

_ROUND = 0.06  # radius of the corners


def circle(x: Array, y: Array) -> Array:
    """A disc of radius 1."""
    return np.hypot(x, y) - 1


def square(x: Array, y: Array) -> Array:
    """A square with rounded corners."""
    return rectangle(x, y, 0.9, 0.9, _ROUND)


def triangle(x: Array, y: Array) -> Array:
    """An equilateral triangle, one corner up."""
    half, root = 1.0 - _ROUND, math.sqrt(3)
    x, y = np.abs(x) - half, half / root - (y - 0.22)
    beyond = x + root * y > 0
    x, y = np.where(beyond, (x - root * y) / 2, x), np.where(beyond, (-root * x - y) / 2, y)
    x = x - np.clip(x, -2 * half, 0)
    return -np.hypot(x, y) * np.sign(y) - _ROUND


def star(x: Array, y: Array) -> Array:
    """A star of five points, one up."""
    radius, depth = 1.06, 0.48
    cos, sin = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = np.abs(x), -(y - 0.06)
    for side in (1, -1):
        over = 2 * np.maximum(side * cos * x - sin * y, 0)
        x, y = x - over * side * cos, y + over * sin
    x, y = np.abs(x), y - radius
    edge_x, edge_y = depth * sin, depth * cos - 1
    along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0, radius)
    return np.hypot(x - edge_x * along, y - edge_y * along) * np.sign(y * edge_x - x * edge_y) - _ROUND / 2


def heart(x: Array, y: Array) -> Array:
    """A heart, its point down."""
    scale = 1.62
    x, y = np.abs(x) / scale, (0.9 - y) / scale
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    along = np.maximum(x + y, 0) / 2
    flank = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, flank) * scale - _ROUND / 2


def diamond(x: Array, y: Array) -> Array:
    """A rhombus, taller than wide."""
    wide, tall = 0.78, 1.08
    return (np.abs(x) * tall + np.abs(y) * wide - wide * tall) / math.hypot(wide, tall)


def ring(x: Array, y: Array) -> Array:
    """An annulus."""
    return np.abs(np.hypot(x, y) - 0.77) - 0.23


def cross(x: Array, y: Array) -> Array:
    """An upright cross of equal arms."""
    return np.minimum(rectangle(x, y, 1.0, 0.34, _ROUND), rectangle(x, y, 0.34, 1.0, _ROUND))


def rectangle(x: Array, y: Array, wide: float, tall: float, corner: float = 0.0) -> Array:
    """A box reaching `wide` and `tall` from its middle."""
    dx, dy = np.abs(x) - (wide - corner), np.abs(y) - (tall - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - corner


def polygon(corners: Sequence[tuple[float, float]]) -> Distance:
    """The convex polygon with these corners, in clockwise order as they are seen."""
    sides = []
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = math.hypot(bx - ax, by - ay)
        out_x, out_y = (by - ay) / length, (ax - bx) / length
        sides.append((out_x, out_y, out_x * ax + out_y * ay))

    def distance(x: Array, y: Array) -> Array:
        return np.maximum.reduce([(x * out_x - far) + y * out_y for out_x, out_y, far in sides])

    return distance


SHAPES: Mapping[str, Distance] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "diamond": diamond,
    "ring": ring,
    "cross": cross,
}
