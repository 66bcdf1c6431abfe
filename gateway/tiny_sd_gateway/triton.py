"""What the gateway needs of Triton: a few methods of the client library, which tests can stand in for."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, Unpack

from tiny_sd_client import Generation, Options, Progress, ServerStatus


class Triton(Protocol):
    """What the gateway needs of :class:`tiny_sd_client.AsyncClient`."""

    def stream(
        self,
        prompt: str,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        job_id: str | None = None,
        **parameters: Unpack[Options],
    ) -> AsyncGenerator[Progress | Generation, None]:
        """Make pictures and tell how far they are."""
        ...

    async def status(self) -> ServerStatus:
        """Whether the server is ready, and what it is doing."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...
