"""What can go wrong in the engine, as types.

EngineError
├── InvalidInput     a caller's value; names the parameter and what is allowed
├── Overdue          the generation passed its deadline
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


class Overdue(EngineError):
    """The deadline of a generation passed before it was finished."""


class CheckpointError(EngineError):
    """A checkpoint folder cannot be served. The message names the file, what is wrong with it, and what to do."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
