"""How far the work is, live on stderr."""

from __future__ import annotations

import sys
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from tiny_sd_client.command.terminal import half_blocks
from tiny_sd_client.pictures import InvalidImage, decode, grid
from tiny_sd_client.results import Progress, Stage

_REFRESHES_PER_SECOND = 2  # a preview takes up to 100 kB, and terminals may be far away


class Display:
    """A bar on the terminal while its block lasts, with the preview below it.

    Shows nothing where it is not ``wanted`` or where stderr is no terminal.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._shown = wanted and sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._task = self._bar.add_task("connecting", total=None, count="", left="")
        self._live: Live | None = None

    @property
    def shows_previews(self) -> bool:
        """Whether the terminal can draw pictures."""
        true_colour = self._console.color_system == "truecolor" and not self._console.no_color
        return self._shown and true_colour and self._console.encoding.startswith("utf")

    def __enter__(self) -> Self:
        self._show(self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Leave the terminal to others until there is news."""
        if self._live:
            self._live.stop()
            self._live = None

    def generation(self, progress: Progress) -> None:
        """Show how far one generation is."""
        known = progress.stage is Stage.DENOISING and progress.seconds_left is not None
        self._bar.update(
            self._task,
            description=progress.stage.value,
            completed=progress.step,
            total=progress.steps,
            count=f"step {progress.step} of {progress.steps}",
            left=_left(progress.seconds_left or 0.0) if known else "",
        )
        if progress.previews and self.shows_previews:
            self._show(Group(self._bar, *self._picture(progress.previews)))

    def prompts(self, done: int, total: int) -> None:
        """Show how many of several generations are finished."""
        elapsed = self._bar.tasks[0].elapsed or 0.0
        self._bar.update(
            self._task,
            description="prompts",
            completed=done,
            total=total,
            count=f"{done} of {total}",
            left=_left(elapsed / done * (total - done)) if done else "",
        )
        self._show(self._bar)

    def _show(self, content: RenderableType) -> None:
        if self._live:
            self._live.update(content)
        elif self._shown:
            self._live = Live(
                content,
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                refresh_per_second=_REFRESHES_PER_SECOND,
            )
            self._live.start(refresh=True)

    def _picture(self, previews: tuple[bytes, ...]) -> list[RenderableType]:
        """The previews side by side; nothing for files that are none."""
        try:
            row = grid([decode(preview) for preview in previews], columns=len(previews), gap=0)
        except InvalidImage:
            return []
        # The bar takes a line, and the cursor one.
        return [half_blocks(row, self._console.width, max(1, self._console.height - 2))]


def _left(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))} left"
