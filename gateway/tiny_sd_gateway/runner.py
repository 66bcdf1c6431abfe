"""Generations under way in this process: each runs to its end on Triton and in the database, whoever waits for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from enum import StrEnum
from typing import TypeVar

import structlog

from tiny_sd_client import Busy, DeadlineExceeded, ServerFault, TinySDError, Unavailable
from tiny_sd_client import Generation as Made
from tiny_sd_gateway import leases
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.errors import CANCELLED, INTERNAL, Refusal, refusal_of
from tiny_sd_gateway.faults import DatabaseUnavailable, LeaseLost
from tiny_sd_gateway.generations import Api, Claim, NewPicture
from tiny_sd_gateway.health import Health, is_broken
from tiny_sd_gateway.metrics import Metrics
from tiny_sd_gateway.run import Finished, Run
from tiny_sd_gateway.settings import Settings
from tiny_sd_gateway.triton import Triton

T = TypeVar("T")

_BOOKING_RETRY_S = 0.5
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_RETRY_FAULT_S = 5.0
_TRY_AGAIN_S = (0.2, 1.0)
"""Before further attempts at a generation that somebody waits for, after Triton was lost or out of reach."""
_STOPPING_S = 5.0

_log = structlog.get_logger("tiny_sd_gateway")


def stopping() -> Refusal:
    """What callers are told while the gateway goes."""
    return Refusal(503, "the gateway is stopping", retry_after=_STOPPING_S)


class Ending(StrEnum):
    """How a run ended, for metrics and logs."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    REFUSED = "refused"  # by Triton: full, out of reach, or the prompt is too long for it
    FAILED = "failed"
    POSTPONED = "postponed"  # back in the queue


