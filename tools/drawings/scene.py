"""What a drawing shows, in words.

An attribute that is None is left open: a caption does not tell it, and a drawing has any. `variation` is a seed: it
decides what the words leave open, and the small differences between pictures of the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from drawings.palette import COLOURS
from drawings.shapes import SHAPES

Split = Literal["train", "held-out"]

SIZES = ("small", "medium", "large")
POSITIONS = (
    "center",
    "left",
    "right",
    "top",
    "bottom",
    "top left",
    "top right",
    "bottom left",
    "bottom right",
)
TIMES = ("day", "sunset", "night")
SUBJECTS = ("house", "boat", "tree", "mountains", "flower", "balloon")
SUBJECT_COLOURS = tuple(colour for colour in COLOURS if colour != "black")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """One to three equal shapes on a plain background.

    Several shapes are never large, medium ones only in the center, and none in a corner: there is no room.
    """

    ATTRIBUTES: ClassVar = ("colour", "shape", "background", "count", "size", "position")

    background: str | None = None
    colour: str | None = None
    shape: str | None = None
    size: str = "medium"
    position: str = "center"
    count: int = 1
    variation: int = 0

    def __post_init__(self) -> None:
        _check("background", self.background, (None, *COLOURS))
        _check("colour", self.colour, (None, *COLOURS))
        _check("shape", self.shape, (None, *SHAPES))
        _check("size", self.size, SIZES)
        _check("position", self.position, POSITIONS)
        _check("count", self.count, (1, 2, 3))
        if self.colour is not None and self.colour == self.background:
            raise ValueError(f"colour: {self.colour!r} is the background, too")
        if not fits(self.count, self.size, self.position):
            raise ValueError(f"count: no room for {self.count} {self.size} shapes at {self.position!r}")


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """A subject of one colour in its place, by day, at sunset or at night."""

    ATTRIBUTES: ClassVar = ("subject", "colour", "time")

    subject: str
    colour: str | None = None
    time: str | None = None
    variation: int = 0

    def __post_init__(self) -> None:
        _check("subject", self.subject, SUBJECTS)
        _check("colour", self.colour, (None, *SUBJECT_COLOURS))
        _check("time", self.time, (None, *TIMES))


Scene = Shapes | Landscape


def fits(count: int, size: str, position: str) -> bool:
    """Whether there is room for so many shapes of this size at this place."""
    if count == 1:
        return True
    if position == "center":
        return size != "large"
    return size == "small" and " " not in position


def _check(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(map(str, allowed))}")
