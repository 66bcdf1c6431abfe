"""What the health check makes of what it sees; test_command.py has it on a real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from tiny_sd_client import DeadlineExceeded, Progress
from tiny_sd_client.health import check


class Slow:
    """A client whose stream shows these steps, and then has no time left."""

    def __init__(self, *steps: int) -> None:
        self._steps = steps

    def stream(self, prompt: str, **parameters: Any) -> Iterator[Progress]:
        for step in self._steps:
            yield Progress("check", "denoising", step, parameters["num_inference_steps"], 1.0, None)
        raise DeadlineExceeded("the request's timeout passed before the picture was finished")


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
