"""What Triton's log tells: which models are loading or ready, and why it failed.

The endpoints open only after every model is loaded, so until then the log is the only sign of progress.
"""

from __future__ import annotations

import re
import textwrap
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_LOADING = re.compile(r"\] \"?loading: ([^:\"]+):\d+")
_READY = re.compile(r"\] \"?successfully loaded '([^']+)'")
_FAILED = re.compile(r"\] \"?failed to load '([^']+)' version \d+: (.*)")
_REJECTED = re.compile(r"\] \"?(?:Poll failed for model directory|failed to load model) '([^']+)': (.*)")
_UNKNOWN_MEMBER = re.compile(r"\bensemble '?([^' ]+)'? (contains models that are not available.*)")
_BAD_CONFIG = re.compile(r"^\[libprotobuf ERROR .*?\] Error parsing text-format inference\.ModelConfig: (.*)")
_ERROR = re.compile(r"^(?:E\d{4} [^\]]*\] |error: |\S*tritonserver: )(.*)")
# Said by every start without a GPU, and of no consequence.
_HARMLESS = re.compile(r"CudaDriverHelper has not been initialized")

_KEPT_LINES = 1000
_LAST_ERRORS = 5


@dataclass(frozen=True)
class ModelProgress:
    """A model's news while the server starts; `seconds` counts from the moment its loading began."""

    model: str
    state: Literal["loading", "ready", "failed"]
    seconds: float


class LogFile:
    """Reads a log that another process writes; keeps its last lines for the post-mortem."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recent: deque[str] = deque(maxlen=_KEPT_LINES)
        self._offset = 0

    def new_lines(self) -> list[str]:
        """The complete lines written since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        lines = complete.decode(errors="replace").split("\n") if newline else []
        self.recent.extend(lines)
        return lines


class LoadingModels:
    """Follows the models of a starting server, line by line of its log."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        """The models that are loading now."""
        return list(self._since)

    def observe(self, line: str, now: float) -> ModelProgress | None:
        """The news in one line of the log, if any; `now` is in seconds of any steady clock."""
        if found := _LOADING.search(line):
            self._since[found[1]] = now
            return ModelProgress(found[1], "loading", 0.0)
        if found := _READY.search(line):
            return ModelProgress(found[1], "ready", self._seconds(found[1], now))
        if found := _FAILED.search(line):
            return ModelProgress(found[1], "failed", self._seconds(found[1], now))
        return None

    def _seconds(self, model: str, now: float) -> float:
        return now - self._since.pop(model, now)


def failures(lines: Iterable[str]) -> list[str]:
    """Which models failed to load and why, as `<model>: <reason>`.

    Ensembles that only wait for a failed model are left out: they are not the reason.
    """
    models: dict[str, str] = {}
    parse_error = ""
    for line in lines:
        if found := _BAD_CONFIG.match(line):
            parse_error = found[1]  # `<line>:<column>: <problem>`; the next rejection names the model and its file
        elif found := _REJECTED.search(line):
            models[found[1]] = ":".join(filter(None, [_readable(found[2]), parse_error]))
            parse_error = ""
        elif found := _FAILED.search(line) or _UNKNOWN_MEMBER.search(line):
            models[found[1]] = _readable(found[2])
    return [f"{model}: {reason}" for model, reason in models.items()]


def last_errors(lines: Iterable[str]) -> list[str]:
    """The last few errors of a log, whatever they are about."""
    errors = [_readable(found[1]) for line in lines if (found := _ERROR.match(line)) and not _HARMLESS.search(line)]
    return errors[-_LAST_ERRORS:]


def _readable(text: str) -> str:
    r"""Undo the log's quoting and cut what only Triton's developers want to see.

    >>> _readable(r'Internal: RuntimeError: no weights\n\nAt:\n  /models/unet/1/model.py(5): initialize\n"')
    'RuntimeError: no weights\n  at /models/unet/1/model.py(5): initialize'
    """
    text = text.strip().removesuffix('"').removeprefix('"').replace(r"\n", "\n").replace(r"\"", '"')
    text = re.sub(r"^(Internal|Invalid argument): ", "", text.strip())
    message, _, stack = text.partition("\n\nAt:\n")
    message = textwrap.indent(message.strip(), "  ").strip()
    first_frame = stack.strip().split("\n", 1)[0]
    return f"{message}\n  at {first_frame}" if first_frame else message
