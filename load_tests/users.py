"""The users that Locust runs, one kind for each transport; in the open loop each of them is a source of arrivals."""

from __future__ import annotations

import itertools
import os
import time
from random import Random
from typing import Any, ClassVar

from gevent.event import Event
from locust import User, task
from locust.exception import StopUser

from load_tests.arrivals import follow, plan
from load_tests.calls import TRANSPORTS, Call, Connections
from load_tests.figures import IMAGE, Outcome, Record
from load_tests.mix import Request
from load_tests.options import API_KEY, Settings
from load_tests.traffic import Traffic


class LoadTest:
    """One test in one process: what its users share, and how its requests ended."""

    def __init__(self, environment: Any, settings: Settings) -> None:
        self.settings = settings
        self.stopping = Event()
        self._request_event = environment.events.request
        # Equal for all that belong to one worker; each worker has another.
        self._index = getattr(environment.runner, "worker_index", 0)
        self._ordinals: dict[str, itertools.count[int]] = {}
        self._records: list[Record] = []
        self._connections = Connections(
            settings.grpc_url, settings.http_url, settings.gateway_url, os.environ.get(API_KEY, "")
        )
        self.traffic = Traffic(settings.timeout, self._ended)

    def seed(self, name: str) -> str:
        """That of the next user of a kind. The same settings give the same ones, one after another."""
        ordinal = next(self._ordinals.setdefault(name, itertools.count()))
        return f"{self.settings.seed} {self._index} {name} {ordinal}"

    def call(self, transport: str) -> Call:
        """How requests are sent over ``transport``."""
        return TRANSPORTS[transport](self._connections)

    def take(self) -> list[Record]:
        """The requests that have ended since the last time."""
        records, self._records = self._records, []
        return records

    def finish(self) -> None:
        """Send nothing more, and wait for what is under way. Harmless when repeated."""
        self.stopping.set()
        self.traffic.finish()
        self._connections.close()

    def _ended(self, record: Record, size: int) -> None:
        self._records.append(record)
        for mark, seconds in record.marks.items():
            self._tell(record, mark, seconds, 0, None)
        problem = None if record.outcome is Outcome.ANSWERED else RuntimeError(record.problem)
        self._tell(record, f"{IMAGE}, {record.kind}", record.seconds, size, problem)

    def _tell(self, record: Record, name: str, seconds: float, size: int, problem: Exception | None) -> None:
        """Locust's own tables hear of it, too."""
        self._request_event.fire(
            request_type=record.transport,
            name=name,
            response_time=1000 * seconds,
            response_length=size,
            exception=problem,
            context={},
        )


class LoadUser(User):
    """Whoever asks for pictures."""

    abstract = True
    transport: ClassVar[str]
    test: ClassVar[LoadTest]
    """The test that is under way in this process."""

    def on_start(self) -> None:
        """Take what is needed for the whole life."""
        seed = self.test.seed(self.transport)
        self._seed = seed
        self._random = Random(seed)
        self._call = self.test.call(self.transport)

    @task
    def ask(self) -> None:
        """Closed loop: one request and its answer. Open loop: a life-long source of requests."""
        test = self.test
        if test.settings.source_rate:
            planned = plan(test.settings.mix, test.settings.source_rate, self._seed)
            follow(planned, self._send, test.stopping, time.monotonic)
        elif not test.stopping.is_set():
            # In a greenlet of its own: if this user is sent home meanwhile, its request is still answered and counted.
            self._send(test.settings.mix.draw(self._random), time.monotonic()).join()
        if test.stopping.is_set():
            raise StopUser

    def wait_time(self) -> float:
        """Seconds between an answer and the next request, in the closed loop."""
        mean = self.test.settings.think_seconds
        return self._random.expovariate(1 / mean) if mean else 0.0

    def _send(self, request: Request, due: float) -> Any:
        return self.test.traffic.send(self.transport, self._call, request, due)


class GrpcUser(LoadUser):
    """Unary gRPC to the ensemble."""

    transport = "grpc"


class StreamUser(LoadUser):
    """gRPC streams, with progress and previews."""

    transport = "stream"


class GenerateUser(LoadUser):
    """Triton's HTTP ``generate``."""

    transport = "generate"


class InferUser(LoadUser):
    """Triton's HTTP ``infer``."""

    transport = "infer"


class RestUser(LoadUser):
    """The gateway's v1: waits for the pictures."""

    transport = "rest"


class QueueUser(LoadUser):
    """The gateway's v2: submits, and looks until it is done."""

    transport = "queue"
