"""Real Triton servers, each started once for all tests that need it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_server import SMALL_SIZES, serve

from local_server import LocalServer


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """As it comes, but in float32, which the reference is compared in."""
    with serve(checkpoint, tmp_path_factory.mktemp("server") / "log", {}) as server:
        yield server


@pytest.fixture(scope="session")
def batching_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """With the row bound of a GPU, small pictures, quick eviction, and room for more jobs than the U-Net holds.

    Not too quick: what stands still for a while would be evicted and begin again, and its steps count twice.
    """
    environment = {
        **SMALL_SIZES,
        "TINY_SD_MAX_ROWS": "16",
        "TINY_SD_EVICT_AFTER_S": "10",
        "TINY_SD_MAX_IN_FLIGHT": "100",
    }
    with serve(checkpoint, tmp_path_factory.mktemp("batching") / "log", environment) as server:
        yield server


@pytest.fixture(scope="session")
def narrow_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """That takes on four generations at a time."""
    environment = {**SMALL_SIZES, "TINY_SD_MAX_IN_FLIGHT": "4"}
    with serve(checkpoint, tmp_path_factory.mktemp("narrow") / "log", environment) as server:
        yield server


@pytest.fixture(scope="session")
def plain_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Without in-flight batching."""
    log = tmp_path_factory.mktemp("plain") / "log"
    with serve(checkpoint, log, SMALL_SIZES, "--model-config-name=plain") as server:
        yield server
