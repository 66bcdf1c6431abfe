"""tools/demo.py without a server: what it asks for, and what it refuses before anything starts."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import demo
from drawings import Landscape, Shapes, landscape_combinations, parse, shape_combinations
from tiny_sd_client import ServerFault


class Watched:
    """A client whose server tells of these jobs, look after look, and then fails."""

    def __init__(self, *looks: Iterable[tuple[str, int]]) -> None:
        self._looks = list(looks)

    def jobs(self) -> list[SimpleNamespace]:
        if not self._looks:
            raise ServerFault("gone")
        return [SimpleNamespace(job_id=name, step=step, steps=20) for name, step in self._looks.pop(0)]

    @property
    def unwatched(self) -> int:
        return len(self._looks)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)


def test_the_sheet_asks_for_what_training_never_saw() -> None:
    scenes = [parse(prompt) for prompt in demo.PROMPTS]
    for prompt, scene in zip(demo.PROMPTS, scenes, strict=True):
        if isinstance(scene, Shapes):
            assert (scene.shape, scene.colour, scene.background) in shape_combinations("held-out"), prompt
        else:
            assert isinstance(scene, Landscape), prompt
            assert (scene.subject, scene.colour, scene.time) in landscape_combinations("held-out"), prompt


def test_a_missing_checkpoint_is_told_before_triton_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "LocalServer", lambda **_: pytest.fail("a server was made"))
    assert demo.main(["--checkpoint", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/absent: no such checkpoint folder")


@pytest.mark.parametrize("out", ["sheet.gif", "sheet", "folder/"])
def test_a_file_that_no_picture_goes_to_is_refused(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--out", out])
    assert f"got '{out}'; allowed: a file in .jpg, .jpeg, .png, .webp" in capsys.readouterr().err


def test_the_bar_counts_steps_under_way_and_finished_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing yet; half of two pictures; one has ended and one is at its last step; three have ended."""
    shown = []
    monkeypatch.setattr(demo, "_LOOK_S", 0.01)
    monkeypatch.setattr(demo.Progress, "update", lambda bars, task, completed: shown.append(completed))
    client = Watched([], [("a", 10), ("b", 10)], [("b", 20), ("c", 0), ("d", 0)], [("c", 5)])
    with demo.progress(client, 4, terminal()):
        while client.unwatched:
            time.sleep(0.01)
    assert shown[:4] == [0, 1, 2, 3.25]


def test_the_bar_goes_when_the_pictures_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    client = Watched()
    with demo.progress(client, 4, console):
        pass
    assert "denoising" in console.file.getvalue()
    assert console.file.getvalue().endswith("\x1b[2K")


def test_without_a_terminal_nothing_is_watched() -> None:
    client = Watched([])
    console = Console(file=io.StringIO())
    with demo.progress(client, 4, console):
        time.sleep(0.1)
    assert client.unwatched == 1
    assert not console.file.getvalue()
