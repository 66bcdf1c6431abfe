"""What is asked of a checkpoint whose world is the drawings, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from drawings import Shapes
from evaluation.grading import Graded, Share, accuracy, grade_all
from evaluation.orders import Order, Painter

NEGATIVES = ("red", "yellow", "green", "blue")
"""What the check of negative prompts forbids."""
_OPEN_PROMPT = "a circle"

Report = Callable[[str, int, int], None]
"""Told what is under way, how many of its pictures are finished, and how many there are."""


@dataclass(frozen=True, eq=False)
class Series:
    """Pictures that differ in their prompts and seeds only."""

    name: str
    graded: Sequence[Graded]

    @property
    def accuracy(self) -> Mapping[str, Share]:
        """By attribute."""
        return accuracy(self.graded)


@dataclass(frozen=True)
class Forbidden:
    """How many pictures have a colour, in the background or in a thing, where the prompt leaves both open: without a
    negative prompt, and with the colour as one.
    """

    colour: str
    without: Share
    with_it: Share


def by_scheduler(paint: Painter, orders: Sequence[Order], schedulers: Sequence[str], report: Report) -> list[Series]:
    """The same prompts and seeds with each scheduler."""
    return [
        _follow(paint, [replace(order, scheduler=scheduler) for order in orders], scheduler, report)
        for scheduler in schedulers
    ]


def by_guidance(paint: Painter, orders: Sequence[Order], report: Report) -> list[Series]:
    """The same prompts and seeds without guidance, which is a scale of 1, and with their own scale."""
    return [
        _follow(paint, [replace(order, guidance=scale) for order in orders], f"guidance {scale:g}", report)
        for scale in (1.0, orders[0].guidance)
    ]


def forbid_colours(paint: Painter, orders: Sequence[Order], report: Report) -> list[Forbidden]:
    """Circles in any colours, without a negative prompt and with each of `NEGATIVES`, otherwise as ordered."""
    scene = Shapes(shape="circle")
    free = [replace(order, prompt=_OPEN_PROMPT, scene=scene) for order in orders]
    without = _follow(paint, free, "no negative prompt", report)
    found = []
    for colour in NEGATIVES:
        forbidden = _follow(paint, [replace(order, negative_prompt=colour) for order in free], f"no {colour}", report)
        found.append(Forbidden(colour, _having(colour, without), _having(colour, forbidden)))
    return found


def _follow(paint: Painter, orders: Sequence[Order], name: str, report: Report) -> Series:
    graded = []
    for picture in grade_all(paint, orders):
        graded.append(picture)
        report(name, len(graded), len(orders))
    return Series(name, graded)


def _having(colour: str, series: Series) -> Share:
    readings = [picture.reading for picture in series.graded]
    return Share(sum(colour in (reading.background, reading.colour) for reading in readings), len(readings))
