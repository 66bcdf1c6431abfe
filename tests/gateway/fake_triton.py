"""A stand-in for the client of Triton, for tests of what the gateway makes of its answers."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tiny_sd_client import Generation, Progress, ServerStatus, Stage, Timings
from tiny_sd_client.parameters import Parameters, parse

STEPS_TOLD = 4
INFER_S = 1.25
PROBE = "readiness"
"""The prompt by which the gateway finds out whether it is ready."""


def picture(prompt: str, seed: int) -> bytes:
    """What the fake draws: a file of its own for every prompt and seed."""
    return f"picture of {prompt} from {seed}".encode()


def preview() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "JPEG")
    return file.getvalue()


@dataclass
class Asked:
    """A generation as it arrived."""

    parameters: Parameters
    job_id: str | None
    timeout: float | None
    preview_every: int


@dataclass
class FakeTriton:
    """Draws at once, unless told otherwise.

    ``at_start`` and ``midway``: errors for the next generations, one each, before and after their first progress;
    ``at_probe``: the same for those that only find out whether it is ready; ``held``: prompts that get no further
    than their first step until :meth:`let_go`.
    """

    at_start: list[Exception] = field(default_factory=list)
    at_probe: list[Exception] = field(default_factory=list)
    midway: list[Exception] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    seconds_per_event: float = 0
    status_error: Exception | None = None
    ready: bool = True
    asked: list[Asked] = field(default_factory=list)
    broken_off: list[str | None] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    async def stream(
        self,
        prompt: str,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        job_id: str | None = None,
        **parameters: Any,
    ) -> AsyncGenerator[Progress | Generation, None]:
        wanted = parse({**parameters, "prompt": prompt}, sizes=None)
        self._change(1, asked=Asked(wanted, job_id, timeout, preview_every))
        try:
            errors = self.at_probe if prompt == PROBE else self.at_start
            if errors:
                raise errors.pop(0)
            steps = wanted.num_inference_steps
            for told in range(STEPS_TOLD + 1):
                await asyncio.sleep(self.seconds_per_event)
                step = steps * told // STEPS_TOLD
                previews = (preview(),) * wanted.samples if preview_every and 0 < step < steps else ()
                yield Progress(job_id or "", Stage.DENOISING, step, steps, 0.1 * told, 0.5, previews)
                if told == 1 and self.midway:
                    raise self.midway.pop(0)
                while told == 1 and prompt in self.held:
                    await asyncio.sleep(0.01)
            seeds = tuple(wanted.seed + i for i in range(wanted.samples))
            files = tuple(picture(prompt, seed) for seed in seeds)
            yield Generation(job_id or "", files, seeds, wanted, Timings(INFER_S, INFER_S))
        except (GeneratorExit, asyncio.CancelledError):
            self.broken_off.append(job_id)
            raise
        finally:
            self._change(-1)

    async def status(self) -> ServerStatus:
        if self.status_error:
            raise self.status_error
        return ServerStatus(self.ready, "2.51.0", self.in_flight, 32, ())

    async def close(self) -> None:
        pass

    def let_go(self, prompt: str) -> None:
        self.held.discard(prompt)

    def wait_for_in_flight(self, count: int, seconds: float = 60) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.in_flight == count, seconds), f"{self.in_flight} in flight"

    def _change(self, by: int, asked: Asked | None = None) -> None:
        with self.changed:
            if asked:
                self.asked.append(asked)
            self.in_flight += by
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.changed.notify_all()


def decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
