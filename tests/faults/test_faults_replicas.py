"""Two Tritons behind a real proxy, with the gateway in front: one is killed under load, then both are replaced."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from callers import metrics
from gateway_process import Process, get, post
from haproxy_in_front import NAMES, HAProxy
from matrix import Matrix, Row
from running_gateway import SLUG, wait_until
from serving_server import FP32, SMALL_SIZES
from supervised import PATIENCE_S

from local_server import LocalServer

CALLERS = 8
CREDITS = 10_000
PICTURE = {"prompt": "a small red circle", "img_width": 128, "img_height": 128, "base64": False}
TINY_SD = Path(sys.executable).with_name("tiny-sd")


class Load:
    """Callers of the gateway who ask again and again; as a context manager."""

    def __init__(self, gateway: Process, key: str) -> None:
        self._gateway, self._key = gateway, key
        self._enough = threading.Event()
        self.answers: Counter[int] = Counter()
        self._longest = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(CALLERS)
        self._calls = [self._threads.submit(self._call, number) for number in range(CALLERS)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._enough.set()
        for call in self._calls:
            call.result(PATIENCE_S)
        self._threads.shutdown()

    def go_on(self, pictures: int) -> None:
        """Until there are so many more."""
        goal = self.answers[200] + pictures
        wait_until(lambda: self.answers[200] >= goal, PATIENCE_S)

    def longest(self) -> float:
        """Seconds that the slowest caller has waited since this was last asked."""
        with self._lock:
            longest, self._longest = self._longest, 0.0
            return longest

    def _call(self, number: int) -> None:
        seed = number
        while not self._enough.is_set():
            seed += CALLERS
            began = time.monotonic()
            answer = post(self._gateway, f"/v1/{SLUG}", self._key, timeout=PATIENCE_S, **PICTURE, seed=seed)
            with self._lock:
                self.answers[answer.status_code] += 1
                self._longest = max(self._longest, time.monotonic() - began)


@pytest.mark.long  # six starts of a Triton
def test_one_of_two_tritons_may_die_and_both_be_replaced_under_load(
    checkpoint: Path, tmp_path: Path, nothing_left: None, matrix: Matrix
) -> None:
    environment = {"TINY_SD_CHECKPOINT": str(checkpoint), **FP32, **SMALL_SIZES}
    servers = {name: LocalServer(env=environment, log_path=tmp_path / name) for name in NAMES}
    settings = {"REQUESTS_PER_MINUTE": "100000", "DEV_KEY_CREDITS": str(CREDITS), "SIZES": "128,512"}
    with ExitStack() as stack:
        for server in servers.values():
            stack.callback(server.stop)
            server.start()
        proxy = stack.enter_context(HAProxy(list(servers.values()), tmp_path))
        wait_until(lambda: all(map(proxy.is_up, NAMES)), PATIENCE_S)
        gateway = stack.enter_context(
            Process(
                f"sqlite:///{tmp_path}/gateway.db",
                proxy.url,
                tmp_path / "log",
                **{f"TINY_SD_GATEWAY_{name}": value for name, value in settings.items()},
            )
        )
        key = gateway.read_key()
        with Load(gateway, key) as load:
            load.go_on(2 * CALLERS)
            assert all(drawn(server) for server in servers.values()), "both have their share"

            servers["one"].kill()
            load.go_on(4 * CALLERS)
            matrix.add(
                Row("one of two Tritons is killed", "pictures, after another try of the gateway's", load.longest())
            )
            servers["one"].start()
            wait_until(lambda: proxy.is_up("one"), PATIENCE_S)

            for name, server in servers.items():
                proxy.set_state(name, "drain")
                drain = [TINY_SD, "drain", "--url", f"grpc://{server.grpc_url}", "--timeout", "120"]
                subprocess.run(drain, check=True, timeout=PATIENCE_S)
                server.stop()
                server.start()
                proxy.set_state(name, "ready")
                wait_until(lambda name=name: proxy.is_up(name), PATIENCE_S)
                load.go_on(2 * CALLERS)
            assert all(drawn(server) for server in servers.values()), "both are back"
            matrix.add(Row("both of two Tritons behind haproxy are replaced under load", "pictures", load.longest()))
        assert set(load.answers) == {200}
        spent = CREDITS - float(get(gateway, "/v1/credits", key).json()["remaining_credits"])
        assert spent == pytest.approx(load.answers[200] * float(cost_of_one(gateway, key))), "each is charged once"


def drawn(server: LocalServer) -> float:
    """How many generations it has finished since its start."""
    return metrics(server.metrics_url)["nv_inference_request_success_total:tiny_sd"]


def cost_of_one(gateway: Process, key: str) -> str:
    """In credits."""
    return post(gateway, f"/v1/{SLUG}", key, **PICTURE).headers["x-cost"]
