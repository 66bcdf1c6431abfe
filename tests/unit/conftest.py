"""What the tests without a server share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The ``test`` checkpoint is too small for several: on a busy machine they wait for each other, up to 200 times."""
    torch.set_num_threads(1)
