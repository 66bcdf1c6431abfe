"""Whether this gateway can make pictures, found out by making the beginning of one."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import aclosing

from tiny_sd_client import Busy, Generation, ServerFault, TinySDError
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import DatabaseUnavailable
from tiny_sd_gateway.triton import Triton

_PROOF_S = 60.0
_ANSWER_S = 5.0
_FIRST_STEP_S = 30.0
# Triton goes on calling itself ready when the process of one of its models is dead.
_DEAD_MODEL = re.compile(r"stub process.*not healthy", re.I)


def is_broken(error: Exception) -> bool:
    """Whether ``error`` means that no generation will succeed until somebody restarts Triton."""
    return isinstance(error, ServerFault) and _DEAD_MODEL.search(str(error)) is not None


class Health:
    """What is known of Triton's health.

    Triton says that it is ready even when a model's process has died, so its word does not count for much. What counts
    is a denoising step that was done within the last minute, whoever asked for it. Where there was none, a small
    generation is started and broken off after its first step: a fraction of a second of computing in an idle minute.
    """

    def __init__(self, client: Triton, database: Database, size: int) -> None:
        """``size``: pixels a side of the picture that is begun to see whether it works."""
        self._client = client
        self._database = database
        self._size = size
        self._proved_at = float("-inf")
        self.broken = False
        """Whether a model's process was dead when last heard of."""
        self._trying = asyncio.Lock()

    def proved(self) -> None:
        """A generation got on."""
        self._proved_at = time.monotonic()

    def finished(self) -> None:
        """A generation got through all models."""
        self.broken = False
        self.proved()

    def broke(self) -> None:
        """A model's process is dead."""
        self.broken = True
        self._proved_at = float("-inf")

    async def problem(self) -> str | None:
        """Why nobody should send requests here now; None if they should."""
        try:
            await self._database.ping()
        except DatabaseUnavailable:
            return "the database cannot be reached"
        try:
            async with asyncio.timeout(_ANSWER_S):
                status = await self._client.status()
        except TimeoutError:
            return "Triton does not answer"
        except TinySDError:
            return "Triton cannot be reached, or lacks our models"
        if not status.ready:
            return "Triton is starting or stopping"
        return await self._drawing_problem()

    async def _drawing_problem(self) -> str | None:
        async with self._trying:  # one try tells all who ask
            if time.monotonic() - self._proved_at < _PROOF_S:
                return None
            try:
                async with asyncio.timeout(_FIRST_STEP_S):
                    await self._try()
            except Busy:
                return None  # full of others
            except TimeoutError:
                return f"Triton did no step of a generation within {_FIRST_STEP_S:g} s"
            except TinySDError:
                return "Triton cannot make pictures"
        return None

    async def _try(self) -> None:
        """As far as the first step; to the end where a later model is known to have died."""
        events = self._client.stream("readiness", img_width=self._size, img_height=self._size, num_inference_steps=20)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Generation):
                    self.finished()
                elif event.step and not self.broken:
                    self.proved()
                    return
