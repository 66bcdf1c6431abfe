"""What can go wrong behind the HTTP layer.

    GatewayError
    ├── SettingError             an environment variable has a value that cannot be used
    ├── DatabaseError            its message is for the operator: it names hosts and files
    │   ├── DatabaseUnavailable  not reachable, too slow, full; also a commit whose outcome is unknown
    │   ├── ForeignDatabase      holds somebody else's tables, or is no database at all
    │   └── DatabaseTooNew       was written by a newer gateway
    ├── UnknownKey               no such API key, or it is revoked
    ├── InsufficientCredits      the key's balance does not cover it
    ├── IdempotencyConflict      the idempotency key was used for something else
    ├── UnknownGeneration        this key has no generation of this id
    └── LeaseLost                the generation was taken over, cancelled or ended by somebody else

What Triton and its client raise is ``tiny_sd_client.TinySDError``, a tree of its own.
"""

from __future__ import annotations

from tiny_sd_gateway import money


class GatewayError(Exception):
    """All that this package raises, but for misuse of its functions (ValueError)."""


class SettingError(GatewayError):
    """An environment variable has a value that cannot be used; the message names it."""


class DatabaseError(GatewayError):
    """The database cannot be used."""


class DatabaseUnavailable(DatabaseError):
    """The database is not reachable or did not answer in time. A transaction that was being committed may have been."""


class ForeignDatabase(DatabaseError):
    """What the URL names belongs to somebody else, or is no database."""


class DatabaseTooNew(DatabaseError):
    """A newer gateway has changed the tables."""


class UnknownKey(GatewayError):
    """No such API key, or it is revoked."""


class InsufficientCredits(GatewayError):
    """The balance does not cover the price; both are in milli-credits."""

    def __init__(self, price: int, balance: int) -> None:
        super().__init__(f"not enough credits: {money.shown(price)} needed, {money.shown(balance)} left")
        self.price = price
        self.balance = balance


class IdempotencyConflict(GatewayError):
    """The same key used ``idempotency_key`` for another request before."""

    def __init__(self, idempotency_key: str) -> None:
        super().__init__("the Idempotency-Key was used for another request before; use a new one for a new request")
        self.idempotency_key = idempotency_key


class UnknownGeneration(GatewayError):
    """This key has no generation ``generation_id``."""

    def __init__(self, generation_id: str) -> None:
        super().__init__("no such generation")
        self.generation_id = generation_id


class LeaseLost(GatewayError):
    """The generation is not this worker's any more: somebody cancelled it, took it over, or it has ended."""

    def __init__(self, generation_id: str) -> None:
        super().__init__(f"generation {generation_id} was cancelled, taken over or ended meanwhile")
        self.generation_id = generation_id
