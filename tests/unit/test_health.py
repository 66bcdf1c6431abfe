"""What the health check makes of what it sees; test_command.py has it on a real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from board_users import Clock

from tiny_sd_client import Busy, DeadlineExceeded, JobStatus, Progress, Stage, health
from tiny_sd_client.health import check


class Slow:
    """A client whose stream shows these steps, and then has no time left."""

    def __init__(self, *steps: int) -> None:
        self._steps = steps

    def stream(self, prompt: str, **parameters: Any) -> Iterator[Progress]:
        for step in self._steps:
            yield Progress("check", "denoising", step, parameters["num_inference_steps"], 1.0, None)
        raise DeadlineExceeded("the request's timeout passed before the picture was finished")


class Full:
    """A client of a server with room for one, that is full at first; the step of each look's job, None for no job."""

    def __init__(self, *looks: tuple[str, int] | None) -> None:
        self._looks = iter(looks)
        self._last: tuple[str, int] | None = None
        self._tries = 0

    def stream(self, prompt: str, **parameters: Any) -> Iterator[Progress]:
        self._tries += 1
        if self._tries == 1:
            raise Busy("1 of 1 generations are in flight; come back in 1 s", in_flight=1, limit=1)
        yield Progress("check", Stage.DENOISING, 1, 20, 1.0, None)

    def jobs(self) -> list[JobStatus]:
        self._last = next(self._looks, self._last)
        return [JobStatus(self._last[0], Stage.DENOISING, self._last[1], 20, 1.0, None)] if self._last else []


class Hurried(Clock):
    """Time that passes as soon as somebody sleeps."""

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("looks", "healthy"),
    [
        ([("a", 3), ("a", 3), ("a", 4)], True),
        ([("a", 3), ("b", 0)], True),
        ([("a", 3)], False),
        ([("a", 20), None], True),
        ([None], True),
    ],
    ids=["gets on", "is followed by another", "stands still", "ends", "has ended before the first look"],
)
def test_a_full_server_is_healthy_if_its_generation_gets_on_or_makes_room(
    looks: list[tuple[str, int] | None], healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "time", Hurried())
    with nullcontext() if healthy else pytest.raises(DeadlineExceeded, match="the server is full"):
        check(Full(*looks), timeout=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "healthy"), [((0, 1, 7), True), ((), False), ((0, 0), False), ((0, 19, 20), False)], ids=str
)
def test_a_picture_that_gets_on_slowly_is_healthy_and_one_that_does_not_is_not(
    steps: tuple[int, ...], healthy: bool
) -> None:
    with nullcontext() if healthy else pytest.raises(DeadlineExceeded):
        check(Slow(*steps), timeout=1, whole=True)  # type: ignore[arg-type]


def test_the_first_step_is_enough_unless_a_whole_picture_is_asked_for() -> None:
    check(Slow(0, 1), timeout=1)  # type: ignore[arg-type]
    with pytest.raises(DeadlineExceeded):
        check(Slow(0), timeout=1)  # type: ignore[arg-type]
