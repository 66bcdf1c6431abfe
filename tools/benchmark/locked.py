"""What one would write without Triton: diffusers' pipeline behind FastAPI, with a lock around it."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from benchmark.baselines import load_diffusers
from benchmark.contenders import BenchError, Peak, Picture, Setup, peak
from tiny_sd_client.parameters import Parameters, parse

_ANSWER_TIMEOUT_S = 3600  # far beyond any picture, so that a lost request ends the run
_LEAVE_TIMEOUT_S = 5

Ask = Callable[[Parameters], Picture]


class Locked:
    """The server's process, and a connection to it that stays open. See :func:`serve_locked`."""

    name = "FastAPI + diffusers"

    def __init__(self, pid: int, port: int, ask: Ask) -> None:
        self.make = ask
        self._pid = pid
        self._port = port

    @contextmanager
    def connect(self) -> Iterator[Ask]:
        """Another client, for another thread."""
        with _connect(self._port) as connection:
            yield partial(_ask, connection)

    def working(self) -> bool:
        """Whether a picture is being made."""
        with _connect(self._port) as connection:
            return bool(json.loads(_answer(connection, "GET", "/working")))

    def peaks(self) -> list[Peak]:
        """Peak memory of the process."""
        return [peak(self.name, self._pid)]


@contextmanager
def serve_locked(setup: Setup) -> Iterator[Locked]:
    """The server in a process of its own, for as long as the block."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = context.Process(target=_serve, args=(setup, listener), name=Locked.name, daemon=True)
        process.start()
    try:
        with _connect(port) as connection:
            _answer(connection, "GET", "/working")  # once it listens
            yield Locked(process.pid, port, partial(_ask, connection))
    finally:
        process.terminate()
        process.join(_LEAVE_TIMEOUT_S)
        process.kill()
        process.join()


def _connect(port: int) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_TIMEOUT_S))


def _ask(connection: http.client.HTTPConnection, parameters: Parameters) -> Picture:
    """One picture; its seconds are those that the caller waits. Raises :class:`BenchError`."""
    body = json.dumps(parameters.model_dump(mode="json"))
    start = time.perf_counter()
    file = _answer(connection, "POST", "/generate", body)
    return Picture(file, time.perf_counter() - start)


def _answer(connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> bytes:
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except (http.client.HTTPException, OSError) as error:
        raise BenchError(f"{Locked.name}: {error!r}; its last words are above") from error
    if answer.status != http.HTTPStatus.OK:
        raise BenchError(f"{Locked.name}: {answer.status} {content.decode(errors='replace')}")
    return content


def _serve(setup: Setup, listener: socket.socket) -> None:
    """The process's whole life: until it is told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    import uvicorn  # noqa: PLC0415 -- only this contender's process holds them
    from fastapi import FastAPI, Response  # noqa: PLC0415

    make = load_diffusers(setup).make
    alone = threading.Lock()  # a pipeline keeps its scheduler's state between steps
    app = FastAPI()

    @app.post("/generate", response_class=Response)
    def generate(values: dict[str, Any]) -> Response:
        parameters = parse(values, sizes=(setup.size,))
        with alone:
            return Response(make(parameters), media_type="image/png")

    @app.get("/working")
    def working() -> bool:
        return alone.locked()

    # Its connections are idle while the other contenders work.
    config = uvicorn.Config(app, log_level="error", timeout_keep_alive=_ANSWER_TIMEOUT_S, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
