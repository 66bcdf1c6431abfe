"""The pictures to ask for, and who makes them: the engine in this process, or a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drawings import Scene, caption, random_scene
from evaluation.lab import Pixels
from tiny_sd_client import Client
from tiny_sd_client.parameters import Parameters, parse

if TYPE_CHECKING:
    from tiny_sd_engine.pipeline import Pipeline  # brings torch, which evaluating a server does without

_TOGETHER = 8  # generations that are under way at once


@dataclass(frozen=True)
class Order:
    """One picture of a prompt."""

    prompt: str
    seed: int
    scheduler: str = "UniPC"
    steps: int = 20
    guidance: float = 7.5
    negative_prompt: str = ""
    size: int = 512
    """Width and height in pixels."""
    scene: Scene | None = None
    """What the prompt asks for, where it is one of the drawings'."""

    def parameters(self) -> Parameters:
        """The documented parameters. Raises InvalidParameter."""
        values: dict[str, Any] = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "scheduler": self.scheduler,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "seed": self.seed,
            "img_width": self.size,
            "img_height": self.size,
            "base64": False,
            "image_format": "png",
        }
        return parse(values, sizes=None)


Painter = Callable[[Sequence[Order]], Iterator[Pixels]]
"""Makes pictures, in the order in which they were asked for."""


def held_out_orders(count: int, *, seed: int, landscapes: bool, **manner: Any) -> list[Order]:
    """Orders for drawings whose combination of attributes training never saw, one seed each.

    manner: further attributes of every order

    The same arguments give the same prompts, and fewer of them the same ones to begin with.
    """
    rng = np.random.default_rng([seed, int(landscapes)])
    orders = []
    for number in range(count):
        scene = random_scene(rng, "held-out", landscapes=float(landscapes))
        orders.append(Order(prompt=caption(scene, rng), seed=seed + number, scene=scene, **manner))
    return orders


def by_pipeline(pipeline: Pipeline) -> Painter:
    """Pictures of the engine in this process."""

    def paint(orders: Sequence[Order]) -> Iterator[Pixels]:
        for start in range(0, len(orders), _TOGETHER):
            batch = [order.parameters() for order in orders[start : start + _TOGETHER]]
            for generation in pipeline.generate_together(batch):
                yield generation.pixels[0]

    return paint


@contextmanager
def by_server(url: str) -> Iterator[Painter]:
    """Pictures of a running server, ``grpc://host:port`` or ``http://host:port``."""
    with Client(url) as client:

        def paint(orders: Sequence[Order]) -> Iterator[Pixels]:
            wanted = (order.parameters().picture() for order in orders)
            for generation in client.generate_many(wanted, concurrency=_TOGETHER):
                yield np.asarray(generation.images[0].convert("RGB"))

        yield paint


def by_checkpoint(path: Path, *, precision: str = "auto", device: str = "auto") -> Painter:
    """Pictures of a diffusers folder, loaded into this process. Raises EngineError."""
    from tiny_sd_engine.pipeline import Pipeline  # noqa: PLC0415 - brings torch

    return by_pipeline(Pipeline.from_checkpoint(path, precision, device))
