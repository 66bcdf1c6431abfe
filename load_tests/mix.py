"""What the callers ask for: kinds of requests, how frequent each is, and what varies within it. All of it is seeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import TypeVar

from tiny_sd_client.parameters import ImageFormat, Parameters, Scheduler, parse

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One request: the kind that it is of, and all that it asks for, its seed included."""

    kind: str
    parameters: Parameters


@dataclass(frozen=True)
class Kind:
    """A way in which people use the service. Whatever offers several values gives each of them equally often.

    ``sizes`` are widths and heights by rank among those that the server offers: 0 is the smallest. ``refined`` is the
    share of requests with a negative prompt and a guidance of their own.
    """

    name: str
    about: str
    steps: Sequence[int]
    schedulers: Sequence[Scheduler]
    samples: Sequence[int] = (1,)
    sizes: Sequence[tuple[int, int]] = ((0, 0),)
    refined: float = 0.25


_QUICK = (Scheduler.UNIPC, Scheduler.DPMPP_2M, Scheduler.EULER_A)
_USUAL = (Scheduler.UNIPC, Scheduler.DPM_MULTI, Scheduler.EULER, Scheduler.EULER_A, Scheduler.LMS, Scheduler.DDIM)
_SLOW = (Scheduler.DDPM, Scheduler.DDIM, Scheduler.HEUN, Scheduler.DPM2_KARRAS, Scheduler.PNDM)

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("draft", "a first look at an idea", steps=(20,), schedulers=_QUICK, refined=0.1),
        Kind("standard", "one picture, made with care", steps=(25, 30, 40), schedulers=_USUAL, refined=0.5),
        Kind("several", "some to choose from", steps=(20, 25), schedulers=_QUICK, samples=(2, 3, 4)),
        Kind("wide", "a banner or a poster", steps=(25, 30), schedulers=_USUAL, sizes=((1, 0), (0, 1), (1, 1))),
        Kind("long", "as many steps as it takes", steps=(60, 80, 100), schedulers=_SLOW, refined=0.8),
    )
}
USUAL = "draft=50,standard=30,several=10,wide=6,long=4"
"""The usual weights, as :meth:`Mix.parse` reads them."""

_SUBJECTS = (
    "a red sailing boat at sea",
    "a lighthouse on a cliff",
    "a portrait of an old sailor",
    "a small wooden house in the snow",
    "a fox in a birch forest",
    "a bowl of lemons on a blue cloth",
    "a market street in the rain",
    "a white cat asleep on a window sill",
    "a steam train on a stone bridge",
    "a field of sunflowers",
    "a robot watering a garden",
    "a castle above the clouds",
)
_SETTINGS = ("at sunset", "at night with a moon", "on a foggy morning", "in bright daylight", "in autumn", "in spring")
_STYLES = ("", "oil painting", "watercolour", "pencil drawing", "35 mm photograph", "(highly detailed:1.2)")
_DETAILS = (
    "soft light from the left",
    "long shadows on the ground",
    "a calm sea in the distance",
    "birds far away in the sky",
    "muted colours with a single accent",
    "fine brush strokes",
    "a low horizon and much sky",
    "reflections on wet stone",
    "dust in the air",
    "a shallow depth of field",
)
_UNWANTED = ("blurry", "low quality, noise", "text, watermark", "people", "frame, border")
_VERBOSE = 0.05
"""Share of prompts that need more than one of CLIP's windows of 75 tokens."""
_FORMATS = {ImageFormat.JPEG: 90, ImageFormat.PNG: 6, ImageFormat.WEBP: 4}


@dataclass(frozen=True)
class Mix:
    """How frequent each kind is (weights by name, of any sum), and the sizes that the server offers, in pixels."""

    weights: Mapping[str, float]
    sizes: Sequence[int]

    @classmethod
    def parse(cls, weights: str, sizes: str) -> Mix:
        """Read ``draft=3,long=1`` and ``512,768``. Raises ValueError, which says what is allowed.

        >>> Mix.parse("long", "768,512")
        Mix(weights={'long': 1.0}, sizes=(512, 768))
        """
        return cls(_weights(weights), _sizes(sizes))

    def draw(self, random: Random) -> Request:
        """The next request. The same state of ``random`` gives the same one."""
        kind = KINDS[_weighted(random, self.weights)]
        width, height = random.choice(kind.sizes)
        refinement: dict[str, object] = {}
        if random.random() < kind.refined:
            refinement = {
                "negative_prompt": random.choice(_UNWANTED),
                "guidance_scale": random.choice((5.0, 6.0, 9.0)),
            }
        values = {
            "prompt": _prompt(random),
            "scheduler": random.choice(kind.schedulers),
            "num_inference_steps": random.choice(kind.steps),
            "samples": random.choice(kind.samples),
            "seed": random.randrange(2**32),
            "img_width": self._size(width),
            "img_height": self._size(height),
            "image_format": _weighted(random, _FORMATS),
            **refinement,
        }
        return Request(kind.name, parse(values, sizes=self.sizes))

    def _size(self, rank: int) -> int:
        return self.sizes[min(rank, len(self.sizes) - 1)]


def _prompt(random: Random) -> str:
    """Some subjects are asked for much more often than others, so that part of the prompts come again."""
    popularity = {subject: 1 / rank for rank, subject in enumerate(_SUBJECTS, start=1)}
    parts = [f"{_weighted(random, popularity)} {random.choice(_SETTINGS)}", random.choice(_STYLES)]
    if random.random() < _VERBOSE:
        parts += [*_DETAILS, *random.sample(_DETAILS, k=5)]
    return ", ".join(filter(None, parts))


def _weighted(random: Random, weights: Mapping[T, float]) -> T:
    return random.choices(list(weights), cum_weights=list(accumulate(weights.values())))[0]


def _weights(text: str) -> dict[str, float]:
    allowed = f"kinds with or without weights, such as {USUAL!r}; kinds: {', '.join(KINDS)}"
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (word.strip() for word in part.partition("="))
        value = _number(weight or "1", float)
        if name not in KINDS or value is None or not 0 < value < float("inf") or name in weights:
            raise ValueError(f"mix: got {text!r}; allowed: {allowed}")
        weights[name] = value
    return weights


def _sizes(text: str) -> tuple[int, ...]:
    sizes = [_number(part, int) for part in text.split(",")]
    if not all(size and size > 0 for size in sizes):
        raise ValueError(f"sizes: got {text!r}; allowed: pixels, separated by commas")
    return tuple(sorted(size for size in sizes if size))


def _number(text: str, kind: Callable[[str], T]) -> T | None:
    try:
        return kind(text)
    except ValueError:
        return None
