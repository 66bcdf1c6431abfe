"""What is right and wrong in a picture, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image
from scipy.stats import binomtest

from drawings import Landscape
from evaluation.lab import Pixels
from evaluation.landscape_reading import LandscapeReading, read_landscape
from evaluation.orders import Order, Painter
from evaluation.shapes_reading import ShapesReading, read_shapes

THUMBNAIL = 192
"""Longer side in pixels of the pictures that are kept to be looked at."""
EVERYTHING = "everything"
"""The share of pictures in which all attributes are right."""


@dataclass(frozen=True, eq=False)
class Graded:
    """A picture that was read."""

    order: Order
    reading: ShapesReading | LandscapeReading
    thumbnail: Image.Image

    @cached_property
    def right(self) -> Mapping[str, bool]:
        """For each attribute that the prompt tells, whether the picture has it."""
        scene = self.order.scene
        asked = {name: getattr(scene, name) for name in scene.ATTRIBUTES}
        return {name: getattr(self.reading, name) == value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval for the true share, at 95 %."""
        found = binomtest(self.hits, self.total).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%})"


def grade(order: Order, pixels: Pixels) -> Graded:
    """Read the picture that an order for a drawing led to."""
    read = read_landscape if isinstance(order.scene, Landscape) else read_shapes
    thumbnail = Image.fromarray(pixels)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return Graded(order, read(pixels), thumbnail)


def grade_all(paint: Painter, orders: Sequence[Order]) -> Iterator[Graded]:
    """Have pictures made and read them, one by one."""
    for order, pixels in zip(orders, paint(orders), strict=True):
        yield grade(order, pixels)


def accuracy(graded: Iterable[Graded]) -> dict[str, Share]:
    """By attribute, of the prompts that tell it, and of everything at once."""
    graded = list(graded)
    names = dict.fromkeys(name for picture in graded for name in picture.right)
    shares = {name: _share(p.right[name] for p in graded if name in p.right) for name in names}
    return {**shares, EVERYTHING: _share(all(p.right.values()) for p in graded)}


def _share(right: Iterable[bool]) -> Share:
    right = list(right)
    return Share(sum(right), len(right))
