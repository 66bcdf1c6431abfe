"""tools/checkpoint.py run in this process, as its users see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint import main


class Tool:
    """Runs the tool and keeps what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *arguments: object) -> str:
        """What it prints where all goes well."""
        code, output, errors = self._run(arguments)
        assert code == 0, errors
        return output

    def complaint(self, *arguments: object) -> str:
        """The one line that it ends with where something is wrong."""
        code, _, errors = self._run(arguments)
        assert code == 1
        assert "Traceback" not in errors
        *_, last = errors.splitlines()
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    def _run(self, arguments: tuple[object, ...]) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *self._capsys.readouterr()


def names(folder: Path) -> list[str]:
    """What is in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())
