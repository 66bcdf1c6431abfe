"""tools/gateway.py: Triton and the gateway together, from the first start to Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from serving_server import FP32, SMALL_SIZES

from local_server.install import ROOT


class Tool:
    """The running tool, with the first lines that it printed read up to the playground's address."""

    def __init__(self, checkpoint: Path, data: Path) -> None:
        environment = {**os.environ, **FP32, **SMALL_SIZES, "TINY_SD_CHECKPOINT": str(checkpoint)}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tools" / "gateway.py", "--port", "0"],
            env={**environment, "XDG_DATA_HOME": str(data)},
            stdout=subprocess.PIPE,
            stderr=(data / "stderr").open("w"),
            text=True,
        )
        assert self.process.stdout
        said = iter(self.process.stdout.readline, "")
        pages = (re.fullmatch(r"Playground: (http://localhost:\d+)/#key=(\S+)\n", line) for line in said)
        page = next(filter(None, pages), None)
        assert page, (data / "stderr").read_text()
        self.url, self.key = page.groups()

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> int:
        """The exit code."""
        self.process.communicate(timeout=120)
        return self.process.returncode


@pytest.fixture
def tool(checkpoint: Path, tmp_path: Path) -> Iterator[Tool]:
    tool = Tool(checkpoint, tmp_path)
    yield tool
    if tool.process.poll() is None:
        tool.process.terminate()
        tool.end()


def test_pictures_come_over_rest_and_ctrl_c_ends_everything(tool: Tool) -> None:
    body = {"prompt": "a small red circle", "img_width": 128, "img_height": 128, "base64": False}
    answer = requests.post(f"{tool.url}/v1/tinysd1.5-txt2img", json=body, headers={"x-api-key": tool.key}, timeout=120)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg"), answer.text
    assert "Tiny-SD" in requests.get(tool.url, timeout=60).text
    processes = tool.processes()
    assert "tritonserver" in {process.name() for process in processes}
    tool.process.send_signal(signal.SIGINT)
    assert tool.end() == 0
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left


@pytest.mark.long
def test_a_triton_that_dies_ends_both_with_its_name(tool: Tool, tmp_path: Path) -> None:
    processes = tool.processes()
    next(process for process in processes if process.name() == "tritonserver").kill()
    assert tool.end() == 1
    assert "error: Triton stopped while serving (killed by SIGKILL)" in (tmp_path / "stderr").read_text()
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left
