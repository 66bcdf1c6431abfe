"""One generation under way in this process, as those see it who wait for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tiny_sd_client import Progress
from tiny_sd_gateway.generations import Claim, Generation, NewPicture


@dataclass(frozen=True)
class Finished:
    """A generation that has its pictures, in order."""

    generation: Generation
    pictures: tuple[NewPicture, ...]


class Run:
    """One generation under way. Whoever started it may follow it, and must leave it when they stop waiting."""

    def __init__(self, claim: Claim, *, preview_every: int, keep: bool) -> None:
        self.generation = claim.generation
        self.lease = claim.lease
        self.preview_every = preview_every
        self.keep = keep
        self.caller_left = False
        self.on_broken = False
        """Whether Triton was known to be broken when this began: then it is not to blame for that."""
        self.pause_s = 0.0
        """Seconds for which there is no use in starting another one, as this one found out."""
        self.task: asyncio.Task[Finished]
        """Ends with the run; set by who starts it. Not to be cancelled: see :meth:`leave`."""
        self._broken_off = asyncio.Event()
        self._step = 0
        self._progress: asyncio.Queue[Progress | None] = asyncio.Queue()

    async def next_progress(self) -> Progress | None:
        """What the generation told next; None, for ever, once it has ended."""
        progress = await self._progress.get()
        if progress is None:
            self._progress.put_nowait(None)
        return progress

    async def result(self) -> Finished:
        """The pictures. Raises Refusal. Cancelling this call leaves the run alone."""
        return await asyncio.shield(self.task)

    def leave(self) -> None:
        """Nobody waits any more: break it off and refund it, unless it has ended."""
        self.caller_left = True
        self._broken_off.set()

    def stop(self) -> None:
        """Break it off because this process ends."""
        self._broken_off.set()

    async def broken_off(self) -> None:
        """Wait until somebody breaks it off."""
        await self._broken_off.wait()

    def tell(self, progress: Progress | None) -> None:
        """Pass on what Triton says, but for what a further attempt says again; None at the end."""
        if progress and progress.step < self._step:
            return
        self._step = progress.step if progress else self._step
        self._progress.put_nowait(progress)
