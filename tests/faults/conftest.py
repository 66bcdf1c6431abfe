"""The table that all fault tests write, and what a server may not leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matrix import Matrix

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def matrix() -> Iterator[Matrix]:
    """Written to output/faults.md at the end."""
    matrix = Matrix()
    yield matrix
    matrix.write()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Around a server's whole life: it may leave nothing on tmpfs."""
    before = set(SHARED_MEMORY.iterdir())
    yield
    left = {path for path in set(SHARED_MEMORY.iterdir()) - before if path.name.startswith("tiny_sd")}
    assert not left
