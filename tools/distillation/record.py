"""The losses of a run, one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Entry:
    """One step."""

    step: int
    """From 1 on."""
    loss: float
    task: float
    output: float
    """0 without a teacher, like `feature`."""
    feature: float
    gradient: float
    """Norm of the gradient before it was clipped."""
    learning_rate: float
    seconds: float


class Record:
    """A file of entries that is added to; what a killed run left behind its last saved state is cut off."""

    def __init__(self, path: Path, *, after: int) -> None:
        """Go on after a step; 0: from the beginning."""
        kept = [entry for entry in read(path) if entry.step <= after] if path.is_file() else []
        partial = path.with_name(f".{path.name}")
        partial.write_text("".join(map(_line, kept)))
        partial.replace(path)
        self._file = path.open("a")

    def add(self, entry: Entry) -> None:
        """Add an entry, at once."""
        self._file.write(_line(entry))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()


def read(path: Path) -> list[Entry]:
    """The entries of a file; a last line that was cut short is left out."""
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"
