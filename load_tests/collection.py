"""What the processes of one load test tell each other: workers their requests, the master when it is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

from load_tests.figures import Record
from load_tests.users import LoadTest

_REPORT_KEY = "tiny_sd_requests"
_FINISH = "tiny_sd_finish"
_FINISHED = "tiny_sd_finished"
_GRACE_S = 15.0
"""For the word of a worker's end to arrive, on top of what the worker itself waits for."""
_LOOK_S = 0.1

logger = logging.getLogger(__name__)


class Collection:
    """All requests of a test, from all processes.

    ``test`` gives the test of this process, None before the first one. ``complete`` turns false if a worker has not
    told the end of its requests.
    """

    def __init__(self, environment: Any, test: Callable[[], LoadTest | None]) -> None:
        self.records: list[Record] = []
        self.complete = True
        self._runner = environment.runner
        self._test = test
        self._workers: set[str] = set()
        self._finished: set[str] = set()
        self._told = False
        if isinstance(self._runner, WorkerRunner):
            environment.events.report_to_master.add_listener(self._report)
            # In a greenlet of its own: the worker must hear other messages meanwhile, heartbeats above all.
            self._runner.register_message(_FINISH, self._finish_as_told, concurrent=True)
        elif isinstance(self._runner, MasterRunner):
            environment.events.worker_report.add_listener(self._take_report)
            self._runner.register_message(_FINISHED, self._take_last)

    def begin(self) -> None:
        """Forget the last test."""
        self.records = []
        self.complete = True
        self._workers = self._connected()
        self._finished = set()
        self._told = False

    def look(self) -> list[Record]:
        """The requests that have ended so far; in the master, as far as the workers have told."""
        if not isinstance(self._runner, MasterRunner | WorkerRunner):
            self.records += self._take()
        return self.records

    def finish(self, timeout: float) -> None:
        """Have every process send nothing more and wait for what is under way, at most ``timeout`` seconds."""
        if isinstance(self._runner, MasterRunner):
            self._finish_workers(timeout + _GRACE_S)
        elif test := self._test():
            test.finish()

    def tell_end(self) -> None:
        """In a worker: tell the master that all is told, once. Unasked, too: Ctrl-C reaches workers by themselves."""
        if isinstance(self._runner, WorkerRunner) and not self._told:
            self._told = True
            self._runner.send_message(_FINISHED, self._rows())

    def _finish_workers(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._workers |= self._connected()
        self._runner.send_message(_FINISH)
        while self._waiting() and time.monotonic() < deadline:
            gevent.sleep(_LOOK_S)
        if missing := self._workers - self._finished:
            self.complete = False
            logger.error("%d of %d workers did not tell the end of their requests", len(missing), len(self._workers))

    def _waiting(self) -> bool:
        return bool((self._workers & self._connected()) - self._finished)

    def _connected(self) -> set[str]:
        if not isinstance(self._runner, MasterRunner):
            return set()
        clients = self._runner.clients
        return {client.id for client in [*clients.ready, *clients.spawning, *clients.running]}

    def _report(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        data[_REPORT_KEY] = self._rows()

    def _take_report(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        self._workers.add(client_id)
        self.records += map(Record.of, data.get(_REPORT_KEY, []))

    def _finish_as_told(self, environment: Any, msg: Any, **_: Any) -> None:
        if test := self._test():
            test.finish()
        self.tell_end()

    def _take_last(self, environment: Any, msg: Any, **_: Any) -> None:
        self._finished.add(msg.node_id)
        self.records += map(Record.of, msg.data)

    def _rows(self) -> list[list[Any]]:
        return [record.row() for record in self._take()]

    def _take(self) -> list[Record]:
        test = self._test()
        return test.take() if test else []
