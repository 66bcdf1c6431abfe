"""The load tests for real: Locust's own process against Triton, its reports against Triton's own counters."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import psutil
import pytest
import requests
from callers import change_of, job_ids
from locust_run import ANSWERS_S, SIZES, TRITON, Run, ended, load, running, so_far, start
from serving_server import FP32

from load_tests.arrivals import plan
from load_tests.mix import Mix
from local_server import LocalServer, free_ports
from local_server.install import ROOT

AT_ONCE = "--spawn-rate=100"


def wait_for(generations: int, server: LocalServer) -> None:
    """Until so many are in flight."""
    deadline = time.monotonic() + ANSWERS_S
    while len(job_ids(server.http_url)) < generations:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_until_spawned(process: subprocess.Popen[str], folder: Path) -> None:
    """Until Locust goes on, whether or not all workers found the time to say that their users are there."""
    deadline = time.monotonic() + ANSWERS_S
    while not re.search("All users spawned|Spawning is complete", so_far(folder)):
        assert process.poll() is None, so_far(folder)
        assert time.monotonic() < deadline, so_far(folder)
        time.sleep(0.1)


def test_a_closed_loop_is_reported_as_the_server_counts_it(batching_server: LocalServer, tmp_path: Path) -> None:
    with change_of(batching_server.metrics_url) as change:
        run = load(batching_server, tmp_path, "--mix=draft", "--users=8", AT_ONCE, "--run-time=6s")
    assert run.code == 0, run.log
    answered = {name: run.count(name) for name in TRITON}
    assert all(answered.values())
    assert run.count("all") == len(run.requests) == sum(answered.values())
    # Streams call the ensemble, too. Each draft is one picture of 20 steps, and none was given up at the end.
    assert change.once("nv_inference_request_success_total:tiny_sd", run.count("all")) == run.count("all")
    streams = answered["stream"]
    assert change.once("nv_inference_request_success_total:tiny_sd_stream", streams) == streams
    assert change["tiny_sd_unet_steps_total:unet"] == 20 * run.count("all")
    assert "SLO kept: 100.0 %" in run.page


def test_progress_comes_before_previews_and_images(batching_server: LocalServer, tmp_path: Path) -> None:
    # Of 512 pixels, so that there is time for many events.
    options = ["--mix=long", "--sizes=512", "--transport=stream", "--users=3", "--run-time=4s"]
    run = load(batching_server, tmp_path, *options)
    assert run.code == 0, run.log
    for row in run.requests:
        progress, preview, image = (float(row[name]) for name in ("first_progress_s", "first_preview_s", "seconds"))
        assert 0 < progress <= preview < image
    counts = {name: int(line["requests"]) for name, line in run.slo.items() if line["group"] == "milestone"}
    names = ("stream: first progress", "stream: first preview", "stream: final image")
    assert counts == dict.fromkeys(names, len(run.requests))


@pytest.mark.parametrize("transport", TRITON)
def test_the_users_of_a_process_do_not_wait_for_each_other(
    batching_server: LocalServer, tmp_path: Path, transport: str
) -> None:
    # More users than gevent has threads for what blocks.
    users = ["--users=16", AT_ONCE, "--think-seconds=0", f"--transport={transport}"]
    run = load(batching_server, tmp_path, *users, "--mix=long", "--run-time=3s")
    assert run.code == 0, run.log
    assert run.most_at_once() == 16


@pytest.mark.parametrize("transport", ["grpc", "stream", "generate"])
def test_an_open_loop_keeps_its_plan_whatever_the_server_does(
    batching_server: LocalServer, tmp_path: Path, transport: str
) -> None:
    options = ["--rate=6", "--seed=3", f"--transport={transport}", "--mix=draft=1,long=3", "--run-time=5s"]
    run = load(batching_server, tmp_path, *options)
    assert run.code == 0, run.log
    # What the first user of this transport in the first process plans.
    planned = list(islice(plan(Mix.parse("draft=1,long=3", SIZES), 6.0, f"3 0 {transport} 0"), len(run.requests)))
    began = float(run.requests[0]["due_s"]) - planned[0].due
    assert [float(row["due_s"]) - began for row in run.requests] == pytest.approx(
        [each.due for each in planned], abs=0.001
    )
    assert [row["kind"] for row in run.requests] == [each.request.kind for each in planned]
    # No request had to wait for another one's answer to be sent.
    assert max(float(row["late_s"]) for row in run.requests) < median(float(row["seconds"]) for row in run.requests)


def test_refusals_are_counted_apart_and_as_the_server_counts_them(narrow_server: LocalServer, tmp_path: Path) -> None:
    with change_of(narrow_server.metrics_url) as change:
        run = load(narrow_server, tmp_path, "--rate=30", "--users=8", "--mix=draft", "--run-time=3s")
    total = {outcome: run.count("all", outcome) for outcome in ("answered", "refused", "failed", "lost")}
    assert all(run.count(name, "refused") for name in TRITON)
    assert total["refused"] == change["tiny_sd_jobs_refused_total:tokenizer"]
    answered = total["answered"]
    assert answered == change.once("nv_inference_request_success_total:tiny_sd", answered) > 0
    assert (total["failed"], total["lost"]) == (0, 0)
    assert sum(total.values()) == len(run.requests)
    assert run.code == 1  # most had no pictures
    assert "SLO missed" in run.log


@pytest.fixture
def silent() -> Iterator[str]:
    """Host and port of somebody who takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_what_is_never_answered_is_lost_and_fails_the_test(silent: str, tmp_path: Path) -> None:
    urls = [f"--grpc-url=grpc://{silent}", f"--http-url=http://{silent}"]
    run = load(None, tmp_path, *urls, "--rate=8", "--run-time=2s", "--timeout=1", "--slo-share=0.01")
    assert run.code == 1
    assert run.count("all", "lost") == len(run.requests) > 0
    assert {row["problem"] for row in run.requests} <= {"no answer in time", "no answer before the end of the test"}


