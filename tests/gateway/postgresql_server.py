"""A PostgreSQL server of its own, from the binaries that this machine has."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ADVICE = "PostgreSQL is not installed; on Debian and Ubuntu: apt-get install postgresql"


def binaries() -> Path:
    """The folder of initdb and postgres. Raises RuntimeError if there is none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if not versions:
        raise RuntimeError(_ADVICE)
    return versions[-1]


class PostgreSQL:
    """The server, on a free port and without a password; a context manager that starts and stops it."""

    def __init__(self) -> None:
        self.bin = binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        # It refuses to run as root.
        self.user = next(name for name in ("postgres", "nobody") if _exists(name)) if os.getuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        # Bound here for as long as it lives: nobody else gets the port while the server is not there.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.port = self._port.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._call("initdb", "--pgdata", "data", "--auth", "trust", "--username", "gateway", "--no-sync")
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._port.close()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",  # what is tested are crashes of gateways, not of this machine
        }
        self.process = subprocess.Popen(
            [self.bin / "postgres", "-D", "data", *(f"--{name}={value}" for name, value in options.items())],
            **self._as_user(),
        )
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended: {self.log}")
            try:
                self.execute("SELECT 1")
            except subprocess.CalledProcessError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"PostgreSQL does not answer: {self.log}")

    def stop(self) -> None:
        """Stop the server; clients lose their connections."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End the server at once, in the middle of whatever it does; it recovers when it starts again."""
        self._end(signal.SIGQUIT)

    def _end(self, by: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(by)
            self.process.wait(60)
            self.process = None

    def url(self, database: str) -> str:
        return f"postgresql://gateway@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """Run a statement outside of transactions, as CREATE DATABASE must be."""

        self._call("psql", "--no-psqlrc", "--quiet", "--command", statement, self.url("postgres"))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run([self.bin / program, *arguments], check=True, **self._as_user())

    def _as_user(self) -> dict[str, Any]:
        log = (self.folder / "log").open("ab")
        user = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []} if self.user else {}
        return {"cwd": self.folder, "stdout": log, "stderr": log, **user}


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