class Runner:
    """Runs generations, for those who wait for them and for the queue."""

    def __init__(
        self, client: Triton, database: Database, settings: Settings, metrics: Metrics, health: Health
    ) -> None:
        self._client = client
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._runs: set[Run] = set()
        self._failures = 0

    def start(self, claim: Claim, *, preview_every: int = 0, keep: bool) -> Run:
        """Run ``claim`` in the background.

        preview_every: steps between previews, 0 for none
        keep: whether the pictures are kept in the database, to be fetched later
        """
        run = Run(claim, preview_every=preview_every, keep=keep)
        run.on_broken = self._health.broken
        run.task = asyncio.create_task(self._run(run), name=f"generation {claim.generation.id}")
        # A failure that nobody waits for is in the database and in the log already.
        run.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._runs.add(run)
        return run

    def cancel_local(self, generation_id: str) -> None:
        """Stop at once what the database calls cancelled, if it runs here; elsewhere its next heartbeat tells."""
        for run in self._runs:
            if run.generation.id == generation_id:
                run.leave()

    async def drain(self, seconds: float) -> None:
        """Let what runs finish for ``seconds``, then stop the rest: refund it, or put it back into the queue."""
        if self._runs:
            await asyncio.wait([run.task for run in self._runs], timeout=seconds)
        rest = list(self._runs)
        for run in rest:
            run.stop()
        await asyncio.gather(*(run.task for run in rest), return_exceptions=True)

    async def _run(self, run: Run) -> Finished:
        api, began = run.generation.api, time.monotonic()
        ending = Ending.FAILED
        self._metrics.in_flight.labels(api).inc()
        try:
            finished = await self._to_its_end(run)
            ending = Ending.COMPLETED
            return finished
        except _Ended as ended:
            ending = ended.ending
            raise ended.refusal from None
        except LeaseLost as error:
            away = error.__cause__  # the database, for longer than the lease
            ending = Ending.FAILED if away else Ending.CANCELLED
            raise refusal_of(away or error) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, the credits go back
            # A fault of ours, or the database is gone for good; then the lease runs out and the sweep refunds.
            _log.exception("generation broke", generation=run.generation.id)
            with suppress(LeaseLost, DatabaseUnavailable):
                await self._booked(lambda: self._fail(run, Refusal(500, INTERNAL)), tries=1)
            raise refusal_of(error) from None
        finally:
            self._runs.discard(run)
            run.tell(None)
            seconds = time.monotonic() - began
            self._metrics.in_flight.labels(api).dec()
            self._metrics.generation_ended(run.generation, ending, seconds)
            prompt = {"prompt": run.generation.parameters.prompt} if self._settings.log_prompts else {}
            _log.info(
                "generation",
                generation=run.generation.id,
                api=api.value,
                outcome=ending.value,
                attempt=run.lease.attempt,
                seconds=round(seconds, 3),
                **prompt,
            )

    async def _to_its_end(self, run: Run) -> Finished:
        """Draw, and book how that ended. Raises _Ended unless there are pictures."""
        drawing = asyncio.create_task(self._draw(run))
        beating = asyncio.create_task(self._keep_lease(run))
        breaking = asyncio.create_task(run.broken_off())
        tasks = (drawing, beating, breaking)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            # Closing Triton's stream is what stops the U-Net.
            await asyncio.gather(*tasks, return_exceptions=True)
        if run.caller_left:
            await self._booked(
                lambda: leases.cancel(
                    self._database, run.generation.key_id, run.generation.id, self._settings.results_ttl_s
                )
            )
            raise _Ended(Ending.CANCELLED, Refusal(409, CANCELLED))
        if not drawing.cancelled() and drawing.exception() is None:
            return await self._complete(run, drawing.result())
        if not beating.cancelled():
            await beating  # raises: it ends by no other way
        if drawing.cancelled():
            raise await self._give_up(run, stopping())
        error = drawing.exception()
        assert error, "it has no pictures, and nobody broke it off"
        if not isinstance(error, TinySDError):
            raise error
        raise await self._failed(run, error)

    async def _draw(self, run: Run) -> Made:
        """Draw. Whoever waits for it is spared a Triton that dies or goes where another one lives."""
        queued = run.generation.api is Api.V2
        # A queued generation may take as long as it takes; nobody holds a connection for it.
        deadline = math.inf if queued else time.monotonic() + self._settings.timeout_s
        for pause_s in () if queued else _TRY_AGAIN_S:
            try:
                return await self._attempt(run, deadline)
            except Unavailable as error:
                _log.warning("triton lost", generation=run.generation.id, error=str(error))
                await asyncio.sleep(pause_s)
        return await self._attempt(run, deadline)

    async def _attempt(self, run: Run, deadline: float) -> Made:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the timeout passed before Triton could be asked")
        events = self._client.stream(
            **run.generation.parameters.model_dump(),
            preview_every=run.preview_every,
            timeout=None if left == math.inf else left,
            job_id=run.lease.job_id,
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Made):
                    self._health.finished()
                    return event
                if event.step:
                    self._health.proved()
                run.tell(event)
        raise ServerFault("the stream ended without pictures")

    async def _keep_lease(self, run: Run) -> None:
        """Beat until somebody else has the generation. Raises LeaseLost then, or when the database is away for long."""
        lease_s = self._settings.lease_s
        held_until = time.monotonic() + lease_s
        while True:
            await asyncio.sleep(lease_s / 3)
            try:
                sent = time.monotonic()
                await leases.heartbeat(self._database, run.lease, lease_s)
                held_until = sent + lease_s
            except DatabaseUnavailable as error:
                _log.warning("heartbeat missed", generation=run.generation.id, error=str(error))
                if time.monotonic() > held_until:
                    raise LeaseLost(run.generation.id) from error

    async def _complete(self, run: Run, made: Made) -> Finished:
        media_type = f"image/{made.parameters.image_format.value}"
        pictures = tuple(NewPicture(seed, media_type, data) for seed, data in zip(made.seeds, made.files, strict=True))
        kept = pictures if run.keep else ()
        self._failures = 0
        generation = await self._booked(
            lambda: leases.complete(self._database, run.lease, kept, made.timings.server, self._settings.results_ttl_s)
        )
        return Finished(generation, pictures)

    async def _failed(self, run: Run, error: TinySDError) -> _Ended:
        """Book what Triton answered instead of pictures."""
        refusal = refusal_of(error)
        if refusal.status >= 500:
            _log.warning("triton failed", generation=run.generation.id, error=f"{type(error).__name__}: {error}")
        queued = run.generation.api is Api.V2
        broken = is_broken(error)
        if broken:
            self._health.broke()
        # Whatever kills a model's process each time must not do so for ever; what only found it dead may wait.
        tried = queued and refusal.status == 500 and not (broken and run.on_broken)
        if broken or isinstance(error, Busy | Unavailable):
            self._failures += 1
            pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failures, 10))
            run.pause_s = max(pause, error.retry_after if isinstance(error, Busy) else 0.0)
            if not tried:
                return await self._give_up(run, refusal)
        if tried:
            return await self._try_again(run, refusal)
        await self._booked(lambda: self._fail(run, refusal))
        return _Ended(Ending.REFUSED if refusal.status < 500 else Ending.FAILED, refusal)

    async def _try_again(self, run: Run, refusal: Refusal) -> _Ended:
        """Put a queued one back that failed, unless it has failed too often."""
        settings = self._settings
        generation = await self._booked(
            lambda: leases.retry(
                self._database,
                run.lease,
                delay_s=_RETRY_FAULT_S * run.lease.attempt,
                status=refusal.status,
                message=str(refusal),
                max_attempts=settings.max_attempts,
                ttl_s=settings.results_ttl_s,
            )
        )
        return _Ended(Ending.FAILED if generation.state.ended else Ending.POSTPONED, refusal)

    async def _give_up(self, run: Run, refusal: Refusal) -> _Ended:
        """Put a queued one back; one that somebody waits for fails."""
        if run.generation.api is Api.V2:
            await self._booked(lambda: leases.release(self._database, run.lease, run.pause_s))
            return _Ended(Ending.POSTPONED, refusal)
        await self._booked(lambda: self._fail(run, refusal))
        return _Ended(Ending.REFUSED, refusal)

    async def _fail(self, run: Run, refusal: Refusal) -> object:
        return await leases.fail(self._database, run.lease, refusal.status, str(refusal), self._settings.results_ttl_s)

    async def _booked(self, write: Callable[[], Awaitable[T]], tries: int = 10) -> T:
        """What ``write`` gives, which is safe to repeat while the database is away."""
        while True:
            tries -= 1
            try:
                return await write()
            except DatabaseUnavailable:
                if not tries:
                    raise
                await asyncio.sleep(_BOOKING_RETRY_S)


class _Ended(Exception):
    """A run ended without pictures, and that is booked."""

    def __init__(self, ending: Ending, refusal: Refusal) -> None:
        self.ending = ending
        self.refusal = refusal
