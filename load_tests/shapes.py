"""Locust's load shapes: --users at their peak, over --run-time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from locust import LoadTestShape

from load_tests import levels

_RUN_TIME_S = 60.0
_SPAWN_RATE = 100.0


class _Levels(LoadTestShape):
    """A level of :mod:`load_tests.levels` at each moment."""

    abstract = True
    use_common_options = True
    level: ClassVar[Callable[[float], float]]

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many of them to start or stop per second; None at the end."""
        options: Any = self.runner.environment.parsed_options
        progress = self.get_run_time() / (options.run_time or _RUN_TIME_S)
        if progress >= 1:
            return None
        return levels.users(type(self).level(progress), options.num_users or 1), _SPAWN_RATE


class Step(_Levels):
    """More users in five steps."""

    level = staticmethod(levels.step)


class Spike(_Levels):
    """Few users, and a rush in the middle."""

    level = staticmethod(levels.spike)


class Soak(_Levels):
    """All users for a long time."""

    level = staticmethod(levels.soak)


SHAPES: dict[str, type[LoadTestShape]] = {"step": Step, "spike": Spike, "soak": Soak}
"""By the names of --shape."""
