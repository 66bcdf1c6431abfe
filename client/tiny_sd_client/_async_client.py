"""The asyncio client. All logic is here; the blocking client runs this one on a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar, Unpack
from uuid import uuid4

from tiny_sd_client import _wire
from tiny_sd_client._attempts import Attempts
from tiny_sd_client._transport import TLS, Outputs, Transport, address, connect
from tiny_sd_client.errors import Cancelled, ServerFault, TinySDError, Unavailable, UnknownJob
from tiny_sd_client.parameters import Options, Parameters
from tiny_sd_client.results import Generation, JobStatus, Progress, ServerStatus, Stage

T = TypeVar("T")

_log = logging.getLogger("tiny_sd_client")

_SILENCE_S = 60.0  # a stream says something every 10 s; after this long its connection is lost
_ANSWER_S = 30.0  # for an answer that needs no work
_GRACE_S = 1.0  # how much later than the server the client notices a timeout, so that the server's answer comes first


@dataclass(frozen=True)
class _Order:
    """One generation as it was asked for: checked, and its seed fixed, for the same pictures at every attempt."""

    parameters: Parameters
    preview_every: int
    timeout: float | None
    job_id: str | None


class AsyncClient:
    """Makes pictures on a Tiny-SD server; for use within one asyncio event loop.

    url: ``grpc://host:8001``, ``grpcs://…``, ``http://host:8000`` or ``https://host:443``; these ports are the defaults
    headers: sent with every request, as gRPC metadata or HTTP headers
    tls: files for grpcs and https, where the usual authorities will not do
    timeout: seconds for a whole generation, waiting for a busy server included; None for no bound. The server keeps it
        as well
    patience: seconds to go on trying a server that is busy or out of reach, with growing waits; 0 for one attempt

    Raises ValueError for a URL or another argument that cannot be used; nothing is connected until the first call.
    Whatever breaks a generation off on this side (a cancelled task, a timeout, a closed stream, the end of this
    process) stops it on the server too, within a fraction of a second.
    """

    def __init__(
        self,
        url: str = "grpc://localhost:8001",
        *,
        headers: Mapping[str, str] | None = None,
        tls: TLS | None = None,
        timeout: float | None = None,
        patience: float = 60.0,
    ) -> None:
        self._address = address(url, headers, tls)
        self._timeout = _wire.checked_timeout(timeout)
        if not patience >= 0:
            raise ValueError(f"patience: got {patience!r}; allowed: seconds, 0 or more")
        self._patience = patience
        self._transport: Transport | None = None
        self._jobs: set[asyncio.Task[Generation]] = set()
        self._closed = False

    async def generate(
        self, prompt: str, *, timeout: float | None = None, job_id: str | None = None, **parameters: Unpack[Options]
    ) -> Generation:
        """Make the pictures of one generation and return them.

        parameters: the documented ones, such as ``num_inference_steps=30`` or ``samples=2``; ``base64`` makes no
            difference, because the client returns bytes
        timeout: seconds, instead of the client's
        job_id: 1 to 128 printable ASCII characters by which others may watch or cancel it, unique on the server

        Raises InvalidParameter, Busy, DeadlineExceeded, Cancelled, Unavailable or ServerFault.
        """
        return await self._generate(self._order({**parameters, "prompt": prompt}, 0, timeout, job_id))

    def stream(
        self,
        prompt: str,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        job_id: str | None = None,
        **parameters: Unpack[Options],
    ) -> AsyncGenerator[Progress | Generation, None]:
        """Make pictures and tell how far they are: first :class:`Progress` events, at last the :class:`Generation`.

        preview_every: a preview about every so many steps, from 1 to 100; 0 for none

        The rest is as for :meth:`generate`; but once it has told of progress, a lost connection is not tried again.
        Leaving the loop early cancels the generation as soon as the iterator is closed, which ``async with
        contextlib.aclosing(...)`` does for certain.
        """
        order = self._order({**parameters, "prompt": prompt}, preview_every, timeout, job_id)
        return self._attempt_until_done(order, start_over=False)

    def submit(
        self,
        prompt: str,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        job_id: str | None = None,
        **parameters: Unpack[Options],
    ) -> AsyncJob:
        """Start a generation in the background; arguments as for :meth:`stream`. Its errors come with its result.

        It runs until it is finished, cancelled, or this client is closed. Raises InvalidParameter.
        """
        job_id = uuid4().hex if job_id is None else job_id
        order = self._order({**parameters, "prompt": prompt}, preview_every, timeout, job_id)
        job = AsyncJob(job_id, self._attempt_until_done(order, start_over=False))
        self._jobs.add(job._task)
        job._task.add_done_callback(self._jobs.discard)
        return job

    async def generate_many(
        self,
        prompts: Iterable[str | Mapping[str, object]],
        *,
        concurrency: int = 8,
        timeout: float | None = None,
        **parameters: Unpack[Options],
    ) -> AsyncGenerator[Generation, None]:
        """Make pictures for many prompts, at most ``concurrency`` generations at a time, in the order of ``prompts``.

        prompts: texts, or mappings of documented parameters, which go before the common ``parameters``; taken one by
            one when there is room for another generation
        timeout: seconds for each generation

        The first failure is raised at once, with a note that tells which prompt it was, counted from 1, and cancels the
        rest; so does closing the iterator.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency: got {concurrency!r}; allowed: 1 or more")
        waiting = enumerate(prompts, start=1)
        tasks: deque[asyncio.Task[Generation]] = deque()

        async def generate(number: int, wanted: Mapping[str, object]) -> Generation:
            try:
                return await self._generate(self._order({**parameters, **wanted}, 0, timeout, None))
            except TinySDError as error:
                error.add_note(f"prompt {number}")
                raise

        def start_next() -> bool:
            for number, prompt in waiting:
                wanted = {"prompt": prompt} if isinstance(prompt, str) else prompt
                tasks.append(asyncio.create_task(generate(number, wanted)))
                return True
            return False

        try:
            while True:
                running = [task for task in tasks if not task.done()]
                while len(running) < concurrency and start_next():
                    running.append(tasks[-1])
                if not tasks:
                    return
                if not tasks[0].done():
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
                while tasks and tasks[0].done():
                    yield tasks.popleft().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def jobs(self) -> list[JobStatus]:
        """All generations in flight on the server, oldest first. Asks once. Raises Unavailable or ServerFault."""
        return _wire.read_jobs(await self._ask_jobs("list"), self._address.url)

    async def job(self, job_id: str) -> JobStatus:
        """The state of one generation. Asks once. Raises UnknownJob, Unavailable or ServerFault."""
        statuses = _wire.read_jobs(await self._ask_jobs("status", job_id), self._address.url)
        if len(statuses) != 1:
            raise ServerFault(f"{self._address.url}: told of {len(statuses)} jobs where one was asked for")
        return statuses[0]

    async def cancel(self, job_id: str) -> None:
        """Cancel a generation, whoever asked for it. Asks once. Raises UnknownJob, Unavailable or ServerFault."""
        await self._ask_jobs("cancel", job_id)

    async def status(self) -> ServerStatus:
        """Whether the server is ready, and what it is doing. Asks once. Raises Unavailable or ServerFault."""
        ready, version = await self._answer(self._connected().status())
        if not ready:
            return ServerStatus(ready=False, version=version, in_flight=0, max_in_flight=0, jobs=())
        return _wire.read_status(await self._ask_jobs("list"), self._address.url, version)

    async def close(self) -> None:
        """Cancel the jobs that were submitted and close the connection; harmless when repeated."""
        self._closed = True
        jobs = list(self._jobs)
        for task in jobs:
            task.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        if self._transport:
            await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _order(
        self, values: Mapping[str, object], preview_every: int, timeout: float | None, job_id: str | None
    ) -> _Order:
        return _Order(
            parameters=_wire.resolved(values),
            preview_every=_wire.checked_preview_every(preview_every),
            timeout=self._timeout if timeout is None else _wire.checked_timeout(timeout),
            job_id=_wire.checked_job_id(job_id),
        )

    async def _generate(self, order: _Order) -> Generation:
        return await _followed(self._attempt_until_done(order, start_over=True), lambda _: None)

    async def _attempt_until_done(
        self, order: _Order, *, start_over: bool
    ) -> AsyncGenerator[Progress | Generation, None]:
        """The events of all attempts at one generation.

        start_over: whether another attempt may follow one that has told of progress
        """
        attempts = Attempts(self._patience, order.timeout)
        while True:
            began, admitted = time.monotonic(), False
            try:
                async with aclosing(self._attempt(order, attempts)) as events:
                    async for event in events:
                        admitted = True
                        yield event
                return
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closed and task and not task.cancelling():  # gRPC's word for a channel that was closed
                    raise _closed() from None
                raise
            except TinySDError as error:
                if self._closed:
                    raise _closed() from error
                if admitted and not start_over:
                    raise
                wait = attempts.wait_after(error, began, admitted=admitted)
                _log.info("%s; trying again in %.1f s", error, wait)
            await asyncio.sleep(wait)
            if self._closed:
                raise _closed()

    async def _attempt(self, order: _Order, attempts: Attempts) -> AsyncGenerator[Progress | Generation, None]:
        transport, url = self._connected(), self._address.url
        left = attempts.seconds_left()
        if left <= 0:
            raise attempts.overdue()
        encoded = transport.base64
        inputs = _wire.generation_inputs(order.parameters, order.preview_every, base64=encoded)
        timeout = None if order.timeout is None else left
        async with aclosing(transport.stream(_wire.STREAM_MODEL, inputs, order.job_id or "", timeout)) as answers:
            stage = Stage.QUEUED
            while stage is not Stage.DONE:
                outputs = await self._next(answers, attempts)
                progress = _wire.read_progress(outputs, url, base64=encoded)
                stage = progress.stage
                yield progress
            total = time.monotonic() - attempts.began
            generation = _wire.read_generation(outputs, url, total, base64=encoded)
            # A stream that ends by itself is no cancellation to the server; but the pictures are here, whatever comes.
            with suppress(TinySDError, StopAsyncIteration, _Late):
                await _within(_GRACE_S, anext(answers))
            yield generation

    async def _next(self, answers: AsyncGenerator[Outputs, None], attempts: Attempts) -> Outputs:
        left = attempts.seconds_left() + _GRACE_S
        try:
            return await _within(min(left, _SILENCE_S), anext(answers))
        except StopAsyncIteration:
            raise Unavailable(f"{self._address.url}: the connection ended before the pictures came") from None
        except _Late:
            if left <= _SILENCE_S:
                raise attempts.overdue() from None
            raise Unavailable(f"{self._address.url}: said nothing for {_SILENCE_S:g} s") from None

    async def _ask_jobs(self, action: str, job_id: str | None = None) -> Outputs:
        if job_id and not job_id.isascii():  # no id is such, and not all such text can be sent
            raise UnknownJob("no generation in flight has this id; ids are of ASCII characters", job_id)
        inputs = {"action": action} if job_id is None else {"action": action, "job_id": job_id}
        try:
            return await self._answer(self._connected().call(_wire.JOBS_MODEL, inputs))
        except UnknownJob as error:
            error.job_id = job_id or ""
            raise

    async def _answer(self, asked: Awaitable[T]) -> T:
        try:
            return await _within(_ANSWER_S, asked)
        except _Late:
            raise Unavailable(f"{self._address.url}: no answer for {_ANSWER_S:g} s") from None

    def _connected(self) -> Transport:
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._transport is None:
            self._transport = connect(self._address)
        return self._transport


