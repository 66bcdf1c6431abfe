"""The requests of one process: each in a greenlet of its own, measured from the instant that it was due."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
from gevent.pool import Group

from load_tests.calls import Call, Failed, Lost, NotAnswered, Refused
from load_tests.figures import Outcome, Record
from load_tests.mix import Request

Clock = Callable[[], float]
OnEnd = Callable[[Record, int], None]
"""Hears of every request that has ended, and of the bytes that came."""

_OUTCOMES: dict[type[NotAnswered], Outcome] = {
    Refused: Outcome.REFUSED,
    Failed: Outcome.FAILED,
    Lost: Outcome.LOST,
}


class Traffic:
    """All requests under way. A request that takes longer than ``timeout`` seconds is given up, and lost."""

    def __init__(self, timeout: float, on_end: OnEnd, clock: Clock = time.monotonic) -> None:
        self._timeout = timeout
        self._on_end = on_end
        self._clock = clock
        self._began = clock()
        self._under_way = Group()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._under_way)

    def send(self, transport: str, call: Call, request: Request, due: float) -> gevent.Greenlet:
        """Send ``request`` at once; ``due`` is when, by the clock, it should have been. Returns without waiting."""
        return self._under_way.spawn(self._send, transport, call, request, due)

    def finish(self) -> None:
        """Wait for those under way, each until its timeout, and give up what is left then."""
        self._under_way.join(self._timeout)
        self._under_way.kill()

    def _send(self, transport: str, call: Call, request: Request, due: float) -> None:
        late = self._clock() - due
        marks: dict[str, float] = {}

        def mark(name: str) -> None:
            marks.setdefault(name, self._clock() - due)

        size, outcome, problem = 0, Outcome.ANSWERED, ""
        try:
            with gevent.Timeout(self._timeout, Lost("no answer in time")):
                size = call(request.parameters, mark)
        except NotAnswered as fault:
            outcome, problem = _OUTCOMES[type(fault)], str(fault)
        except gevent.GreenletExit:
            outcome, problem = Outcome.LOST, "no answer before the end of the test"
        except Exception as fault:  # noqa: BLE001 -- an answer that makes no sense is the server's fault, and ends nothing
            outcome, problem = Outcome.FAILED, f"{type(fault).__name__}: {fault}"[:200]
        seconds = self._clock() - due
        record = Record(transport, request.kind, due - self._began, late, seconds, outcome, marks, problem)
        self._on_end(record, size)
