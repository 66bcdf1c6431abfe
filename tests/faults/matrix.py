"""The table of faults: what callers saw, how long it took to recover, what was left behind."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

from local_server.install import ROOT

REPORT = ROOT / "output" / "faults.md"


@dataclass(frozen=True)
class Row:
    """One fault as it was survived; ``seconds``: until the next picture, where something had to come back for it."""

    fault: str
    callers_saw: str
    seconds: float | None = None
    left_behind: str = "nothing"


class Matrix:
    """The rows of a run of the tests."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Note it."""
        self._rows.append(row)

    def write(self, path: Path = REPORT) -> None:
        """As Markdown, if there is anything."""
        if not self._rows:
            return
        lines = ["| fault | callers in flight saw | seconds to the next picture | left behind |", "|---|---|---|---|"]
        for row in sorted(self._rows, key=lambda row: row.fault):
            fault, saw, seconds, left = astuple(row)
            lines.append(f"| {fault} | {saw} | {'' if seconds is None else f'{seconds:.1f}'} | {left} |")
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
