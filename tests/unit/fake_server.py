"""A stand-in for a server and the way to it, for tests of what the clients make of its answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from tiny_sd_client._transport import Inputs, Outputs

FOREVER = "wait until broken off"
Step = Outputs | BaseException | float | threading.Event | str
"""What happens next in an attempt: an event, an error, seconds of silence, a gate that a test opens, or FOREVER."""


def event(stage: str = "denoising", step: int = 0, job_id: str = "a-job", **more: Any) -> Outputs:
    return {
        "job_id": [job_id.encode()],
        "stage": [stage.encode()],
        "step": [step],
        "steps": [20],
        "seconds": [0.1 * step],
        "seconds_left": [-1.0],
        **more,
    }


def pictures(inputs: Inputs) -> Outputs:
    """The last event of a generation."""
    parameters = {name: value for name, value in inputs.items() if name not in ("base64", "preview_every")}
    seeds = [int(inputs["seed"]) + i for i in range(int(inputs["samples"]))]
    return event(
        "done",
        20,
        image=[f"picture of {inputs['prompt']} {seed}".encode() for seed in seeds],
        seeds=seeds,
        parameters=[json.dumps(parameters).encode()],
    )


@dataclass
class Asked:
    """A request as it arrived."""

    inputs: dict[str, Any]
    request_id: str
    timeout: float | None
    at: float


@dataclass
class FakeServer:
    """Answers each attempt with the next of ``attempts``, and with pictures at once when there are no more.

    Prompts in ``slow`` take as many seconds, those in ``failing`` end in the error.
    """

    attempts: list[list[Step]] = field(default_factory=list)
    slow: dict[str, float] = field(default_factory=dict)
    failing: dict[str, Exception] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answer: Outputs | Exception | None = None
    ready: bool = True
    in_flight: int = 0
    most_in_flight: int = 0
    silent: int = 0
    """Attempts that have come to FOREVER."""
    broken_off: list[str] = field(default_factory=list)
    closed: bool = False
    base64: bool = False

    async def call(self, model: str, inputs: Inputs) -> Outputs:
        self.calls.append((model, dict(inputs)))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
        assert self.answer is not None
        return self.answer

    async def stream(
        self, model: str, inputs: Inputs, request_id: str, timeout: float | None
    ) -> AsyncGenerator[Outputs, None]:
        assert model == "tiny_sd_stream"
        self.asked.append(Asked(dict(inputs), request_id, timeout, asyncio.get_running_loop().time()))
        prompt = str(inputs["prompt"])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            steps = self.attempts.pop(0) if self.attempts else [self.slow.get(prompt, 0.0), "pictures"]
            if prompt in self.failing:
                steps = [*steps[:1], self.failing[prompt]]
            for step in steps:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, threading.Event):
                    while not step.is_set():
                        await asyncio.sleep(0.005)
                elif step == FOREVER:
                    self.silent += 1
                    await asyncio.Event().wait()
                else:
                    yield pictures(inputs) if step == "pictures" else step  # type: ignore[misc]
        except (GeneratorExit, asyncio.CancelledError):
            self.broken_off.append(prompt)
            raise
        finally:
            self.in_flight -= 1

    async def status(self) -> tuple[bool, str]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.ready, "2.51.0"

    async def close(self) -> None:
        self.closed = True
