"""What can go wrong in the engine, as types.

EngineError
├── InvalidInput     a caller's value; names the parameter and what is allowed
│   └── DuplicateId  the id of a generation that is still in flight
├── Busy             as many generations are in flight as the server takes
├── Overdue          the generation passed its deadline
├── Cancelled        somebody asked for the generation to stop
├── UnknownJob       no generation in flight has this id
└── CheckpointError  the operator's checkpoint folder; names the file and what is wrong
"""

from __future__ import annotations

from pathlib import Path


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""


class InvalidInput(EngineError):
    """A value that a caller sent cannot be used.

    The message reads ``<parameter>: <what was given and what is allowed>`` and is safe to show to the caller.
    """

    def __init__(self, parameter: str, problem: str) -> None:
        super().__init__(f"{parameter}: {problem}")
        self.parameter = parameter


class DuplicateId(InvalidInput):
    """A generation that is still in flight has this id."""

    def __init__(self, id: str) -> None:
        super().__init__("id", f"got {id!r}; allowed: an id that no generation in flight has")


# A caller over Triton sees the message alone where the transport has no code for it. So the first word tells the kind.


class Busy(EngineError):
    """As many generations are in flight as the server takes."""

    def __init__(self, in_flight: int, limit: int, retry_after_s: int) -> None:
        super().__init__(f"busy: {in_flight} of {limit} generations are in flight; come back in {retry_after_s} s")


class Overdue(EngineError):
    """The deadline of a generation passed before it was finished."""

    def __init__(self) -> None:
        super().__init__("overdue: the request's timeout passed before the picture was finished")


class Cancelled(EngineError):
    """Somebody asked for the generation to stop."""

    def __init__(self) -> None:
        super().__init__("cancelled: the generation was cancelled")


class UnknownJob(EngineError):
    """No generation in flight has this id."""

    def __init__(self) -> None:
        super().__init__("unknown_job: no generation in flight has this id; it has ended or never was")


class CheckpointError(EngineError):
    """A checkpoint folder cannot be served. The message names the file, what is wrong with it, and what to do."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
