"""Gateways that really listen, with a fake Triton behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from running_gateway import RunningGateway, StartGateway


@pytest.fixture
def sqlite_url(migrated_file: Path, tmp_path: Path) -> str:
    file = tmp_path / "gateway.db"
    file.write_bytes(migrated_file.read_bytes())
    return f"sqlite:///{file}"


@pytest.fixture
def start_gateway(sqlite_url: str) -> Iterator[StartGateway]:
    """Starts gateways with the settings that it is given, on SQLite unless told otherwise."""
    with ExitStack() as stack:

        def start(**settings: Any) -> RunningGateway:
            return stack.enter_context(RunningGateway(settings.pop("database_url", sqlite_url), **settings))

        yield start


@pytest.fixture
def gateway(start_gateway: StartGateway) -> RunningGateway:
    return start_gateway()
