"""How a run says what it does: bars on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter:
    """Writes to stderr. Open while it is used."""

    def __init__(self, *, silent: bool = False) -> None:
        """Silent: for the processes of a run beside the first."""
        self._console = Console(stderr=True, quiet=silent, highlight=False, markup=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=silent or not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line)

    def begin(self, name: str, total: int, done: int = 0) -> Callable[..., None]:
        """Begin a piece of work. What it gives is told how much more is done, and a note to show."""
        if not self._console.is_terminal:
            self.say(f"{name}: {done} of {total}")
        bar = self._bars.add_task(name, total=total, completed=done, note="")

        def advance(more: int, note: str = "") -> None:
            self._bars.update(bar, advance=more, note=note)

        return advance
