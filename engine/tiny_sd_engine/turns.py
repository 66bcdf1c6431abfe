"""Whose turn it is: the job that would be done first if all shared evenly.

This is the Fair Sojourn Protocol (Friedman and Henderson, 2003). Where jobs share evenly, each slows the others down
until it is done. Here they share evenly in thought only, and are worked on one after another, in the order in which
they would end there. So none ends later than by even sharing, and most sooner: a short one does not wait for long ones.
"""

from __future__ import annotations

from bisect import insort
from itertools import count
from typing import NamedTuple

_NEWEST = 0.3  # weight of the latest measurement


class Turn(NamedTuple):
    """A place in line: the lowest goes first."""

    end: float
    """What the clock of the even sharing will show when this one is done there."""
    number: int
    """In the order of coming."""


class Turns:
    """An even sharing that is only thought of. Its clock is the work that each one there has had so far."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._there: list[Turn] = []  # in rising order
        self._numbers = count()

    def enter(self, work: float) -> Turn:
        """Somebody comes with so much to do."""
        turn = Turn(self._clock + work, next(self._numbers))
        insort(self._there, turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """Somebody goes with work undone. Who has been served goes by itself, when the even sharing is done with it."""
        if turn in self._there:
            self._there.remove(turn)

    def worked(self, work: float) -> None:
        """So much has been done, for whomever: in thought it is shared out."""
        while self._there:
            to_next_end = (self._there[0].end - self._clock) * len(self._there)
            if work < to_next_end:
                self._clock += work / len(self._there)
                return
            work -= to_next_end
            self._clock = self._there.pop(0).end


class Lately:
    """A mean of measurements in which the latest count most."""

    def __init__(self) -> None:
        self.mean: float | None = None
        """None: nothing has been measured."""

    def measured(self, value: float) -> None:
        """One more."""
        self.mean = value if self.mean is None else self.mean + _NEWEST * (value - self.mean)


class Speed:
    """How fast work has lately been done, and by calls of what length."""

    def __init__(self) -> None:
        self._work_per_s, self._seconds_per_call = Lately(), Lately()

    def measured(self, work: float, calls: int, seconds: float) -> None:
        """So much was done in so many calls and seconds; a clock that has not moved on tells nothing."""
        if seconds > 0:
            self._work_per_s.measured(work / seconds)
            self._seconds_per_call.measured(seconds / calls)

    def seconds(self, work: float, calls: int) -> float | None:
        """What so much work takes, of which so many calls have to follow one another; None: nothing was measured."""
        if self._work_per_s.mean is None or self._seconds_per_call.mean is None:
            return None
        return max(work / self._work_per_s.mean, calls * self._seconds_per_call.mean)
