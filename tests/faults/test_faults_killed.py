"""Processes that die or hang under load: callers hear of it by a typed error, and pictures come again by themselves."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from callers_in_flight import PICTURE, Callers, Repeaters, in_words
from matrix import Matrix, Row
from supervised import Supervised

STAGES = ("tokenizer", "text_encoder", "vae_decoder")
OTHERS = (*STAGES, "tiny_sd_stream", "jobs")
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


@pytest.mark.parametrize("model", ["unet", *(pytest.param(model, marks=pytest.mark.long) for model in STAGES)])
def test_a_model_that_stands_still_for_a_while_gives_nobody_a_wrong_picture(
    model: str, supervised: Supervised, matrix: Matrix
) -> None:
    # After a second Triton gives the process up, and the request. The process knows nothing of it and answers; Triton
    # would take that for its answer to the next request.
    pictures = {seed: supervised.picture(seed=seed) for seed in range(4)}
    assert len(set(pictures.values())) == len(pictures)
    servers, restarts = supervised.regions(), supervised.said("starting again")
    with Repeaters(supervised, pictures) as callers:
        process = supervised.the_process(f"/{model}/1/model.py")
        began = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        supervised.wait_for("starting again", restarts + 1)
        supervised.seconds_until_picture()
        seconds = time.monotonic() - began
    assert PICTURE in callers.saw
    assert set(callers.saw) <= TYPED
    assert supervised.regions() == servers
    matrix.add(Row(f"{model} stands still for 2.5 s", ", ".join(sorted(callers.saw)), seconds))
