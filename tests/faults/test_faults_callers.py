"""Callers who vanish, who no longer read, and who never finish what they send: nobody else notices, nothing stays."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from callers import metrics
from matrix import Matrix, Row
from running_gateway import wait_until
from serving_server import SMALL_SIZES, serve
from supervised import PATIENCE_S

from local_server import LocalServer
from local_server.install import ROOT
from tiny_sd_client import Client

STEPS = 100
# Previews at every step: more bytes than a connection takes whose caller does not read.
WATCH = """
import sys
from tiny_sd_client import Client, Unavailable
try:
    with Client(sys.argv[1], patience=0) as client:
        wanted = {"num_inference_steps": int(sys.argv[2]), "scheduler": sys.argv[3], "samples": 4}
        for event in client.stream("watched", preview_every=1, **wanted):
            print(type(event).__name__, getattr(event, "stage", ""), flush=True)
except Unavailable as error:
    print(f"Unavailable: {error}")
"""
HALF_A_REQUEST = b"POST /v2/models/tiny_sd/generate HTTP/1.1\r\nHost: tiny-sd\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serve(checkpoint, tmp_path_factory.mktemp("callers") / "log", SMALL_SIZES) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: LocalServer) -> str:
    return {"grpc": f"grpc://{server.grpc_url}", "http": f"http://{server.http_url}"}[request.param]


@contextmanager
def watching(url: str, scheduler: str = "UniPC") -> Iterator[subprocess.Popen[str]]:
    """A process that watches a generation and has seen a step of it."""
    command = [sys.executable, "-c", WATCH, url, str(STEPS), scheduler]
    process = subprocess.Popen(command, cwd=ROOT / "client", stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert any(line == "Progress denoising\n" for line in process.stdout)
        yield process
    finally:
        process.kill()
        process.communicate()


def in_flight(server: LocalServer) -> int:
    with Client(f"grpc://{server.grpc_url}") as client:
        return len(client.jobs())


def draw(server: LocalServer) -> None:
    """A small picture. Raises TinySDError."""
    with Client(f"grpc://{server.grpc_url}", patience=0) as client:
        client.generate("a circle", img_width=128, img_height=128)


def test_the_generation_of_a_process_that_is_killed_is_stopped(url: str, server: LocalServer, matrix: Matrix) -> None:
    steps = metrics(server.metrics_url)["tiny_sd_unet_steps_total:unet"]
    with watching(url, "Heun") as caller:  # twice the work of others
        caller.kill()
        wait_until(lambda: in_flight(server) == 0, PATIENCE_S)
    assert metrics(server.metrics_url)["tiny_sd_unet_steps_total:unet"] - steps < 4 * (2 * STEPS - 1), (
        "it was drawn to its end"
    )
    draw(server)
    matrix.add(Row(f"a caller over {url[:4]} is killed", "stopped before its last step"))


def test_a_caller_who_no_longer_reads_keeps_nobody_waiting(url: str, server: LocalServer, matrix: Matrix) -> None:
    with watching(url) as caller:
        caller.send_signal(signal.SIGSTOP)
        draw(server)
        wait_until(lambda: in_flight(server) == 0, PATIENCE_S)
        draw(server)
        caller.send_signal(signal.SIGCONT)
        said, _ = caller.communicate(timeout=PATIENCE_S)
    # gRPC's servers end a connection on which nothing could be sent for 20 s (TCP_USER_TIMEOUT).
    assert said.splitlines()[-1].startswith(("Generation", "Unavailable")), "who reads on has all of it or knows"
    matrix.add(Row(f"a caller over {url[:4]} stops reading, and reads on later", "all of it, or Unavailable"))


def test_requests_that_never_end_cost_nobody_anything(server: LocalServer, matrix: Matrix) -> None:
    host, port = server.http_url.split(":")
    with ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
            connection.sendall(HALF_A_REQUEST)
        draw(server)
        with Client(f"http://{server.http_url}", patience=0) as client:
            assert client.generate("a circle", img_width=128, img_height=128).files
    matrix.add(Row("100 callers over http send half a request", "others: pictures"))
