"""The open loop: requests that are due at instants planned ahead, whatever becomes of those before them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Protocol

from load_tests.mix import Mix, Request


@dataclass(frozen=True)
class Planned:
    """A request, and when it is due: seconds since the plan began."""

    due: float
    request: Request


class Flag(Protocol):
    """As gevent's and threading's Event: what somebody sets and others wait for."""

    def wait(self, timeout: float | None = None) -> bool | None:
        """Return true as soon as it is set, or false after ``timeout`` seconds."""
        ...


def plan(mix: Mix, rate: float, seed: str) -> Iterator[Planned]:
    """An endless Poisson process of ``rate`` arrivals a second. The same arguments give the same plan.

    The instants do not depend on the mix, so that different mixes can be compared on one trace. Independent plans that
    run side by side are one Poisson process again, of all their rates together.
    """
    gaps, draws = Random(f"{seed} gaps"), Random(f"{seed} requests")
    due = 0.0
    while True:
        due += gaps.expovariate(rate)
        yield Planned(due, mix.draw(draws))


def follow(
    planned: Iterator[Planned], send: Callable[[Request, float], object], stop: Flag, clock: Callable[[], float]
) -> None:
    """Call ``send`` with each request and the instant that it is due, by ``clock``, until ``stop`` is set.

    ``send`` must return at once. If it does not, requests are sent late, but none is left out: all that were due by the
    end are sent.
    """
    began, end = clock(), math.inf
    for each in planned:
        due = began + each.due
        if end == math.inf and stop.wait(max(0.0, due - clock())):
            end = clock()
        if due > end:
            return
        send(each.request, due)
