"""What can go wrong, as a caller meets it.

    TinySDError
    ├── InvalidParameter   a value is missing, unknown or outside what is allowed; also a ValueError (in parameters.py)
    ├── Busy               the server is full; it says when to come back
    ├── DeadlineExceeded   the timeout passed before the pictures were finished; also a TimeoutError
    ├── Cancelled          somebody cancelled the generation
    ├── UnknownJob         no generation in flight has this id
    ├── Unavailable        nobody answers, the connection is lost, or the server is starting or stopping
    └── ServerFault        the server's own fault, or it is no Tiny-SD server at all

Only :class:`Busy` and :class:`Unavailable` are worth another attempt; the clients make those by themselves.
"""

from __future__ import annotations


class TinySDError(Exception):
    """All that this package raises, but for misuse of the package itself (ValueError, RuntimeError)."""


class Busy(TinySDError):
    """The server is full, and was so until the caller's patience ended.

    ``retry_after``: seconds after which the server expects to have room. ``in_flight`` generations of at most ``limit``
    were running.
    """

    def __init__(self, message: str, retry_after: float = 0.0, in_flight: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.in_flight = in_flight
        self.limit = limit


class DeadlineExceeded(TinySDError, TimeoutError):
    """The timeout passed before the pictures were finished; the server has stopped working on them."""


class Cancelled(TinySDError):
    """The generation was cancelled: by its id, through its job, or because its client was closed."""


class UnknownJob(TinySDError):
    """No generation in flight has the id ``job_id``: it has ended, or never was."""

    def __init__(self, message: str, job_id: str = "") -> None:
        super().__init__(message)
        self.job_id = job_id


class Unavailable(TinySDError):
    """Nobody answers at this URL, the connection was lost, or the server is starting or stopping."""


class ServerFault(TinySDError):
    """The server failed, or what answers at this URL is no Tiny-SD server."""
