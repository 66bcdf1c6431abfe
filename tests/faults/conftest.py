"""The table that all fault tests write, and what a server may not leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from matrix import Matrix
from psutil import pid_exists
from running_gateway import wait_until
from supervised import PATIENCE_S, regions


@pytest.fixture(scope="session")
def matrix() -> Iterator[Matrix]:
    """Written to output/faults.md at the end."""
    matrix = Matrix()
    yield matrix
    matrix.write()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Around a server's whole life: it may leave nothing on tmpfs. Other tests' servers may run meanwhile."""
    before = set(regions())
    yield
    # Servers of tests in other processes may have lost their parents, and be about to end.
    wait_until(lambda: not _orphaned() - before, PATIENCE_S)


def _orphaned() -> set[str]:
    return {name for name, owner in regions().items() if owner == os.getpid() or not pid_exists(owner)}
