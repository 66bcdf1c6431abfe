"""200 callers of a gateway that is killed under their hands, twice."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests
from books import audit, let_all_leases_run_out
from gateway_process import Process, get
from grpc_triton import GrpcTriton
from running_gateway import SLUG

from tiny_sd_gateway.database import Database

CALLERS = 200
KILLED_AFTER = (40, 140)
"""Generations that Triton has been asked for, in all."""
CREDITS = 1000
PATIENCE_S = 300
_PAUSE_S = 1.0  # 200 callers who ask more often leave the gateway no time


def test_200_callers_get_what_they_pay_for_from_a_gateway_that_is_killed(database_url: str, tmp_path: Path) -> None:
    environment = {
        "TINY_SD_GATEWAY_REQUESTS_PER_MINUTE": "100000",
        "TINY_SD_GATEWAY_DEV_KEY_CREDITS": str(CREDITS),
        "TINY_SD_GATEWAY_WORKERS": "16",
        "TINY_SD_GATEWAY_LEASE_S": "60",  # one that lives keeps what it has, however slow it is
        "TINY_SD_GATEWAY_SWEEP_S": "0.5",
    }
    with GrpcTriton() as triton, free_port() as port, ThreadPoolExecutor(CALLERS) as threads:
        triton.seconds_per_step = 0.05

        def start() -> Process:
            return Process(database_url, triton.url, tmp_path / "log", **environment, TINY_SD_GATEWAY_PORT=str(port))

        def kill(gateway: Process) -> None:
            gateway.process.kill()
            gateway.process.wait()
            asyncio.run(let_all_leases_run_out(database_url))

        with start() as gateway:
            key, url = gateway.read_key(), gateway.url
            callers = [threads.submit(call, url, number, key) for number in range(CALLERS)]
            triton.wait_for(lambda: len(triton.prompts) >= KILLED_AFTER[0], PATIENCE_S)
            kill(gateway)
        with start() as gateway:
            triton.wait_for(lambda: len(triton.prompts) >= KILLED_AFTER[1], PATIENCE_S)
            kill(gateway)
        with start() as gateway:
            for caller in callers:
                caller.result()
            assert get(gateway, "/v1/credits", key).json() == {"remaining_credits": CREDITS - CALLERS}
    # Some were drawn more than once, but nobody was charged for it.
    assert len(triton.prompts) > CALLERS
    asyncio.run(check_books(database_url))


def call(url: str, number: int, key: str) -> None:
    """Ask by the same Idempotency-Key until the picture has come: half of them in v1, half of them in v2."""
    headers = {"x-api-key": key, "Idempotency-Key": f"caller {number}"}
    wanted = {"prompt": f"number {number}", "seed": number, "base64": False}

    def submit(api: str) -> requests.Response:
        return insist(lambda: requests.post(f"{url}/{api}/{SLUG}", json=wanted, headers=headers, timeout=PATIENCE_S))

    if number % 2:
        picture = submit("v1")
    else:
        accepted = submit("v2").json()
        result = insist(lambda: requests.get(accepted["response_url"], headers=headers, timeout=PATIENCE_S)).json()
        assert submit("v2").json()["request_id"] == accepted["request_id"]
        picture = insist(lambda: requests.get(result["output"], timeout=PATIENCE_S))
    assert picture.content == f"picture of number {number} from {number}".encode()


def insist(ask: Callable[[], requests.Response]) -> requests.Response:
    """The answer with status 200, however often the gateway is away or not done yet."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            answer = ask()
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            time.sleep(_PAUSE_S)
            continue
        if answer.status_code == 200:
            return answer
        assert answer.status_code in (202, 503), answer.text
        time.sleep(_PAUSE_S)
    raise AssertionError(f"nothing after {PATIENCE_S} s")


async def check_books(url: str) -> None:
    async with Database(url) as database:
        await audit(database)


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody else gets while no gateway listens there."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
