"""Memory over thousands of requests of all kinds: no process of the server may grow with their number."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from running_gateway import wait_until
from serving_server import FP32, SMALL_SIZES
from supervised import PATIENCE_S

from local_server import LocalServer
from local_server.install import ROOT
from tiny_sd_client import Client, TinySDError

CALLERS = 8
WARM_UP = 1000
"""Requests until pools have their size; the text cache is full after these."""
REQUESTS = 4000
SAMPLES = 40
MOST = 2.0
"""MiB per 1,000 requests that a process may grow by."""
LEAK = 64 * 1024
"""Bytes that the control keeps of each request: 62.5 MiB per 1,000."""
_MIB = 2**20


@dataclass(frozen=True)
class Growth:
    """How a process's own memory follows the number of requests, by least squares: MiB per 1,000 of them."""

    slope: float
    deviation: float
    memory: float
    """MiB at the end."""

    @property
    def grows(self) -> bool:
        """Whether it certainly grows by more than it may."""
        return self.slope - 3 * self.deviation > MOST


@pytest.fixture
def sound(checkpoint: Path, tmp_path: Path) -> Iterator[LocalServer]:
    with serve(checkpoint, ROOT / "model_repository", tmp_path) as server:
        yield server


@pytest.fixture
def leaking(checkpoint: Path, tmp_path: Path) -> Iterator[LocalServer]:
    repository = tmp_path / "model_repository"
    shutil.copytree(ROOT / "model_repository", repository, ignore=shutil.ignore_patterns("__pycache__"))
    with (repository / "tokenizer" / "1" / "model.py").open("a") as file:
        file.write(f"""
_kept = []
def _leak(execute):
    def leaking(self, requests):
        _kept.extend(bytearray({LEAK}) for _ in requests)
        return execute(self, requests)
    return leaking
TritonPythonModel.execute = _leak(TritonPythonModel.execute)
""")
    with serve(checkpoint, repository, tmp_path) as server:
        yield server


def serve(checkpoint: Path, repository: Path, folder: Path) -> LocalServer:
    environment = {"TINY_SD_CHECKPOINT": str(checkpoint), "TINY_SD_TEXT_CACHE_MB": "8", **FP32, **SMALL_SIZES}
    return LocalServer(repository=repository, env=environment, log_path=folder / "log")


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_process_grows_with_the_number_of_requests(sound: LocalServer) -> None:
    growth = watch(sound, WARM_UP, REQUESTS)
    write(growth, ROOT / "output" / "soak.md")
    assert not [name for name, each in growth.items() if each.grows], growth


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_check_catches_a_process_that_leaks(leaking: LocalServer) -> None:
    growth = watch(leaking, WARM_UP, REQUESTS // 8)
    assert [name for name, each in growth.items() if each.grows] == ["tokenizer"], growth
    assert growth["tokenizer"].slope == pytest.approx(1000 * LEAK / _MIB, rel=0.3)


def watch(server: LocalServer, warm_up: int, count: int) -> dict[str, Growth]:
    """Send so many requests, and look at every process between them."""
    each = count // SAMPLES
    sent, memory = [], defaultdict(list)
    with ThreadPoolExecutor(CALLERS) as threads:
        work = requests_of_all_kinds(server)
        list(threads.map(lambda send: send(), islice(work, warm_up)))
        for sample in range(SAMPLES):
            list(threads.map(lambda send: send(), islice(work, each)))
            with Client(f"grpc://{server.grpc_url}") as client:
                wait_until(lambda: not client.jobs(), PATIENCE_S)
            sent.append((sample + 1) * each)
            for name, size in memory_of(server).items():
                memory[name].append(size)
    return {name: _growth(sent, sizes) for name, sizes in memory.items()}


def requests_of_all_kinds(server: LocalServer) -> Iterator[Callable[[], None]]:
    """Endlessly: things that send one request and wait for its end."""
    chance = random.Random(0)
    client = Client(f"grpc://{server.grpc_url}")
    kinds = (unary, unary, unary, stream, leave, refused, over_http)
    while True:
        kind, seed = chance.choice(kinds), chance.randrange(2**31)
        size = {"img_width": chance.choice((128, 256)), "img_height": 128}
        yield partial(kind, server, client, {"prompt": f"number {seed}", **size})


def unary(server: LocalServer, client: Client, wanted: Mapping[str, object]) -> None:
    client.generate(**wanted)


def stream(server: LocalServer, client: Client, wanted: Mapping[str, object]) -> None:
    for _ in client.stream(**wanted, preview_every=5):
        pass


def leave(server: LocalServer, client: Client, wanted: Mapping[str, object]) -> None:
    """After the first event."""
    with closing(client.stream(**{**wanted, "num_inference_steps": 100})) as events:
        next(events)


def refused(server: LocalServer, client: Client, wanted: Mapping[str, object]) -> None:
    requests.post(f"http://{server.http_url}/v2/models/tiny_sd/generate", json={**wanted, "seed": -7}, timeout=60)


def over_http(server: LocalServer, client: Client, wanted: Mapping[str, object]) -> None:
    with suppress(TinySDError), Client(f"http://{server.http_url}") as other:
        other.generate(**wanted)


def memory_of(server: LocalServer) -> dict[str, float]:
    """MiB that each process has for itself alone, by its model."""
    return {_name(process): process.memory_full_info().uss / _MIB for process in server.process_tree()}


def _name(process: psutil.Process) -> str:
    scripts = [Path(word) for word in process.cmdline() if word.endswith("/model.py")]
    return scripts[0].parts[-3] if scripts else process.name()


def _growth(sent: list[int], sizes: list[float]) -> Growth:
    coefficients, covariance = np.polyfit(np.array(sent) / 1000, sizes, 1, cov=True)
    return Growth(float(coefficients[0]), float(covariance[0, 0] ** 0.5), sizes[-1])


def write(growth: Mapping[str, Growth], path: Path) -> None:
    lines = ["| process | MiB at the end | MiB per 1,000 requests | standard deviation of that |", "|---|---|---|---|"]
    lines += [f"| {name} | {g.memory:.0f} | {g.slope:+.2f} | {g.deviation:.2f} |" for name, g in growth.items()]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
