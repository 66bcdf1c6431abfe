"""``tools/serve.py --supervise`` as a process: what survives the faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from serving_server import FP32, SMALL_SIZES

from local_server.install import ROOT
from local_server.ports import free_ports
from tiny_sd_client import Client, TinySDError

PATIENCE_S = 400
"""Far more than anything here takes on a machine with nothing else to do."""


def regions() -> dict[str, int]:
    """What servers have on tmpfs: the beginning of its names, and the process that started the server."""
    names = {"_".join(path.name.split("_")[:4]) for path in Path("/dev/shm").glob("tiny_sd_*")}
    return {name: int(name.split("_")[2]) for name in names}


class Supervised:
    """The command, as a context manager. ``inside`` runs it, as ``unshare`` does; ``arguments`` are the command's."""

    def __init__(
        self,
        checkpoint: Path,
        log: Path,
        *arguments: str,
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        ports = free_ports()
        self.url = f"grpc://127.0.0.1:{ports.grpc}"
        self.http_url = f"127.0.0.1:{ports.http}"
        self.log = log
        options = [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"]
        self._command = [
            *inside,
            *(sys.executable, "tools/serve.py", "--supervise", "1", f"--log={log}"),
            *options,
            *arguments,
        ]
        self._environment = {**FP32, **SMALL_SIZES, "TINY_SD_CHECKPOINT": str(checkpoint), **(environment or {})}
        self._said: list[str] = []

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env={**os.environ, **self._environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self.wait_for("Ready")
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self._reader.join()
        assert error or self.process.returncode == 0, self._said

    def said(self, text: str) -> int:
        """In how many lines the command has said so."""
        return sum(text in line for line in self._said)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until the command has said so, in so many lines since its start."""
        deadline = time.monotonic() + PATIENCE_S
        while self.said(text) < times:
            assert self.process.poll() is None, self._said
            assert time.monotonic() < deadline, f"{text!r} was not printed: {self._said}"
            time.sleep(0.05)

    def the_process(self, part: str) -> psutil.Process:
        """The one whose command line has ``part``."""
        (found,) = (process for process in self.processes() if any(part in word for word in process.cmdline()))
        return found

    def processes(self) -> list[psutil.Process]:
        """All below the command."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def regions(self) -> set[str]:
        """What it has on tmpfs."""
        return {name for name, owner in regions().items() if owner == self.process.pid}

    def picture(self, **parameters: object) -> bytes:
        """One picture's file. Raises TinySDError."""
        small = {"img_width": 128, "img_height": 128, **parameters}
        with Client(self.url, patience=0) as client:
            return client.generate("a circle", **small).files[0]

    def seconds_until_picture(self) -> float:
        """How long it takes until there is a picture again."""
        began = time.monotonic()
        while True:
            try:
                self.picture()
            except TinySDError:
                assert time.monotonic() < began + PATIENCE_S, "no picture came any more"
                time.sleep(0.2)
            else:
                return time.monotonic() - began

    def _read(self) -> None:
        assert self.process.stdout
        self._said.extend(self.process.stdout)
