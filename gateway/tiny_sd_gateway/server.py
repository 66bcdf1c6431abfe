"""The process: uvicorn around the app, and a stop that lets what runs finish."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tiny_sd_gateway import logs
from tiny_sd_gateway.app import create_app
from tiny_sd_gateway.service import Service
from tiny_sd_gateway.settings import Settings

# After drain_s the generations that still run are told to stop, and their callers get an answer that takes a moment.
_LAST_ANSWERS_S = 5
# Longer than proxies keep idle connections (nginx 60 s): else one may send a request just as the connection is closed.
_KEEP_ALIVE_S = 75


def run(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second SIGINT does not wait.

    ready: is told the URL that browsers find the gateway at, once they do
    """
    logs.configure(settings.log_format)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # the app logs its requests by itself
        proxy_headers=True,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_s) + _LAST_ANSWERS_S,
        server_header=False,
    )
    _Server(config, app, lambda port: ready(_url(settings, port))).run()


def _url(settings: Settings, port: int) -> str:
    if settings.public_url:
        return f"{settings.public_url}/"
    host = "localhost" if settings.host in ("0.0.0.0", "127.0.0.1") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class _Server(uvicorn.Server):
    """Tells the service of the signal at once: uvicorn tells the app only after the last connection is closed."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._service: Service = app.state.service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._ready(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. A stop that was asked for is no failure, so the signal is not raised again at the end."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._service.begin_to_stop)
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