class AsyncJob:
    """A generation in the background; ``id`` is its job id. See :meth:`AsyncClient.submit`."""

    def __init__(self, job_id: str, events: AsyncGenerator[Progress | Generation, None]) -> None:
        self.id = job_id
        self._latest: Progress | None = None
        self._task = asyncio.create_task(_followed(events, self._tell))
        # A failure that nobody asks for is no news for the event loop's log.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def progress(self) -> Progress | None:
        """The latest progress; None before the server has admitted the generation."""
        return self._latest

    def done(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self._task.done()

    async def cancel(self) -> None:
        """Stop it, on the server as well; does nothing to one that has ended."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def result(self, timeout: float | None = None) -> Generation:
        """Wait for the pictures, for ``timeout`` seconds at most; the job goes on when they pass.

        Raises TimeoutError then; and what :meth:`AsyncClient.generate` raises when the job has failed.
        """
        await asyncio.wait([self._task], timeout=timeout)
        if not self._task.done():
            raise TimeoutError(f"job {self.id} is not done after {timeout:g} s; it goes on")
        return self._outcome()

    def _outcome(self) -> Generation:
        if self._task.cancelled():
            raise Cancelled("the generation was cancelled")
        return self._task.result()

    def _tell(self, progress: Progress) -> None:
        self._latest = progress


async def _followed(
    events: AsyncGenerator[Progress | Generation, None], tell: Callable[[Progress], None]
) -> Generation:
    generation: Generation | None = None
    async for event in events:
        if isinstance(event, Progress):
            tell(event)
        else:
            generation = event
    assert generation, "events end with a generation or an error"
    return generation


def _closed() -> Cancelled:
    return Cancelled("the client was closed")


class _Late(Exception):
    """Something took longer than it may."""


async def _within(seconds: float, awaited: Awaitable[T]) -> T:
    """What ``awaited`` gives. Raises _Late, and cancels it, when it takes longer."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await awaited
    except TimeoutError:  # a server's DeadlineExceeded is one, too
        if limit.expired():
            raise _Late from None
        raise
