"""Processes that die or hang under load: callers hear of it by a typed error, and pictures come again by themselves."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from callers_in_flight import PICTURE, Callers, in_words
from matrix import Matrix, Row
from supervised import Supervised

OTHERS = ("tokenizer", "text_encoder", "vae_decoder", "tiny_sd_stream", "jobs")
TYPED = {PICTURE, "Unavailable", "ServerFault"}


@pytest.fixture(scope="module")
def supervised(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with Supervised(checkpoint, tmp_path_factory.mktemp("supervised") / "log") as server:
        yield server
    assert not server.regions(), "the last server left something on tmpfs"


@pytest.mark.parametrize(
    "victim",
    [
        "bin/tritonserver",
        "/unet/1/model.py",
        *(pytest.param(f"/{model}/1/model.py", marks=pytest.mark.long) for model in OTHERS),
    ],
)
def test_whatever_is_killed_callers_hear_of_it_and_pictures_come_again(
    victim: str, supervised: Supervised, matrix: Matrix
) -> None:
    many, servers, restarts = len(supervised.processes()), supervised.regions(), supervised.said("starting again")
    with Callers(supervised.url) as callers:
        began = time.monotonic()
        supervised.the_process(victim).kill()
        supervised.wait_for("starting again", restarts + 1)
        supervised.seconds_until_picture()
        seconds = time.monotonic() - began
        saw = callers.saw()
    assert set(saw) <= TYPED
    assert len(supervised.processes()) == many, "processes of the one that was killed are left"
    assert supervised.regions() == servers
    name = victim.split("/")[1] if victim.startswith("/") else "tritonserver"
    matrix.add(Row(f"`kill -9` of {name}", in_words(saw), seconds))


@pytest.mark.long
def test_a_model_that_hangs_is_noticed(supervised: Supervised, matrix: Matrix) -> None:
    restarts = supervised.said("starting again")
    with Callers(supervised.url) as callers:
        unet: psutil.Process = supervised.the_process("/unet/1/model.py")
        began = time.monotonic()
        unet.send_signal(signal.SIGSTOP)
        supervised.wait_for("starting again", restarts + 1)
        supervised.seconds_until_picture()
        seconds = time.monotonic() - began
        saw = callers.saw()
    assert set(saw) <= TYPED
    assert not unet.is_running() or unet.status() == psutil.STATUS_ZOMBIE
    matrix.add(Row("unet hangs (SIGSTOP)", in_words(saw), seconds))
