"""Rate limits: requests for pictures a minute and key, counted in the database, so that replicas share the counts."""

from __future__ import annotations

import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter
from sqlalchemy import case, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from tiny_sd_gateway.database import SQLITE, Database, now_ms
from tiny_sd_gateway.errors import Refusal
from tiny_sd_gateway.faults import DatabaseUnavailable
from tiny_sd_gateway.keys import Key
from tiny_sd_gateway.tables import RateWindow


class RateLimits:
    """A window of a minute opens with a key's first request; requests beyond the limit wait for the next window."""

    def __init__(self, database: Database, requests_per_minute: int) -> None:
        self._limiter = FixedWindowRateLimiter(_Windows(database))
        self._usual = requests_per_minute

    async def hit(self, key: Key) -> None:
        """Count one request. Raises Refusal with the seconds to wait when there were too many."""
        limit = RateLimitItemPerMinute(key.requests_per_minute or self._usual)
        if not await self._limiter.hit(limit, str(key.id)):
            stats = await self._limiter.get_window_stats(limit, str(key.id))
            wait = max(0.0, stats.reset_time - time.time())
            raise Refusal(429, f"too many requests; allowed: {limit.amount} a minute with this key", retry_after=wait)


class _Windows(Storage):
    """Counters in the gateway's database, by the database's clock."""

    STORAGE_SCHEME = None

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    @property
    def base_exceptions(self) -> type[Exception]:
        return DatabaseUnavailable

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """One more in the window, or the first of a new one; one statement, so that no two count as one."""
        insert = sqlite.insert if self._database.name == SQLITE else postgresql.insert
        async with self._database.writing() as session:
            now = await now_ms(session)
            over = RateWindow.expires_at <= now
            statement = insert(RateWindow).values(name=key, hits=amount, expires_at=now + expiry * 1000)
            statement = statement.on_conflict_do_update(
                index_elements=[RateWindow.name],
                set_={
                    "hits": case((over, amount), else_=RateWindow.hits + amount),
                    "expires_at": case((over, now + expiry * 1000), else_=RateWindow.expires_at),
                },
            )
            return (await session.execute(statement.returning(RateWindow.hits))).scalar_one()

    async def get(self, key: str) -> int:
        """How many the current window holds."""
        async with self._database.reading() as session:
            now = await now_ms(session)
            found = select(RateWindow.hits).where(RateWindow.name == key, RateWindow.expires_at > now)
            return (await session.execute(found)).scalar_one_or_none() or 0

    async def get_expiry(self, key: str) -> float:
        """When the current window ends, by this process's clock in seconds; now, if there is none."""
        async with self._database.reading() as session:
            now = await now_ms(session)
            found = select(RateWindow.expires_at).where(RateWindow.name == key)
            ends = (await session.execute(found)).scalar_one_or_none() or now
            return time.time() + max(0, ends - now) / 1000

    async def check(self) -> bool:
        """Whether the database answers."""
        try:
            await self._database.ping()
        except DatabaseUnavailable:
            return False
        return True

    async def reset(self) -> None:
        """Forget all windows."""
        async with self._database.writing() as session:
            await session.execute(delete(RateWindow))

    async def clear(self, key: str) -> None:
        """Forget the window of ``key``."""
        async with self._database.writing() as session:
            await session.execute(delete(RateWindow).where(RateWindow.name == key))
