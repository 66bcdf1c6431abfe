"""`helm test`: its script on a real gateway, with a fake Triton behind it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_triton
import pytest
from fake_triton import FakeTriton
from PIL import Image
from rendered_chart import GPUS, ONE_GPU, render
from running_gateway import RunningGateway

from tiny_sd_client import Unavailable
from tiny_sd_gateway import keys

EVERY_TRY = 3  # of the gateway's at one request


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningGateway]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    monkeypatch.setattr(fake_triton, "picture", lambda prompt, seed: file.getvalue())
    with RunningGateway(f"sqlite:///{tmp_path / 'gateway.db'}", FakeTriton()) as running:
        yield running


def test_helm_test_makes_a_picture_with_a_key_that_does_not_stay(gateway: RunningGateway) -> None:
    done = _helm_test(gateway)
    assert (done.returncode, done.stderr.count("tsd_")) == (0, 0)
    assert done.stdout.startswith("got a PNG file of ")
    assert _revoked(gateway) == [True]


def test_helm_test_says_what_the_gateway_said_when_there_is_no_picture(gateway: RunningGateway) -> None:
    gateway.triton.at_start = [Unavailable("grpc://triton:8001: connection refused")] * EVERY_TRY
    done = _helm_test(gateway)
    assert done.returncode == 1
    assert "the gateway answered 503: " in done.stderr
    assert _revoked(gateway) == [True]


def test_helm_test_runs_only_when_asked_to_and_gives_up_after_the_gateway() -> None:
    job = render(GPUS).pod("test").owner
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert job["spec"]["activeDeadlineSeconds"] > 300


def _helm_test(gateway: RunningGateway) -> subprocess.CompletedProcess[str]:
    python, option, script, address, seconds = render(ONE_GPU).pod("test").main["command"]
    assert (python, address, seconds) == ("python", "http://tiny-sd-gateway", "300")
    environment = {
        **os.environ,
        "TINY_SD_GATEWAY_DATABASE_URL": gateway.settings.database_url,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, option, script, gateway.url, "60"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _revoked(gateway: RunningGateway) -> list[bool]:
    """Of the keys that `helm test` made."""
    accounts = gateway.in_database(keys.accounts)
    return [account.key.revoked_at is not None for account in accounts if account.key.name == "helm test"]