@pytest.fixture
def nobody() -> Iterator[list[str]]:
    """Options for a server that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        yield [f"--grpc-url=grpc://{address}", f"--http-url=http://{address}"]


def test_a_server_that_is_not_there_loses_everything(nobody: list[str], tmp_path: Path) -> None:
    run = load(None, tmp_path, *nobody, "--users=4", AT_ONCE, "--run-time=2s")
    assert run.code == 1
    assert all(run.count(name, "lost") for name in TRITON)
    assert run.count("all", "lost") == len(run.requests)
    assert all(row["problem"].startswith("connection: ") for row in run.requests)


def test_workers_share_a_rate_and_tell_of_every_request(batching_server: LocalServer, tmp_path: Path) -> None:
    options = ["--processes=2", "--users=8", "--rate=6", "--mix=draft", "--run-time=5s"]
    with change_of(batching_server.metrics_url) as change:
        run = load(batching_server, tmp_path, *options)
    assert run.code == 0, run.log
    answered = run.count("all")
    assert answered == len(run.requests) == change.once("nv_inference_request_success_total:tiny_sd", answered)
    assert all(run.count(name) for name in TRITON)
    # Five seconds, or what became of them, of six a second, within four standard deviations; not six in each process.
    due = 6 * max(5.0, *(float(row["due_s"]) for row in run.requests))
    assert len(run.requests) == pytest.approx(due, abs=4 * due**0.5)


def test_ctrl_c_lets_the_workers_finish_and_reports(batching_server: LocalServer, tmp_path: Path) -> None:
    with change_of(batching_server.metrics_url) as change:
        options = ["--headless", "--processes=2", "--users=4", "--mix=long"]
        with running(batching_server, tmp_path, *options) as process:
            wait_for(2, batching_server)
            os.killpg(process.pid, signal.SIGINT)
            run = ended(process, tmp_path)
    assert run.code == 0, run.log
    answered = run.count("all")
    assert answered == len(run.requests) == change.once("nv_inference_request_success_total:tiny_sd", answered) > 1


def test_ctrl_c_ends_processes_that_never_rest(nobody: list[str], tmp_path: Path) -> None:
    options = ["--headless", "--processes=2", "--users=64", AT_ONCE, "--think-seconds=0", "--transport=generate"]
    with running(None, tmp_path, *nobody, *options) as process:
        wait_until_spawned(process, tmp_path)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        run = ended(process, tmp_path)
    assert run.code == 1
    assert run.count("all", "lost") == len(run.requests) > 0
    assert "Traceback" not in run.log
    assert "did not tell the end of their requests" not in run.log


def test_a_worker_that_dies_is_not_passed_over(batching_server: LocalServer, tmp_path: Path) -> None:
    options = ["--headless", "--processes=2", "--users=4", AT_ONCE, "--mix=long"]
    with running(batching_server, tmp_path, *options) as process:
        wait_for(3, batching_server)  # of two users a worker, so that one is the other worker's
        psutil.Process(process.pid).children()[0].kill()
        process.send_signal(signal.SIGINT)
        run = ended(process, tmp_path)
    assert run.code == 1
    assert "1 of 2 workers did not tell the end of their requests" in run.log
    assert run.requests


def test_a_shape_changes_the_number_of_users(batching_server: LocalServer, tmp_path: Path) -> None:
    options = ["--shape=spike", "--users=8", "--run-time=10s", "--mix=draft", "--transport=grpc"]
    run = load(batching_server, tmp_path, *options)
    assert run.code == 0, run.log
    assert re.findall(r"updating to (\d+) users", run.log) == ["2", "8", "2"]
    assert run.count("all") == len(run.requests)  # also what was under way when its user was sent home


def test_the_web_page_starts_a_test_and_shows_how_it_stands(batching_server: LocalServer, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_ports('127.0.0.1').http)}"
    form = {"user_count": 4, "spawn_rate": 100, "rate": 5, "mix": "draft", "slo_seconds": 60}
    with running(batching_server, tmp_path, f"--web-port={port}", "--web-host=127.0.0.1") as process:
        while not answers(url):
            time.sleep(0.1)
        assert "slo_seconds" in requests.get(url, timeout=60).text
        assert requests.post(f"{url}/swarm", data=form, timeout=60).json()["success"]
        while " of 0 requests" in (shown := requests.get(f"{url}/slo", timeout=60).text):
            time.sleep(0.2)
        assert re.search(r"of \d+ requests had their pictures within 60 s", shown)
        assert requests.post(f"{url}/stop", timeout=ANSWERS_S).json()["success"]
        first = Run(0, "", tmp_path)
        # A value that makes no sense starts nothing.
        requests.post(f"{url}/swarm", data={**form, "mix": "nonsense"}, timeout=60)
        process.terminate()
        run = ended(process, tmp_path)
    assert first.count("all") == len(first.requests) > 0
    assert "mix: got 'nonsense'; allowed: " in run.log
    assert run.requests == first.requests


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=60).ok
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize("argument", ["--mix=nonsense", "--transport=rest", "--slo-share=2"])
def test_options_that_make_no_sense_start_nothing(argument: str, tmp_path: Path) -> None:
    done = start(None, tmp_path, "--headless", argument)
    assert done.returncode == 1
    assert re.search(r"ERROR/locustfile: (mix|transport|slo-share): ", done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_one_command_starts_loads_and_stops_everything(checkpoint: Path, tmp_path: Path) -> None:
    folders = [f"--checkpoint={checkpoint}", f"--out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "tools/load_test.py", *folders, "--", "--rate=3", "--mix=draft", "--run-time=6s"],
        cwd=ROOT,
        env={**os.environ, **FP32},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    run = Run(done.returncode, done.stdout + done.stderr, tmp_path)
    assert run.code == 0, run.log
    assert all(run.count(name) for name in (*TRITON, "rest", "queue"))
    queued = [row for row in run.requests if row["transport"] == "queue"]
    assert all(float(row["accepted_s"]) < float(row["seconds"]) for row in queued)
    assert (tmp_path / "locust.html").stat().st_size > 0
    # Locust writes this file once a second and not at the end, so it lacks what came in the last one.
    in_time = {row["transport"] for row in run.requests if float(row["due_s"]) + float(row["seconds"]) < 4}
    stats = (tmp_path / "locust_stats.csv").read_text()
    assert in_time
    assert all(f'{transport},"final image, draft"' in stats for transport in in_time)
