"""What the tests of tools/checkpoint.py share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published import like_runway, like_segmind
from running import Tool


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The ``test`` checkpoint is too small for several: on a busy machine they wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(capsys)


@pytest.fixture(scope="session")
def bins(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``test`` checkpoint as segmind/tiny-sd is published."""
    return like_segmind(checkpoint, tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture(scope="session")
def sd15(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``test`` checkpoint as Stable Diffusion 1.5 is published."""
    return like_runway(checkpoint, tmp_path_factory.mktemp("published") / "sd15")
