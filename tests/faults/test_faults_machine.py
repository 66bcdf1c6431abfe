"""A machine that fails: full memory file systems and disks, a clock that jumps, a server that is told to stop."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests
from callers_in_flight import PICTURE, Callers, in_words
from gateway_process import Process, get, post
from grpc_triton import GrpcTriton
from matrix import Matrix, Row
from running_gateway import SLUG, wait_until
from serving_server import FP32, SMALL_SIZES
from supervised import PATIENCE_S, Supervised

from local_server import LocalServer
from tiny_sd_client import Client, TinySDError


def small_disk(folder: Path | str, megabytes: int) -> list[str]:
    """A command that runs another one, which follows it, with a file system of this size on ``folder``."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "{folder}" && exec "$@"'
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    return [*namespace, "sh", "-c", mount, "sh"]


def seen_by(pid: int, folder: Path | str) -> Path:
    """The folder as the process has it."""
    return Path(f"/proc/{pid}/root{folder}")


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Without a byte to spare."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        for size in (2**20, 2**12):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.long
def test_a_full_dev_shm_costs_pictures_only_while_it_is_full(checkpoint: Path, tmp_path: Path, matrix: Matrix) -> None:
    with Supervised(checkpoint, tmp_path / "log", inside=small_disk("/dev/shm", 96)) as server:
        with Callers(server.url) as callers, filled(seen_by(server.process.pid, "/dev/shm")):
            saw = callers.saw()
            meanwhile = Counter(attempt(server) for _ in range(4))
        seconds = server.seconds_until_picture()
        assert set(saw + meanwhile) <= {PICTURE, "Unavailable", "ServerFault"}
        matrix.add(Row("/dev/shm is full", f"{in_words(saw)}; new ones {in_words(meanwhile)}", seconds))


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def attempt(server: Supervised) -> str:
    try:
        # A size that nobody has asked for yet wants more memory.
        server.picture(img_width=512, img_height=512, samples=4)
    except TinySDError as error:
        return type(error).__name__
    return PICTURE


def test_sigterm_under_load_leaves_nobody_without_an_answer(
    checkpoint: Path, tmp_path: Path, nothing_left: None, matrix: Matrix
) -> None:
    with Supervised(checkpoint, tmp_path / "log") as server:
        processes = server.processes()
        with Callers(server.url) as callers:
            server.process.send_signal(signal.SIGTERM)
            saw = callers.saw()
        server.process.wait(PATIENCE_S)
    assert set(saw) <= {PICTURE, "Unavailable", "ServerFault"}
    wait_until(lambda: not any(map(alive, processes)), PATIENCE_S)  # those that were killed may take a moment
    matrix.add(Row("SIGTERM under load", in_words(saw)))


@pytest.mark.parametrize("jump", [pytest.param("+3600", marks=pytest.mark.long), "-3600"])
def test_a_clock_that_jumps_costs_no_picture(jump: str, checkpoint: Path, tmp_path: Path, matrix: Matrix) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    (library,) = Path("/usr/lib").rglob("libfaketimeMT.so.1")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    environment |= {**FP32, **SMALL_SIZES, "TINY_SD_CHECKPOINT": str(checkpoint)}
    with LocalServer(env=environment, log_path=tmp_path / "log") as server:
        with Callers(f"grpc://{server.grpc_url}") as callers:
            # At once: whoever read an empty file would have no clock.
            (tmp_path / "next").write_text(jump)
            (tmp_path / "next").replace(clock)
            saw = callers.saw()
        assert set(saw) == {PICTURE}
        with Client(f"grpc://{server.grpc_url}", patience=0) as client:
            # A timeout is counted from now by whichever clock the server has.
            assert client.generate("a circle", img_width=128, img_height=128, timeout=60).files
            assert client.jobs() == []
    matrix.add(Row(f"the clock jumps by {jump} s", in_words(saw)))


def test_a_full_disk_under_the_database_is_unavailable_until_there_is_room(tmp_path: Path, matrix: Matrix) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with (
        GrpcTriton() as triton,
        Process(
            f"sqlite:///{folder}/gateway.db", triton.url, tmp_path / "log", inside=small_disk(folder, 8)
        ) as gateway,
    ):
        key = gateway.read_key()
        assert generate(gateway, key).status_code == 200
        before = credits(gateway, key)
        with filled(seen_by(gateway.process.pid, folder)):
            answers = Counter(generate(gateway, key).status_code for _ in range(5))
            assert set(answers) == {503}
        began = time.monotonic()
        wait_until(lambda: generate(gateway, key).status_code == 200, PATIENCE_S)
        seconds = time.monotonic() - began
        wait_until(lambda: credits(gateway, key) == before - 1, PATIENCE_S)
    matrix.add(Row("the disk under the gateway's database is full", "5 answers 503, none charged", seconds))


def generate(gateway: Process, key: str) -> requests.Response:
    return post(gateway, f"/v1/{SLUG}", key, prompt="a small red circle", base64=False)


def credits(gateway: Process, key: str) -> float:
    return float(get(gateway, "/v1/credits", key).json()["remaining_credits"])
