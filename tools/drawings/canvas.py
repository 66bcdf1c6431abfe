"""A picture to paint on, shape over shape, with edges that are antialiased from signed distances.

Lengths are in units of the picture's shorter side: x goes right from 0 to `across`, y goes down from 0 to `down`.
Colours are [3] float32, sRGB, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drawings.shapes import Array, Distance, polygon, rectangle

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_EDGE = 0.004  # width of an edge, where pixels are not coarser


class Canvas:
    """A picture of so many pixels, blank until it is filled."""

    def __init__(self, width: int, height: int) -> None:
        short = min(width, height)
        self.across, self.down = width / short, height / short
        self._x = ((np.arange(width, dtype=np.float32) + 0.5) / short)[None]
        self._y = ((np.arange(height, dtype=np.float32) + 0.5) / short)[:, None]
        self._pixel = 1 / short
        self._rgb = np.empty((height, width, 3), np.float32)

    def pixels(self) -> NDArray[np.uint8]:
        """The picture so far: [height, width, 3] uint8, sRGB."""
        scaled = np.clip(self._rgb, 0, 1)
        scaled *= 255
        scaled += 0.5
        return scaled.astype(np.uint8)

    def fill(self, top: Array, bottom: Array, start: float = 0.0) -> None:
        """Cover everything from `start` down with a gradient between two colours."""
        rows = self._window(start, self.down, self._y.size)
        share = (self._y[rows] - start) / (self.down - start)
        self._rgb[rows] = top + (bottom - top) * share[..., None]

    def paint(
        self,
        distance: Distance,
        colour: Array,
        box: Box,
        *,
        opacity: float = 1.0,
        blur: float = 0.0,
        shade: float = 0.0,
    ) -> None:
        """Lay a colour over where `distance` is negative.

        box: surrounds what is painted
        blur: width of the edge, where more than a clean edge's is wanted
        shade: how much lighter the top left of the box is than its middle, and how much darker the bottom right
        """
        left, top, right, bottom = box
        edge = max(blur, _EDGE, 1.5 * self._pixel)
        columns = self._window(left - edge, right + edge, self._x.size)
        rows = self._window(top - edge, bottom + edge, self._y.size)
        x, y = self._x[:, columns], self._y[rows]
        if not x.size or not y.size:
            return
        cover = np.clip(0.5 - distance(x, y) / np.float32(edge), 0, 1)
        cover = cover * cover * (3 - 2 * cover) * np.float32(opacity)
        if shade:
            slope = (x - left) / (right - left) + (y - top) / (bottom - top)
            colour = colour * (1 + np.float32(shade) * (1 - slope))[..., None]
        below = self._rgb[rows, columns]
        below += cover[..., None] * (colour - below)

    def disc(self, x: float, y: float, radius: float, colour: Array, **manner: float) -> None:
        """Paint a disc around x, y; `manner` is opacity, blur, shade, as for :meth:`paint`."""
        self.discs([(x, y, radius)], colour, **manner)

    def discs(self, discs: Sequence[tuple[float, float, float]], colour: Array, **manner: float) -> None:
        """Paint the union of discs, each an x, a y and a radius."""

        def distance(px: Array, py: Array) -> Array:
            return np.minimum.reduce([np.hypot(px - np.float32(x), py - np.float32(y)) - r for x, y, r in discs])

        left, top = min(x - r for x, _, r in discs), min(y - r for _, y, r in discs)
        right, bottom = max(x + r for x, _, r in discs), max(y + r for _, y, r in discs)
        self.paint(distance, colour, (left, top, right, bottom), **manner)

    def box(self, box: Box, colour: Array, *, corner: float = 0.0, **manner: float) -> None:
        """Paint a rectangle with rounded corners."""
        left, top, right, bottom = box
        x, y = np.float32((left + right) / 2), np.float32((top + bottom) / 2)

        def distance(px: Array, py: Array) -> Array:
            return rectangle(px - x, py - y, (right - left) / 2, (bottom - top) / 2, corner)

        self.paint(distance, colour, box, **manner)

    def polygon(self, corners: Sequence[tuple[float, float]], colour: Array, **manner: float) -> None:
        """Paint a convex polygon; its corners in clockwise order."""
        xs, ys = zip(*corners, strict=True)
        self.paint(polygon(corners), colour, (min(xs), min(ys), max(xs), max(ys)), **manner)

    def hill(self, y: float, swing: float, colour: Array, rng: np.random.Generator) -> None:
        """Paint all below a wavy line around y."""
        phase, waves = np.float32(rng.uniform(0, 2 * math.pi)), rng.uniform(3.5, 5.5)

        def distance(px: Array, py: Array) -> Array:
            return np.float32(y) + swing * np.sin(waves * px + phase) - py

        self.paint(distance, colour, (0.0, y - swing, self.across, self.down))

    def _window(self, start: float, stop: float, size: int) -> slice:
        """The pixels between two places of an axis."""
        first, last = math.floor(start / self._pixel), math.ceil(stop / self._pixel)
        return slice(min(max(first, 0), size), min(max(last, 0), size))
