"""The process: uvicorn around the app, and a stop that lets what runs finish."""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tiny_sd_gateway import logs
from tiny_sd_gateway.app import create_app
from tiny_sd_gateway.service import Service
from tiny_sd_gateway.settings import Settings

# After drain_s the generations that still run are told to stop, and their callers get an answer that takes a moment.
_LAST_ANSWERS_S = 5


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second SIGINT does not wait."""
    logs.configure(settings.log_format)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # the app logs its requests by itself
        proxy_headers=True,
        timeout_graceful_shutdown=int(settings.drain_s) + _LAST_ANSWERS_S,
        server_header=False,
    )
    _Server(config, app).run()


class _Server(uvicorn.Server):
    """Tells the service of the signal at once: uvicorn tells the app only after the last connection is closed."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._service: Service = app.state.service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. A stop that was asked for is no failure, so the signal is not raised again at the end."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._service.begin_to_stop)
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
