"""The bar and the preview on a terminal, and silence elsewhere."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import numpy as np
import pytest
import rich

from tiny_sd_client.command.progress import Display
from tiny_sd_client.results import Progress, Stage
from tiny_sd_engine.images import encode

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SHOW_CURSOR = "\x1b[?25h"
RED = encode(np.full((64, 64, 3), (255, 0, 0), np.uint8), "jpeg", {})
RED_CELL = "\x1b[38;2;254;0;0;48;2;254;0;0m▀"


class Terminal(io.StringIO):
    """Takes down what it would show."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """The bars that were shown, without control sequences."""
        plain = CONTROL.sub("", self.getvalue())
        return [" ".join(re.sub("[━╸╺]+", "|", line).split()) for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """80 x 24 characters in all colours; the clock of the bars stands still."""
    monkeypatch.setattr(rich.get_console(), "get_time", lambda: 1000.0)
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


@contextmanager
def display_on(terminal: Terminal, *, wanted: bool = True) -> Iterator[Display]:
    """A display whose stderr is ``terminal``."""
    with redirect_stderr(terminal), Display(wanted=wanted) as display:
        yield display


def denoising(step: int, seconds_left: float | None = None, *previews: bytes) -> Progress:
    return Progress("id", Stage.DENOISING, step, 20, 1.0, seconds_left, previews)


def test_a_bar_tells_stage_step_and_the_seconds_that_are_left(terminal: Terminal) -> None:
    with display_on(terminal) as display:
        display.generation(denoising(5, 74.6))
    assert terminal.lines[0] == "connecting | 0:00:00"
    assert terminal.lines[-1] == "denoising | step 5 of 20 0:00:00 0:01:15 left"


def test_no_time_is_told_while_it_is_not_known(terminal: Terminal) -> None:
    with display_on(terminal) as display:
        display.generation(denoising(0))
    assert terminal.lines[-1] == "denoising | step 0 of 20 0:00:00"
    with display_on(terminal) as display:
        display.generation(Progress("id", Stage.DECODING, 20, 20, 1.0, 0.0))
    assert terminal.lines[-1] == "decoding | step 20 of 20 0:00:00"


def test_several_prompts_share_a_bar(terminal: Terminal) -> None:
    with display_on(terminal) as display:
        display.prompts(0, 3)
        display.clear()
        display.prompts(2, 3)
    assert terminal.lines[-1] == "prompts | 2 of 3 0:00:00 0:00:00 left"


def test_the_terminal_is_left_clean_whatever_happens(terminal: Terminal) -> None:
    def interrupted() -> None:
        with display_on(terminal) as display:
            display.generation(denoising(5, 1.0, RED))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    drawn, last = terminal.getvalue().rsplit("▀", 1)
    assert last.count("\x1b[1A\x1b[2K") == 1 + 22, "the bar and the 22 lines of the preview are erased"
    assert last.rindex(SHOW_CURSOR) >= 0
    assert drawn


def test_the_preview_is_drawn_below_the_bar_as_large_as_the_terminal_allows(terminal: Terminal) -> None:
    with display_on(terminal) as display:
        assert display.shows_previews
        display.generation(denoising(5, 1.0, RED))
    last_frame = terminal.getvalue().rpartition("denoising")[2]
    assert last_frame.count(RED_CELL) == 44 * 22


def test_several_previews_stand_side_by_side(terminal: Terminal) -> None:
    with display_on(terminal) as display:
        display.generation(denoising(5, 1.0, RED, RED))
    assert terminal.getvalue().rpartition("denoising")[2].count(RED_CELL) == 80 * 20


def test_a_tiny_terminal_is_no_trouble(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "1")
    monkeypatch.setenv("COLUMNS", "8")
    with display_on(terminal) as display:
        display.generation(denoising(5, 1.0, RED))
    assert "▀" in terminal.getvalue()


def test_a_preview_that_is_no_picture_costs_nothing_but_itself(terminal: Terminal) -> None:
    with display_on(terminal) as display:
        display.generation(denoising(5, 1.0, b"\x1b[2J no picture"))
    assert "▀" not in terminal.getvalue()
    assert terminal.lines[-1].startswith("denoising | step 5 of 20")


@pytest.mark.parametrize(
    "environment", [{"COLORTERM": ""}, {"NO_COLOR": "1"}, {"TERM": "xterm", "COLORTERM": "no"}], ids=str
)
def test_without_all_colours_there_is_a_bar_but_no_preview(
    environment: dict[str, str], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with display_on(terminal) as display:
        assert not display.shows_previews
        display.generation(denoising(5, 1.0, RED))
    assert "▀" not in terminal.getvalue()
    assert "step 5 of 20" in terminal.lines[-1]


@pytest.mark.parametrize("reason", ["not wanted", "no terminal", "dumb"])
def test_nothing_is_shown_where_it_is_not_wanted_or_cannot_be(
    reason: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "no terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
        monkeypatch.setenv("FORCE_COLOR", "1")
    if reason == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with display_on(terminal, wanted=reason != "not wanted") as display:
        assert not display.shows_previews
        display.generation(denoising(5, 1.0, RED))
        display.prompts(1, 2)
        display.clear()
    assert terminal.getvalue() == ""


def test_stdout_is_left_alone(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with display_on(terminal):
        assert sys.stdout is before
        sys.stdout.write("a result\n")
    assert capsys.readouterr().out == "a result\n"
