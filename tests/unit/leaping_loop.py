"""An event loop for tests whose seconds are exact, however slow or busy the machine is."""

from __future__ import annotations

import asyncio
import selectors

from board_users import Clock


class LeapingLoop(asyncio.SelectorEventLoop):
    """Puts a clock forward instead of waiting; otherwise that clock stands still."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__(_LeapingSelector(clock))

    def time(self) -> float:
        return self._clock.now


class _LeapingSelector(selectors.DefaultSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout and 0)
        if timeout and not ready:
            self._clock.now += timeout
        return ready
