"""The real haproxy with deploy/haproxy/haproxy.cfg, before two Tritons."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from running_gateway import wait_until

from local_server import LocalServer, free_ports
from local_server.install import ROOT

NAMES = ("one", "two")


class HAProxy:
    """As a context manager; ``url`` is what callers use."""

    def __init__(self, servers: Sequence[LocalServer], folder: Path) -> None:
        address = f"127.0.0.1:{free_ports('127.0.0.1').grpc}"
        self.url = f"grpc://{address}"
        self._admin = folder / "admin.sock"
        self._environment = {"LISTEN": address, "HAPROXY_ADMIN": str(self._admin)}
        for number, server in enumerate(servers, start=1):
            self._environment |= {
                f"TRITON_{number}": "127.0.0.1",
                f"GRPC_PORT_{number}": str(server.ports.grpc),
                f"HTTP_PORT_{number}": str(server.ports.http),
            }

    def __enter__(self) -> Self:
        program = shutil.which("haproxy") or "/usr/sbin/haproxy"
        self._process = subprocess.Popen(
            [program, "-f", ROOT / "deploy" / "haproxy" / "haproxy.cfg"], env={**os.environ, **self._environment}
        )
        wait_until(self._admin.exists)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def set_state(self, name: str, state: str) -> None:
        """``ready``, or ``drain``: it gets nothing new."""
        assert self._ask(f"set server triton/{name} state {state}").strip() == ""

    def is_up(self, name: str) -> bool:
        """Whether it gets requests."""
        rows = [row.split(",") for row in self._ask("show stat").splitlines()]
        (status,) = (row[17] for row in rows if row[:2] == ["triton", name])
        return status == "UP"

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._admin))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
