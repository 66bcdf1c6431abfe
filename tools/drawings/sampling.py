"""Random scenes, and which combinations of attributes training never sees."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import TypeVar

import numpy as np

from drawings.palette import COLOURS
from drawings.scene import POSITIONS, SIZES, SUBJECT_COLOURS, SUBJECTS, TIMES, Landscape, Scene, Shapes, Split, fits
from drawings.shapes import SHAPES

T = TypeVar("T")
Combination = tuple[str, str, str]

_HELD_OUT = 8  # one combination in so many
_LANDSCAPES = 0.25  # share of the scenes
# Shares of the scenes of training that leave something open. They teach what a word means by itself, which is how
# negative prompts use it, and what to do with a prompt that says little.
_OPEN = {"nothing": 0.85, "background": 0.06, "colour": 0.04, "shape": 0.02, "all but one": 0.03}


def random_scene(rng: np.random.Generator, split: Split = "train", *, landscapes: float = _LANDSCAPES) -> Scene:
    """A scene of the split. Those held out say everything; of the others some leave something open.

    landscapes: share of illustrated scenes, 0 to 1
    """
    scene = _random_landscape(rng, split) if rng.random() < landscapes else _random_shapes(rng, split)
    return _leave_open(rng, scene) if split == "train" else scene


def resolved(scene: Scene) -> Scene:
    """The scene with all that it leaves open decided by its variation, never to a combination that is held out.

    What the scene itself says stays, be it held out or not.
    """
    rng = np.random.default_rng(scene.variation)
    if isinstance(scene, Landscape):
        asked = (scene.subject, scene.colour, scene.time)
        subject, colour, time = _complete(rng, asked, landscape_combinations("train"))
        return replace(scene, subject=subject, colour=colour, time=time)
    asked = (scene.shape, scene.colour, scene.background)
    shape, colour, background = _complete(rng, asked, shape_combinations("train"))
    return replace(scene, shape=shape, colour=colour, background=background)


@cache
def shape_combinations(split: Split) -> tuple[Combination, ...]:
    """All (shape, colour, background) of a split."""
    return tuple(
        combination
        for combination in product(SHAPES, COLOURS, COLOURS)
        if combination[1] != combination[2] and _split(combination) == split
    )


@cache
def landscape_combinations(split: Split) -> tuple[Combination, ...]:
    """All (subject, colour, time) of a split."""
    return tuple(
        combination for combination in product(SUBJECTS, SUBJECT_COLOURS, TIMES) if _split(combination) == split
    )


def _split(combination: Combination) -> Split:
    return "train" if zlib.crc32(" ".join(combination).encode()) % _HELD_OUT else "held-out"


def _random_shapes(rng: np.random.Generator, split: Split) -> Shapes:
    shape, colour, background = _one(rng, shape_combinations(split))
    count = _one(rng, (1, 1, 1, 1, 2, 3))
    size = _one(rng, [size for size in SIZES if fits(count, size, "center")])
    position = "center"
    if rng.random() < 0.5:
        position = _one(rng, [place for place in POSITIONS if fits(count, size, place)])
    return Shapes(
        background=background,
        colour=colour,
        shape=shape,
        size=size,
        position=position,
        count=count,
        variation=_variation(rng),
    )


def _random_landscape(rng: np.random.Generator, split: Split) -> Landscape:
    subject, colour, time = _one(rng, landscape_combinations(split))
    return Landscape(subject=subject, colour=colour, time=time, variation=_variation(rng))


def _leave_open(rng: np.random.Generator, scene: Scene) -> Scene:
    what = list(_OPEN)[int(rng.choice(len(_OPEN), p=list(_OPEN.values())))]
    names: tuple[str, ...] = ("background", "colour", "shape")
    if isinstance(scene, Landscape):
        names = ("time", "colour")
    elif what == "all but one":
        kept = _one(rng, names)
        return Shapes(variation=scene.variation, **{kept: getattr(scene, kept)})
    return replace(scene, **{name: None for name in names if name == what})


def _complete(
    rng: np.random.Generator, asked: tuple[str | None, ...], combinations: Sequence[Combination]
) -> Sequence[str]:
    if None not in asked:
        return asked  # type: ignore[return-value]
    fitting = [c for c in combinations if all(a in (None, b) for a, b in zip(asked, c, strict=True))]
    return _one(rng, fitting)


def _one(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _variation(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
