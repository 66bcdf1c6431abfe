"""The blocking client: the asyncio one, on an event loop of its own in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from tiny_sd_client._async_client import AsyncClient, AsyncJob
from tiny_sd_client._transport import TLS
from tiny_sd_client.errors import Cancelled
from tiny_sd_client.parameters import Options
from tiny_sd_client.results import Generation, JobStatus, Progress, ServerStatus

T = TypeVar("T")

_FAREWELL_S = 2.0  # how long to wait until what was broken off is gone


class Client:
    """Makes pictures on a Tiny-SD server. One client serves any number of threads.

    The arguments are those of :class:`AsyncClient`. A Ctrl-C while a method waits stops the generation on the server,
    too, and goes on as KeyboardInterrupt.
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
        self._client = AsyncClient(url, headers=headers, tls=tls, timeout=timeout, patience=patience)
        self._background = _Background(self._client.close)
        # Also when the client is forgotten, or the process ends: so that the server learns of it at once.
        self._stop = weakref.finalize(self, self._background.stop)

    def generate(
        self, prompt: str, *, timeout: float | None = None, job_id: str | None = None, **parameters: Unpack[Options]
    ) -> Generation:
        """Make the pictures of one generation and return them; see :meth:`AsyncClient.generate`."""
        return self._background.run(self._client.generate(prompt, timeout=timeout, job_id=job_id, **parameters))

    def stream(
        self,
        prompt: str,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        job_id: str | None = None,
        **parameters: Unpack[Options],
    ) -> Generator[Progress | Generation, None, None]:
        """Make pictures and tell how far they are; see :meth:`AsyncClient.stream`. Leaving the loop cancels them."""
        return self._iterate(
            self._client.stream(prompt, preview_every=preview_every, timeout=timeout, job_id=job_id, **parameters)
        )

    def submit(
        self,
        prompt: str,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        job_id: str | None = None,
        **parameters: Unpack[Options],
    ) -> Job:
        """Start a generation in the background; see :meth:`AsyncClient.submit`."""

        async def start() -> AsyncJob:
            return self._client.submit(
                prompt, preview_every=preview_every, timeout=timeout, job_id=job_id, **parameters
            )

        return Job(self, self._background.run(start()))

    def generate_many(
        self,
        prompts: Iterable[str | Mapping[str, object]],
        *,
        concurrency: int = 8,
        timeout: float | None = None,
        **parameters: Unpack[Options],
    ) -> Generator[Generation, None, None]:
        """Make pictures for many prompts, some at a time; see :meth:`AsyncClient.generate_many`.

        ``prompts`` is read in the client's own thread: an iterator that blocks holds up all that the client does.
        """
        return self._iterate(
            self._client.generate_many(prompts, concurrency=concurrency, timeout=timeout, **parameters)
        )

    def jobs(self) -> list[JobStatus]:
        """All generations in flight on the server; see :meth:`AsyncClient.jobs`."""
        return self._background.run(self._client.jobs())

    def job(self, job_id: str) -> JobStatus:
        """The state of one generation; see :meth:`AsyncClient.job`."""
        return self._background.run(self._client.job(job_id))

    def cancel(self, job_id: str) -> None:
        """Cancel a generation, whoever asked for it; see :meth:`AsyncClient.cancel`."""
        self._background.run(self._client.cancel(job_id))

    def status(self) -> ServerStatus:
        """Whether the server is ready, and what it is doing; see :meth:`AsyncClient.status`."""
        return self._background.run(self._client.status())

    def close(self) -> None:
        """Cancel whatever is under way and close the connection; harmless when repeated."""
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        # A method, not a function: an iterator under way keeps its client alive.
        async def following() -> T | None:
            return await anext(items, None)

        try:
            while (item := self._background.go_on(following())) is not None:
                yield item
        finally:
            self._background.leave(items)


class Job:
    """A generation in the background; ``id`` is its job id. See :meth:`Client.submit`."""

    def __init__(self, client: Client, job: AsyncJob) -> None:
        self.id = job.id
        self._job = job
        self._client = client

    def progress(self) -> Progress | None:
        """The latest progress; None before the server has admitted the generation."""
        return self._job.progress()

    def done(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self._job.done()

    def cancel(self) -> None:
        """Stop it, on the server as well; does nothing to one that has ended."""
        with suppress(Cancelled):
            if not self.done():
                self._client._background.go_on(self._job.cancel())

    def result(self, timeout: float | None = None) -> Generation:
        """Wait for the pictures; see :meth:`AsyncJob.result`. A Ctrl-C ends the waiting, not the job."""
        if self.done():  # also when its client is closed
            return self._job._outcome()
        return self._client._background.go_on(self._job.result(timeout))


class _Closed(RuntimeError):
    """There is no thread any more."""


class _Background:
    """An event loop in a thread of its own. ``farewell`` is the last thing that runs there."""

    def __init__(self, farewell: Callable[[], Awaitable[None]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._farewell = farewell
        self._lock = threading.RLock()  # garbage may be collected, and streams left, while it is held
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="tiny-sd-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What ``coroutine`` returns or raises. When the caller is interrupted it is cancelled, and gone before long.

        Raises _Closed once stopped, and Cancelled when stopped meanwhile.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a client cannot be called from its own thread, where it reads what it is given")
        gone = threading.Event()
        future = self._start(coroutine, gone)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the client was closed") from None
        except BaseException:
            if future.cancel():  # interrupted, or it would have ended
                gone.wait(_FAREWELL_S)
            raise

    def go_on(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As :meth:`run`, for a part of something begun before: that was cancelled when this was stopped."""
        try:
            return self.run(coroutine)
        except _Closed:
            raise Cancelled("the client was closed") from None

    def leave(self, items: AsyncGenerator[Any, None]) -> None:
        """Close ``items``, and give that a moment; but not in the thread itself, where garbage may be collected."""

        async def closing() -> None:
            await items.aclose()

        with suppress(Exception):  # nobody is left to hear of it
            future = self._start(closing(), threading.Event())
            if threading.current_thread() is not self._thread:
                future.result(_FAREWELL_S)

    def stop(self) -> None:
        """Cancel what is under way, bid farewell, and end the thread. Call it once."""
        with self._lock:
            self._stopped = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(_FAREWELL_S)

    def _start(self, coroutine: Coroutine[Any, Any, T], gone: threading.Event) -> concurrent.futures.Future[T]:
        async def announced() -> T:
            try:
                return await coroutine
            finally:
                gone.set()

        with self._lock:
            # A process that was forked has the client, but not its thread.
            if not self._stopped and self._thread.is_alive():
                return asyncio.run_coroutine_threadsafe(announced(), self._loop)
        coroutine.close()
        raise _Closed("this client is closed, or belongs to the process that this one was forked from")

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._wind_up())
        finally:
            self._loop.close()

    async def _wind_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._farewell()
