"""Locust's own process, headless or not, and the reports that it leaves."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local_server import LocalServer, free_ports
from local_server.install import ROOT

SIZES = "128,256"
TRITON = ("generate", "grpc", "infer", "stream")
ANSWERS_S = 120
"""Far more than any request takes here."""
_LOCUST = Path(sys.executable).with_name("locust")


@dataclass
class Run:
    """A Locust that has ended: its exit code, its log, and the reports that it wrote."""

    code: int
    log: str
    folder: Path
    slo: dict[str, dict[str, str]] = field(init=False)
    requests: list[dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.slo = {row["name"]: row for row in self._table("slo.csv")}
        self.requests = list(self._table("requests.csv"))

    @property
    def page(self) -> str:
        return (self.folder / "report.html").read_text()

    def count(self, name: str, outcome: str = "answered") -> int:
        """Requests of a group that ended so, as the report has them."""
        return int(self.slo[name][outcome]) if name in self.slo else 0

    def most_at_once(self) -> int:
        """The largest number of requests that were under way at the same time."""
        begun = [(float(row["due_s"]) + float(row["late_s"]), 1) for row in self.requests]
        ended = [(float(row["due_s"]) + float(row["seconds"]), -1) for row in self.requests]
        under_way = most = 0
        for _, change in sorted(begun + ended):
            under_way += change
            most = max(most, under_way)
        return most

    def _table(self, name: str) -> Iterator[dict[str, str]]:
        with (self.folder / name).open() as file:
            yield from csv.DictReader(file)


def load(server: LocalServer | None, folder: Path, *arguments: str) -> Run:
    """Run Locust headless to its end. Without a server, ``arguments`` say where to go."""
    done = start(server, folder, "--headless", *arguments)
    return Run(done.returncode, done.stdout + done.stderr, folder)


def start(server: LocalServer | None, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As :func:`load`, but it may leave no reports."""
    return subprocess.run(
        _command(folder, *arguments),
        env=_environment(server),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextmanager
def running(server: LocalServer | None, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Locust that goes on meanwhile; it and its workers are one process group, as in a terminal."""
    with _log(folder).open("w") as log:
        process = subprocess.Popen(
            _command(folder, *arguments),
            env=_environment(server),
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ended(process: subprocess.Popen[str], folder: Path) -> Run:
    """What a running Locust came to, once it has ended by itself."""
    process.wait(timeout=ANSWERS_S)
    return Run(process.returncode, so_far(folder), folder)


def so_far(folder: Path) -> str:
    """The log of a running Locust."""
    return _log(folder).read_text()


def _log(folder: Path) -> Path:
    return folder / "locust.log"


def _command(folder: Path, *arguments: str) -> list[str]:
    master = str(free_ports("127.0.0.1").http)
    ours = {
        "--locustfile": str(ROOT / "load_tests" / "locustfile.py"),
        "--report": str(folder),
        "--sizes": SIZES,
        "--timeout": str(ANSWERS_S),
        "--slo-seconds": str(ANSWERS_S),
        "--master-port": master,
        "--master-bind-port": master,
    }
    return [str(_LOCUST), "--only-summary", *(text for pair in ours.items() for text in pair), *arguments]


def _environment(server: LocalServer | None) -> dict[str, str]:
    without_key = {name: value for name, value in os.environ.items() if name != "TINY_SD_LOAD_API_KEY"}
    urls = {"GRPC_URL": f"grpc://{server.grpc_url}", "HTTP_URL": f"http://{server.http_url}"} if server else {}
    return {**without_key, **{f"TINY_SD_LOAD_{name}": url for name, url in urls.items()}}
