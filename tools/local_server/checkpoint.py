"""Which checkpoint the local server serves, checked before Triton starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from local_server.errors import BrokenCheckpoint, NoCheckpoint
from local_server.install import ROOT

VARIABLE = "TINY_SD_CHECKPOINT"
DEFAULT = ROOT / "checkpoints" / "demo"


def choose_checkpoint(named: Path | None, env: Mapping[str, str] = os.environ) -> Path:
    """The folder that was named, else TINY_SD_CHECKPOINT's, else the built-in one.

    Raises NoCheckpoint or BrokenCheckpoint. The path comes back absolute.
    """
    if named is None and env.get(VARIABLE):
        named = Path(env[VARIABLE])
    path = named.expanduser().resolve() if named else DEFAULT
    check(path)
    return path


def check(path: Path) -> None:
    """Raise NoCheckpoint or BrokenCheckpoint if the engine could not serve the folder `path`."""
    # Here, not above: the engine brings torch, and other people's models are served without it.
    from tiny_sd_engine.checkpoint import inspect  # noqa: PLC0415
    from tiny_sd_engine.errors import CheckpointError  # noqa: PLC0415

    if not path.is_dir():
        raise NoCheckpoint(
            f"{path}: no such checkpoint folder; name a diffusers folder with --checkpoint or {VARIABLE}"
        )
    try:
        inspect(path)
    except CheckpointError as error:
        advice = "; bring it back with: git checkout -- checkpoints/demo" if path == DEFAULT else ""
        raise BrokenCheckpoint(f"{error}{advice}") from error


def make_random(architecture: str, path: Path) -> Path:
    """A checkpoint of random weights at `path`, written unless it is there; returns `path`.

    It appears there whole or not at all, whoever else makes it at the same time.
    """
    if path.is_dir():
        return path
    from tiny_sd_engine.architectures import write_random  # noqa: PLC0415 -- as above, torch

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as directory:
        made = Path(directory, path.name)
        write_random(architecture, made)
        with suppress(FileExistsError):
            _move(made, path)
    return path


def _move(made: Path, path: Path) -> None:
    """Rename a folder; FileExistsError if somebody else's was there first."""
    try:
        made.rename(path)
    except OSError as error:
        if path.is_dir():
            raise FileExistsError(path) from error
        raise
