"""Server-sent events: a response that tells of a run as it goes, and breaks it off when nobody listens any more."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tiny_sd_gateway.run import Run
from tiny_sd_gateway.submission import while_connected


def event(name: str, data: object) -> bytes:
    """One event as it travels."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream(Response):
    """Sends ``events`` of ``run``, and leaves the run when they end or the caller goes."""

    media_type = "text/event-stream"

    def __init__(self, run: Run, events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        self._run = run
        self._events = events
        self.status_code = 200
        self.background = None
        # Proxies must not hold events back.
        self.init_headers({**headers, "cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all."""
        try:
            await while_connected(receive, self._send(send))
        finally:
            self._run.leave()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for chunk in events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
