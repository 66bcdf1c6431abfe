"""What the routes of one gateway process share, from its start to its end."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from uuid import uuid4

import structlog
from fastapi import Request

from tiny_sd_gateway.database import Database
from tiny_sd_gateway.health import Health
from tiny_sd_gateway.limits import RateLimits
from tiny_sd_gateway.metrics import Metrics
from tiny_sd_gateway.runner import Runner
from tiny_sd_gateway.settings import Settings
from tiny_sd_gateway.triton import Triton
from tiny_sd_gateway.worker import Workers

_log = structlog.get_logger("tiny_sd_gateway")


class Service:
    """One of each: database, client of Triton, runner, queue workers, metrics."""

    def __init__(self, settings: Settings, client: Triton) -> None:
        self.settings = settings
        self.client = client
        self.database = Database(settings.database_url)
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.metrics = Metrics()
        self.health = Health(client, self.database, min(settings.sizes))
        self.limits = RateLimits(self.database, settings.requests_per_minute)
        self.runner = Runner(client, self.database, settings, self.metrics, self.health)
        self.workers = Workers(self.runner, self.database, settings, self.owner)
        self._draining: asyncio.Task[None] | None = None

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken on any more."""
        return self._draining is not None

    async def start(self) -> None:
        """Bring the database up to date and begin to work on the queue. Raises DatabaseError."""
        await self.database.migrate()
        if not self.stopping:
            self.workers.start()

    def begin_to_stop(self) -> None:
        """Take on nothing new; what runs has ``drain_s`` seconds to finish. To be called in the event loop."""
        if not self._draining:
            self._draining = asyncio.create_task(self._drain(), name="drain")

    async def stop(self) -> None:
        """Stop, and close everything."""
        self.begin_to_stop()
        assert self._draining
        await self._draining
        await self.client.close()
        await self.database.close()

    async def _drain(self) -> None:
        began = time.monotonic()
        _log.info("stopping", seconds_at_most=self.settings.drain_s)
        await self.workers.stop()
        await self.runner.drain(max(0.0, began + self.settings.drain_s - time.monotonic()))


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service
