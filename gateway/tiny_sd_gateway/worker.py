"""The queue's side of a gateway: takes up queued generations, and sweeps up what others left behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import structlog

from tiny_sd_gateway import leases
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import DatabaseUnavailable
from tiny_sd_gateway.generations import Claim
from tiny_sd_gateway.run import Run
from tiny_sd_gateway.runner import Runner
from tiny_sd_gateway.settings import Settings

_LOOK_S = 1.0
_AFTER_TROUBLE_S = 2.0

_log = structlog.get_logger("tiny_sd_gateway")


class Workers:
    """Keeps up to ``settings.workers`` queued generations running, one look at the database a second while idle."""

    def __init__(self, runner: Runner, database: Database, settings: Settings, owner: str) -> None:
        self._runner = runner
        self._database = database
        self._settings = settings
        self._owner = owner
        self._free = asyncio.Semaphore(settings.workers)
        self._waiting = asyncio.Event()
        self._paused_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work."""
        self._tasks.append(asyncio.create_task(_forever(self._sweep), name="sweeper"))
        if self._settings.workers:
            self._tasks.append(asyncio.create_task(_forever(self._take_up), name="worker"))

    def wake(self) -> None:
        """Something was queued just now."""
        self._waiting.set()

    async def stop(self) -> None:
        """Take up nothing more; what runs goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take_up(self) -> None:
        """Take up the next generation, or wait until there may be one."""
        await asyncio.sleep(max(0.0, self._paused_until - time.monotonic()))
        await self._free.acquire()
        claim = None
        try:
            self._waiting.clear()
            claim = await self._claim()
            if claim:
                run = self._runner.start(claim, keep=True)
                run.task.add_done_callback(lambda _: self._put_back(run))
        finally:
            if not claim:
                self._free.release()
        if not claim:
            await self._look_again()

    async def _claim(self) -> Claim | None:
        claiming = asyncio.create_task(leases.claim(self._database, self._owner, self._settings.lease_s))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # Stopped at this very moment: what it took it gives back, for others not to wait for the lease's end.
            if claim := await claiming:
                await leases.release(self._database, claim.lease)
            raise

    def _put_back(self, run: Run) -> None:
        self._free.release()
        if run.pause_s:
            self._paused_until = time.monotonic() + run.pause_s

    async def _look_again(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_S * random.uniform(0.5, 1.5)):  # replicas look in turns
                await self._waiting.wait()
        except TimeoutError:
            pass

    async def _sweep(self) -> None:
        swept = await leases.sweep(self._database, self._settings.max_attempts, self._settings.results_ttl_s)
        if swept.requeued or swept.failed:
            _log.warning("leases ran out", requeued=swept.requeued, failed=swept.failed)
        if swept.requeued:
            self.wake()
        await asyncio.sleep(self._settings.sweep_s)


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work`` again and again; a failure is logged and never ends it."""
    while True:
        try:
            await work()
        except DatabaseUnavailable as error:
            _log.warning("database unavailable", error=str(error))
            await asyncio.sleep(_AFTER_TROUBLE_S)
        except Exception:  # noqa: BLE001 - the queue must go on
            _log.exception("work on the queue failed")
            await asyncio.sleep(_AFTER_TROUBLE_S)
