"""What all tests share: the random-weight ``test`` checkpoint, and diffusers' own pipeline on it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from local_server import LocalServer, ServeError
from painting import write_painting
from reference import Reference
from tiny_sd_engine.architectures import write_random

# An example may take any time: a busy machine stands still for longer than hypothesis' 0.2 s.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

_SHARE_SERVERS = {f"tests/serving/test_{name}.py" for name in ("in_flight", "load_test", "evaluate")}
_SHARE_A_SERVER = {
    f"tests/serving/test_{name}.py" for name in ("client", "command", "demo_pictures", "ensemble", "refusals")
}

_LOG_LINES = 15


class ByServer(LoadFileScheduling):
    """As ``--dist loadfile``, but files that share servers go to one process: a start takes twenty CPU seconds."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        for together in (_SHARE_SERVERS, _SHARE_A_SERVER):
            if file in together:
                return min(together)
        return file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    return ByServer(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Beside a failure, say how the Triton servers of the test are."""
    report = yield
    if report.failed:
        for name, server in item.funcargs.items():
            if isinstance(server, LocalServer):
                report.sections.append((f"Triton of {name!r}", _state(server)))
    return report


def _state(server: LocalServer) -> str:
    try:
        server.check()
    except ServeError as error:
        ended = f"{error}\n"
    else:
        ended = ""
    lines = server.log_path.read_text(errors="replace").splitlines() if server.log_path.exists() else []
    return ended + "\n".join(lines[-_LOG_LINES:])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "test"
    write_random("test", folder)
    return folder


@pytest.fixture(scope="session")
def painting_checkpoint(checkpoint: Path) -> Path:
    """Whose networks denoise and paint as trained ones do."""
    return write_painting(checkpoint, checkpoint.parent / "painting")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)
