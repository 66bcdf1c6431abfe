"""``tools/serve.py --supervise``: whatever ends the pictures, they come again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from serving_server import FP32, SMALL_SIZES

from local_server.install import ROOT
from local_server.ports import free_ports
from tiny_sd_client import Client, TinySDError


class Supervised:
    """The command; its output can be waited for line by line."""

    def __init__(self, checkpoint: Path, log: Path) -> None:
        ports = free_ports()
        self.url = f"grpc://127.0.0.1:{ports.grpc}"
        options = [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"]
        self.process = subprocess.Popen(
            [sys.executable, "tools/serve.py", "--supervise", "1", f"--log={log}", *options],
            cwd=ROOT,
            env={**os.environ, **FP32, **SMALL_SIZES, "TINY_SD_CHECKPOINT": str(checkpoint)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, text: str) -> str:
        assert self.process.stdout
        found = next((line for line in self.process.stdout if text in line), None)
        assert found, f"{text!r} was never printed"
        return found

    def the_process(self, part: str) -> psutil.Process:
        """The one whose command line has ``part``."""
        (found,) = (
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if any(part in argument for argument in process.cmdline())
        )
        return found


@pytest.fixture(scope="module")
def supervised(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    command = Supervised(checkpoint, tmp_path_factory.mktemp("supervised") / "log")
    try:
        command.wait_for("Ready")
        yield command
    finally:
        command.process.send_signal(signal.SIGINT)
        command.process.communicate(timeout=120)
        assert command.process.returncode == 0


@pytest.mark.parametrize("victim", ["/unet/1/model.py", "/text_encoder/1/model.py", "bin/tritonserver"])
def test_whatever_is_killed_the_server_makes_pictures_again(victim: str, supervised: Supervised) -> None:
    supervised.the_process(victim).kill()
    supervised.wait_for("starting again")
    deadline = time.monotonic() + 120
    while True:
        try:
            with Client(supervised.url, patience=0) as client:
                assert client.generate("a circle", img_width=128, img_height=128).files
            return
        except TinySDError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
