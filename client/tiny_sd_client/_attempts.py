"""When a generation that failed is worth another attempt, and how long to wait before it."""

from __future__ import annotations

import math
import random
import time

from tiny_sd_client.errors import Busy, DeadlineExceeded, TinySDError, Unavailable
from tiny_sd_client.parameters import InvalidParameter

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0


class Attempts:
    """The attempts at one generation, bounded by its timeout and by the patience of its caller, both in seconds.

    Patience starts to run out with the first attempt that nobody admitted, or when one that was admitted is lost.
    """

    def __init__(self, patience: float, timeout: float | None) -> None:
        self.began = time.monotonic()
        self._timeout = timeout
        self._patience = patience
        self._patient_until: float | None = None
        self._failures = 0
        self._lost = False

    def seconds_left(self) -> float:
        """Seconds until the timeout, below 0 after it; infinity without one."""
        return math.inf if self._timeout is None else self.began + self._timeout - time.monotonic()

    def overdue(self) -> DeadlineExceeded:
        """The error for a timeout that has passed."""
        return DeadlineExceeded(f"the timeout of {self._timeout:g} s passed before the pictures were finished")

    def wait_after(self, error: TinySDError, attempt_began: float, *, admitted: bool) -> float:
        """Seconds to wait before the next attempt, after one that failed with ``error``.

        Raises ``error`` itself where another attempt would not help or patience has run out, and DeadlineExceeded when
        the timeout has passed.
        """
        # The server may still hold the id of an attempt whose connection was lost.
        own_id = self._lost and isinstance(error, InvalidParameter) and error.parameter == "id"
        if not (isinstance(error, Busy | Unavailable) or own_id):
            raise error
        self._lost = self._lost or isinstance(error, Unavailable)
        self._failures += 1
        now = time.monotonic()
        if self._patient_until is None:
            self._patient_until = (now if admitted else attempt_began) + self._patience
        if now >= self._patient_until:
            raise error
        if self.seconds_left() <= 0:
            raise self.overdue() from error
        return min(_wait(error, self._failures), self._patient_until - now, self.seconds_left())


def _wait(error: TinySDError, failures: int) -> float:
    """At least what the server asked for, longer with every failure, and different for everybody."""
    asked = error.retry_after if isinstance(error, Busy) else 0.0
    growing = min(_FIRST_WAIT_S * 2.0 ** min(failures - 1, 10), _LONGEST_WAIT_S)
    return max(asked, growing) * random.uniform(1.0, 1.5)
