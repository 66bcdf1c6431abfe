"""The course of load tests in one process: from Locust's events to the report."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
from locust.exception import StopTest
from locust.runners import WorkerRunner

from load_tests.collection import Collection
from load_tests.figures import Figures, figures
from load_tests.options import read_settings
from load_tests.report import Report
from load_tests.users import LoadTest, LoadUser

logger = logging.getLogger(__name__)


class Course:
    """One test after another, for as long as this Locust runs."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._options = environment.parsed_options
        self._reports = not isinstance(environment.runner, WorkerRunner)
        self._test: LoadTest | None = None
        self._collection = Collection(environment, lambda: self._test)
        self._under_way = False
        self._finishing: gevent.Greenlet | None = None
        self._began = self._ended = time.monotonic()

    def begin(self) -> None:
        """A test begins."""
        if self._reports:
            # Workers get it with the other options; the number of all users they do not get.
            self._options.source_rate = self._options.rate / (self._options.num_users or 1)
        try:
            settings = read_settings(self._options)
        except ValueError as error:  # from the web page; those of the command line were read before
            raise StopTest(str(error)) from None
        self._test = LoadUser.test = LoadTest(self._environment, settings)
        self._collection.begin()
        self._began = self._ended = time.monotonic()
        self._under_way = True
        self._finishing = None

    def finish(self) -> None:
        """The test is to end: nothing more is sent, and what is under way is waited for."""
        # Locust may stop a test twice at the same time; whoever comes second waits as well.
        if self._under_way:
            self._finishing = self._finishing or gevent.spawn(self._finish)
            self._finishing.join()

    def conclude(self) -> None:
        """The test has ended: write the report, and decide how Locust is to exit."""
        if not self._under_way:
            return
        self._under_way = False
        if not self._reports:
            self._collection.tell_end()
            self._environment.process_exit_code = 0  # the master judges
            return
        report = self.report()
        for path in report.write(Path(self._options.report)):
            logger.info("Report: %s", path)
        for line in report.verdict():
            logger.info(line)
        self._environment.process_exit_code = self._exit_code(report.figures)

    def report(self) -> Report:
        """On the test that is under way, so far, or on the last one."""
        now = time.monotonic() if self._under_way else self._ended
        records = self._collection.look()
        slo = read_settings(self._options).slo
        return Report(figures(records, slo, max(now - self._began, 1e-9)), list(records), self._conditions())

    def _finish(self) -> None:
        self._ended = time.monotonic()
        self._collection.finish(self._options.timeout)
        if not self._options.rate:
            # The last answers took as much of a closed loop's time as others; those of an open loop were due before.
            self._ended = time.monotonic()

    def _exit_code(self, result: Figures) -> int:
        if not result.kept or not self._collection.complete:
            return 1
        bad = result.total.failed or self._environment.runner.exceptions
        return int(self._options.exit_code_on_error) if bad else 0

    def _conditions(self) -> dict[str, str]:
        options = self._options
        loop = f"open, {options.rate:g} planned arrivals a second" if options.rate else "closed"
        return {
            "command": shlex.join(["locust", *sys.argv[1:]]),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "loop": f"{loop}; {options.num_users} users; shape: {options.shape}",
            "mix": f"{options.mix}; sizes {options.sizes}; seed {options.seed}",
        }
