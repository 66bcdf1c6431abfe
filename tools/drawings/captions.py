"""Scenes in words, and words back into scenes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drawings.palette import COLOURS
from drawings.scene import TIMES, Landscape, Scene, Shapes
from drawings.shapes import SHAPES

# The first wording of each is the usual one and as frequent as the others together.
_SIZES: Mapping[str, Sequence[str]] = {"small": ("small", "little"), "medium": ("",), "large": ("large", "big")}
_COUNTS = {1: "a", 2: "two", 3: "three"}
_PLACES: Mapping[str, Sequence[str]] = {
    "center": ("", "in the center", "in the middle"),
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "top left": ("at the top left", "in the top left corner"),
    "top right": ("at the top right", "in the top right corner"),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
}
_BACKGROUNDS = ("on a {} background", "against a {} background", "with a {} background", "on {}")
_SUBJECTS: Mapping[str, Sequence[str]] = {
    "house": ("a {} house",),
    "boat": ("a {} sailing boat at sea", "a {} boat on the sea", "a boat with a {} sail at sea"),
    "tree": ("a {} tree on a green hill", "a {} tree on a hill"),
    "mountains": ("{} mountains",),
    "flower": ("a {} flower in a meadow", "a {} flower in a green meadow"),
    "balloon": ("a {} balloon over green hills", "a {} balloon over the hills"),
}
_TIMES: Mapping[str, Sequence[str]] = {
    "day": ("under a blue sky with a sun", "under a blue sky", "on a sunny day"),
    "sunset": ("at sunset", "under an orange sky at sunset"),
    "night": ("at night with a moon", "at night", "under a dark sky with a moon"),
}
_FRAMES = ("a picture of", "a drawing of")
_PLURAL = {"cross": "crosses"}

_NAMES_OF: Mapping[str, Mapping[str, Any]] = {
    "shape": {form: name for name in SHAPES for form in (name, _PLURAL.get(name, f"{name}s"))},
    "size": {word: name for name, words in _SIZES.items() for word in words if word},
    "count": {"two": 2, "three": 3},
    "subject": {
        "house": "house",
        "boat": "boat",
        "tree": "tree",
        "mountain": "mountains",
        "mountains": "mountains",
        "flower": "flower",
        "balloon": "balloon",
    },
}
_SKY = re.compile(
    r"\b(?P<day>blue sky|sunny|sun|day)\b|\b(?P<sunset>orange sky|sunset)\b|\b(?P<night>dark sky|night|moon)\b"
)
_GROUND = re.compile(r"\bgreen (?:hills?|meadow)\b")
_ANY_COLOUR = "|".join(COLOURS)
_BACKGROUND = re.compile(rf"\b(?:({_ANY_COLOUR}) background|(?:on|against) ({_ANY_COLOUR}))\b")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the natural wordings of all that the scene does not leave open.

    >>> caption(Shapes(background="blue", colour="red", shape="circle", size="small"), np.random.default_rng(2))
    'a small red circle on a blue background'
    """
    words = _landscape(scene, rng) if isinstance(scene, Landscape) else _shapes(scene, rng)
    if rng.random() < 0.08:
        words = f"{_pick(rng, _FRAMES)} {words}"
    return _tidy(words)


def parse(prompt: str) -> Scene | None:
    """The scene that a prompt in the wording of the captions asks for; None for any other prompt.

    What the prompt does not say is left open; size, position and count have defaults, as in the captions.
    """
    words = re.sub(r"[^a-z0-9]+", " ", prompt.lower()).strip()
    if not words or set(words.split()) - set(WORDS):
        return None
    try:
        return _parse_landscape(words) if _named(words, "subject") else _parse_shapes(words)
    except ValueError:  # says two things at once, or what cannot be
        return None


def _shapes(scene: Shapes, rng: np.random.Generator) -> str:
    if scene.background and not scene.colour and not scene.shape:
        return f"a {scene.background} background"
    if scene.colour and not scene.background and not scene.shape and rng.random() < 0.5:
        return scene.colour
    shape = scene.shape or "shape"
    if scene.count > 1:
        shape = _PLURAL.get(shape, f"{shape}s")
    things = f"{_COUNTS[scene.count]} {_pick(rng, _SIZES[scene.size])} {scene.colour or ''} {shape}"
    place = _pick(rng, _PLACES[scene.position])
    if not scene.background:
        return f"{things} {place}"
    manner = rng.random()
    if manner < 0.1:
        return f"a {scene.background} background with {things} {place}"
    if manner < 0.2:
        return f"{things} {place}, {scene.background} background"
    ground = _pick(rng, _BACKGROUNDS).format(scene.background)
    return f"{things} {ground} {place}" if manner < 0.3 else f"{things} {place} {ground}"


def _landscape(scene: Landscape, rng: np.random.Generator) -> str:
    subject = _pick(rng, _SUBJECTS[scene.subject]).format(scene.colour or "")
    time = _pick(rng, _TIMES[scene.time]) if scene.time else ""
    return f"{subject} {time}"


def _pick(rng: np.random.Generator, wordings: Sequence[str]) -> str:
    if len(wordings) == 1 or rng.random() < 0.5:
        return wordings[0]
    return wordings[1 + int(rng.integers(len(wordings) - 1))]


def _tidy(words: str) -> str:
    """One space between words, none before a comma, and "an" before a vowel."""
    words = re.sub(r"\s+", " ", words).strip().replace(" ,", ",")
    return re.sub(r"\ba (?=[aeio])", "an ", words)


def _parse_shapes(words: str) -> Shapes | None:
    backgrounds = {colour for match in _BACKGROUND.finditer(words) for colour in match.groups() if colour}
    rest = set(_BACKGROUND.sub("", words).split())
    background = _only(backgrounds)
    colour = _only(rest & set(COLOURS))
    shape = _only(_named(words, "shape"))
    if not (background or colour or shape or rest & {"shape", "shapes"}):
        return None
    sides: list[str] = [side for side in ("top", "bottom", "left", "right") if side in rest]
    if {"center", "middle"} & rest:
        sides.append("center")
    return Shapes(
        background=background,
        colour=colour,
        shape=shape,
        size=_only(_named(words, "size")) or "medium",
        position=" ".join(sides) or "center",
        count=_only(_named(words, "count")) or 1,
    )


def _parse_landscape(words: str) -> Landscape:
    times = {name for match in _SKY.finditer(words) for name in TIMES if match[name]}
    rest = set(_GROUND.sub("", _SKY.sub("", words)).split())
    if rest & _NAMES_OF["shape"].keys():
        raise ValueError("a shape in a landscape")
    return Landscape(subject=_only(_named(words, "subject")), colour=_only(rest & set(COLOURS)), time=_only(times))


def _named(words: str, attribute: str) -> set[Any]:
    names = _NAMES_OF[attribute]
    return {names[word] for word in words.split() if word in names}


def _only(names: set[Any]) -> Any:
    if len(names) > 1:
        raise ValueError(f"one of {names}, not all")
    return next(iter(names), None)


def _vocabulary() -> tuple[str, ...]:
    wordings = [*_COUNTS.values(), *_BACKGROUNDS, *_FRAMES, *COLOURS, "one an shape shapes"]
    wordings += [
        wording for group in (_SIZES, _PLACES, _SUBJECTS, _TIMES) for many in group.values() for wording in many
    ]
    wordings += [word for names in _NAMES_OF.values() for word in names]
    return tuple(sorted(set(re.findall(r"[a-z]+", " ".join(wordings)))))


WORDS: tuple[str, ...] = _vocabulary()
"""Every word that captions use, and a few that only :func:`parse` understands."""
