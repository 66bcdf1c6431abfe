"""Many processes that use one database at once, and are killed at random moments.

Run as a program: ``python storm.py URL FOLDER SEED KILLS``. Each process notes in a file in FOLDER what it was told had
happened, as soon as it knows: whatever is noted must be true, whoever died since.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from books import FILES, TTL_S, order

from tiny_sd_gateway import generations, leases, ledger
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import DatabaseUnavailable, InsufficientCredits, LeaseLost
from tiny_sd_gateway.generations import Api, Claim, Lease

PROCESSES = 5
LEASE_S = 0.7
ATTEMPTS = 10_000  # nothing is given up: what was accepted must be completed in the end
NAMES = 60
BETWEEN_KILLS = 400
"""Bytes of notes: about ten of them."""
OVER = "over"
"""The file that ends all lives."""
RICH, POOR = 1, 2
"""The keys; nobody grants the second one anything."""


class Life:
    """One process: callers, workers and a sweeper, as in a gateway."""

    def __init__(self, url: str, folder: Path, seed: int) -> None:
        self.database = Database(url)
        self.dice = random.Random(seed)
        self.name = f"{os.getpid()}"
        self.notes = os.open(folder / f"{self.name}.notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.accepted: list[tuple[int, str]] = []
        self.over = folder / OVER

    def note(self, *words: object) -> None:
        os.write(self.notes, (" ".join(map(str, words)) + "\n").encode())

    async def live(self) -> None:
        async with self.database:
            parts = (self.call, self.call, self.call_by_name, self.wait, self.work, self.work, self.sweep)
            await asyncio.gather(*(self.again_and_again(part) for part in parts))

    async def again_and_again(self, part: Callable[[], Awaitable[None]]) -> None:
        while not self.over.exists():
            try:
                await part()
            except DatabaseUnavailable:
                await asyncio.sleep(0.1)
            except InsufficientCredits:
                await self.credit()
            await asyncio.sleep(self.dice.uniform(0, 0.02))

    async def credit(self) -> None:
        try:
            await ledger.credit(self.database, RICH, 2000)
        except DatabaseUnavailable:
            self.note("unknown credit")

    async def call(self) -> None:
        """Submit, and sometimes cancel."""
        key_id = self.dice.choice((RICH, RICH, POOR))
        done = await generations.submit(self.database, order(key_id, price=self.dice.choice((0, 300, 1000))))
        self.note("accepted", done.id)
        self.accepted.append((key_id, done.id))
        if self.dice.random() < 0.2:
            key_id, generation_id = self.dice.choice(self.accepted)
            self.note("cancelling", generation_id)
            await leases.cancel(self.database, key_id, generation_id, TTL_S)

    async def call_by_name(self) -> None:
        """Submit what other processes submit as well, by the same name, and twice at once."""
        name = f"name-{self.dice.randrange(NAMES)}"
        for done in await asyncio.gather(
            *(generations.submit(self.database, order(RICH, name=name, prompt=name)) for _ in range(2))
        ):
            self.note("accepted", done.id)
            self.note("named", done.id, name)

    async def wait(self) -> None:
        """Ask and wait for the answer, as in v1; some leave, some are left."""
        begun = await generations.begin(self.database, order(RICH, Api.V1), self.name, LEASE_S)
        assert isinstance(begun, Claim)
        await asyncio.sleep(self.dice.uniform(0, 0.03))
        match self.dice.choice(("complete", "complete", "fail", "leave", "vanish")):
            case "complete":
                await self.complete(begun.lease)
            case "fail":
                await self.insist(lambda: leases.fail(self.database, begun.lease, 503, "full", TTL_S))
            case "leave":
                await leases.cancel(self.database, RICH, begun.generation.id, TTL_S)

    async def work(self) -> None:
        claim = await leases.claim(self.database, self.name, LEASE_S)
        if claim is None:
            return
        if self.dice.random() < 0.05:  # it hangs, for longer than its lease
            await asyncio.sleep(LEASE_S * self.dice.uniform(1, 2))
        await asyncio.sleep(self.dice.uniform(0, 0.03))
        await self.insist(lambda: leases.heartbeat(self.database, claim.lease, LEASE_S))
        match self.dice.choice(("complete",) * 6 + ("release", "retry")):
            case "complete":
                await self.complete(claim.lease)
            case "release":
                await self.insist(lambda: leases.release(self.database, claim.lease))
            case "retry":
                await self.insist(
                    lambda: leases.retry(
                        self.database,
                        claim.lease,
                        delay_s=0.05,
                        status=500,
                        message="broken",
                        max_attempts=ATTEMPTS,
                        ttl_s=TTL_S,
                    )
                )

    async def complete(self, lease: Lease) -> None:
        if await self.insist(lambda: leases.complete(self.database, lease, FILES, 1.0, TTL_S)):
            self.note("completed", lease.generation_id, lease.attempt)

    async def insist(self, work: Callable[[], Awaitable[object]]) -> bool:
        """Whether ``work`` was done: again while nobody knows, until somebody else has the generation."""
        while True:
            try:
                await work()
            except LeaseLost:
                return False
            except DatabaseUnavailable:
                await asyncio.sleep(0.1)
            else:
                return True

    async def sweep(self) -> None:
        await leases.sweep(self.database, ATTEMPTS, TTL_S)
        await asyncio.sleep(0.2)


def start(url: str, folder: Path, seed: int) -> int:
    """Begin a life and return its process id."""
    if pid := os.fork():
        return pid
    try:
        asyncio.run(Life(url, folder, seed).live())
    except BaseException as error:  # noqa: BLE001 - told to the parent, which fails for it
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def noted(folder: Path) -> int:
    """Bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.notes"))


def main(url: str, folder: Path, seed: int, kills: int) -> int:
    """Kill and replace processes until ``kills`` have died, then let the rest end; returns how many broke down."""
    dice = random.Random(seed)
    lives = [start(url, folder, seed + n) for n in range(PROCESSES)]
    for n in range(kills):
        # On a slow machine too, something is going on when somebody dies.
        wanted = noted(folder) + BETWEEN_KILLS
        while noted(folder) < wanted:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.4))
        victim = lives.pop(dice.randrange(PROCESSES))
        os.kill(victim, signal.SIGKILL)
        lives.append(start(url, folder, seed + PROCESSES + n))
    (folder / OVER).touch()
    return sum(os.waitpid(life, 0)[1] != 0 for life in lives)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
