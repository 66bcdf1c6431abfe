"""What all tests share: the random-weight ``test`` checkpoint, and diffusers' own pipeline on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from painting import write_painting
from reference import Reference
from tiny_sd_engine.architectures import write_random


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "test"
    write_random("test", folder)
    return folder


@pytest.fixture(scope="session")
def painting_checkpoint(checkpoint: Path) -> Path:
    """Whose networks denoise and paint as trained ones do."""
    return write_painting(checkpoint, checkpoint.parent / "painting")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)
