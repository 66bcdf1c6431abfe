"""What the tests without a server share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The ``test`` checkpoint is too small for several: on a busy machine they wait for each other, up to 200 times."""
    torch.set_num_threads(1)


@pytest.fixture
def seeded() -> None:
    """The same random weights and inputs in every run."""
    torch.manual_seed(0)


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state for each process; a training run is meant to have a process of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
