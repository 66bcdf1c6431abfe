"""A gateway in a thread, on a real port and a real database, with a fake Triton behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import requests
import structlog
import uvicorn
from fake_triton import FakeTriton

from tiny_sd_gateway import keys, ledger
from tiny_sd_gateway.app import create_app
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.service import Service
from tiny_sd_gateway.settings import Settings

T = TypeVar("T")

# Through logging, which pytest shows when a test fails; and without tables of local variables in tracebacks.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)

SLUG = "tinysd1.5-txt2img"
PROMPT = {"prompt": "a small red circle"}
MILLI = 1000


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


class RunningGateway:
    """A context manager. ``key`` has 100 credits; a picture of 512x512 and 20 steps costs one."""

    def __init__(self, database_url: str, triton: Any | None = None, **settings: Any) -> None:
        usual: dict[str, Any] = {"sweep_s": 0.2, "lease_s": 120.0, "drain_s": 5.0, "requests_per_minute": 1000}
        self.settings = Settings(database_url=database_url, **{**usual, **settings})
        self.triton = triton or FakeTriton()
        self.app = create_app(self.settings, self.triton)
        config = uvicorn.Config(
            self.app,
            port=0,
            log_config=None,
            access_log=False,
            timeout_keep_alive=120,  # for clients that keep a connection and are slow to use it again
            timeout_graceful_shutdown=60,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.key = ""

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the gateway did not start"
            threading.Event().wait(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.key = self.new_key(100)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def run(self, awaited: Coroutine[Any, Any, T]) -> T:
        """What a coroutine gives in the gateway's own event loop."""
        assert self._loop
        return asyncio.run_coroutine_threadsafe(awaited, self._loop).result(60)

    def begin_to_stop(self) -> None:
        """What SIGTERM does."""
        assert self._loop
        self._loop.call_soon_threadsafe(self.service.begin_to_stop)
        self._server.should_exit = True

    def stop(self) -> None:
        if self._thread.is_alive():
            self.begin_to_stop()
            self._thread.join(120)
            assert not self._thread.is_alive(), "the gateway did not stop"

    def new_key(self, credits: float, requests_per_minute: int | None = None) -> str:
        made = self.in_database(lambda it: keys.create(it, "test", round(credits * MILLI), requests_per_minute))
        return made.secret

    def balance(self, key: str | None = None) -> int:
        """In milli-credits."""

        async def look(database: Database) -> int:
            return await ledger.balance(database, (await keys.find(database, key or self.key)).id)

        return self.in_database(look)

    def in_database(self, do: Callable[[Database], Awaitable[T]]) -> T:
        """What ``do`` gives, with a connection of its own."""

        async def run() -> T:
            async with Database(self.settings.database_url) as database:
                return await do(database)

        return asyncio.run(run())

    def request(self, method: str, path: str, *, key: str | None = None, **options: Any) -> requests.Response:
        headers = {"x-api-key": self.key if key is None else key, **options.pop("headers", {})}
        url = path if path.startswith("http") else self.url + path
        return requests.request(method, url, headers=headers, timeout=60, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.request("POST", path, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def send_and_keep(self, path: str, body: dict[str, Any], headers: str = "") -> socket.socket:
        """A connection on which a request has been sent, and whose answer is still to come."""
        content = json.dumps(body).encode()
        host, port = self.url.removeprefix("http://").split(":")
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {self.key}\r\n{headers}"
        connection = socket.create_connection((host, int(port)))
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        return connection

    def _serve(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve()

        asyncio.run(serve())


StartGateway = Callable[..., RunningGateway]
