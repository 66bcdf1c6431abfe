"""The gateway's command as a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
from running_gateway import wait_until

COMMAND = Path(sys.executable).with_name("tiny-sd-gateway")


class Process:
    """``tiny-sd-gateway run``, as a context manager. ``inside`` runs it, as ``unshare`` does."""

    def __init__(
        self, database_url: str, triton_url: str, log: Path, inside: Sequence[str] = (), **environment: str
    ) -> None:
        self._log = log
        self._inside = inside
        mine = {"DATABASE_URL": database_url, "TRITON_URL": triton_url, "PORT": "0", "LOG_FORMAT": "json"}
        self._environment = {f"TINY_SD_GATEWAY_{name}": value for name, value in mine.items()} | environment

    def __enter__(self) -> Self:
        self._stderr = self._log.open("a")
        self.process = subprocess.Popen(
            [*self._inside, COMMAND, "run"],
            env={**os.environ, **self._environment},
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        wait_until(lambda: self._address() is not None or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self._log.read_text()
        self.url = str(self._address())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._stderr.close()

    def read_key(self) -> str:
        """The key that is printed on the first start."""
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.search(r"tsd_\S{43}", line):
                return found[0]
        raise AssertionError("no key was printed")

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self._logged()]

    def _address(self) -> str | None:
        found = re.findall(r"running on (http://[0-9.:]+)", "".join(self._logged()))
        return found[-1] if found else None

    def _logged(self) -> list[str]:
        """The lines of the log, without one that is being written."""
        return [line for line in self._log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def post(
    gateway: Process,
    path: str,
    key: str,
    headers: dict[str, str] | None = None,
    stream: bool = False,
    timeout: float = 60,
    **values: Any,
) -> requests.Response:
    headers = {"x-api-key": key, **(headers or {})}
    return requests.post(gateway.url + path, json=values, headers=headers, stream=stream, timeout=timeout)


def get(gateway: Process, path: str, key: str) -> requests.Response:
    return requests.get(gateway.url + path, headers={"x-api-key": key}, timeout=60)
