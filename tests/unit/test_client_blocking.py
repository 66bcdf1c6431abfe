"""The blocking client: the asyncio one behind threads, Ctrl-C, iterators and jobs."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from fake_server import FOREVER, FakeServer, event

from tiny_sd_client import (
    Cancelled,
    Client,
    Generation,
    InvalidParameter,
    JobStatus,
    Progress,
    ServerFault,
    Stage,
    UnknownJob,
    _async_client,
    _client,
)

CLIENT = Path(__file__).parents[2] / "client"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr(_async_client, "connect", lambda address: server)
    monkeypatch.setattr(_client, "_FAREWELL_S", 60.0)
    return server


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def interrupt() -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Press Ctrl-C once something is true and this thread waits for a client."""
    fingers = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background

    def press(true: Callable[[], bool]) -> None:
        wait_until(lambda: true() and main_thread_waits())
        os.kill(os.getpid(), signal.SIGINT)

    def press_when(true: Callable[[], bool]) -> None:
        fingers.append(threading.Thread(target=press, args=(true,)))
        fingers[-1].start()

    yield press_when
    for finger in fingers:
        finger.join()
    signal.signal(signal.SIGINT, before)


def main_thread_waits() -> bool:
    """Whether it waits for the outcome of what a client does."""
    assert threading.main_thread().ident
    frame = sys._current_frames()[threading.main_thread().ident]
    callers = [frame.f_code, frame.f_back and frame.f_back.f_code]
    return callers == [threading.Condition.wait.__code__, Future.result.__code__]


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "tiny-sd-client"}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_pictures_come_back_and_arguments_go_through(client: Client, server: FakeServer) -> None:
    generation = client.generate("a cat", seed=3, samples=2, timeout=3600, job_id="mine")
    assert generation.seeds == (3, 4)
    assert server.asked[0].request_id == "mine"
    assert 3500 < (server.asked[0].timeout or 0) <= 3600


def test_errors_come_back_as_they_are(client: Client, server: FakeServer) -> None:
    server.attempts = [[ServerFault("the denoiser failed")]]
    with pytest.raises(ServerFault, match="the denoiser failed"):
        client.generate("a cat")
    with pytest.raises(InvalidParameter):
        client.generate("a cat", samples=9)
    for make in (client.stream, client.submit):
        with pytest.raises(InvalidParameter):
            make("a cat", preview_every=-1)


def test_a_stream_is_an_iterator(client: Client, server: FakeServer) -> None:
    server.attempts = [[event("queued"), event(step=4), "pictures"]]
    *told, last = client.stream("a cat", preview_every=4)
    assert [each.step for each in told if isinstance(each, Progress)] == [0, 4, 20]
    assert isinstance(last, Generation)
    assert server.asked[0].inputs["preview_every"] == 4


def test_many_are_an_iterator(client: Client, server: FakeServer) -> None:
    server.slow = {"a": 0.05}
    made = client.generate_many(["a", {"prompt": "b", "seed": 9}, "c"], concurrency=2, seed=1)
    assert [(each.parameters.prompt, each.seeds) for each in made] == [("a", (1,)), ("b", (9,)), ("c", (1,))]
    assert server.most_in_flight == 2


@pytest.mark.parametrize("leave", ["break", "close", "error", "forget"])
def test_leaving_a_stream_early_breaks_it_off_at_once(leave: str, client: Client, server: FakeServer) -> None:
    server.attempts = [[event(), FOREVER]]
    if leave == "break":
        for _ in client.stream("a cat"):
            break
    elif leave == "close":
        with closing(client.stream("a cat")) as events:
            next(events)
    elif leave == "error":
        with pytest.raises(ZeroDivisionError):
            for _ in client.stream("a cat"):
                raise ZeroDivisionError
    else:
        events = client.stream("a cat")
        next(events)
        del events
    assert server.broken_off == ["a cat"]


def test_leaving_many_early_cancels_the_rest(client: Client, server: FakeServer) -> None:
    server.slow = dict.fromkeys("bcdef", 600.0)
    with closing(client.generate_many("abcdef", concurrency=3)) as generations:
        next(generations)
    assert server.in_flight == 0
    assert sorted(server.broken_off) == ["b", "c"]


def test_a_job_runs_in_the_background(client: Client, server: FakeServer) -> None:
    finish = threading.Event()
    server.attempts = [[event(step=3), finish, "pictures"]]
    job = client.submit("a cat", job_id="mine")
    assert job.id == "mine"
    wait_until(lambda: job.progress() is not None)
    assert not job.done()
    with pytest.raises(TimeoutError, match=r"job mine is not done after 0\.01 s; it goes on"):
        job.result(timeout=0.01)
    finish.set()
    assert job.result(timeout=60).files
    assert job.done()
    assert job.progress().stage is Stage.DONE  # type: ignore[union-attr]


def test_a_job_can_be_cancelled(client: Client, server: FakeServer) -> None:
    server.attempts = [[event(), FOREVER]]
    job = client.submit("a cat")
    wait_until(lambda: job.progress() is not None)
    job.cancel()
    assert (job.done(), server.broken_off) == (True, ["a cat"])
    with pytest.raises(Cancelled):
        job.result()
    job.cancel()


def test_a_job_outlives_the_name_of_its_client(server: FakeServer) -> None:
    server.attempts = [[0.05, "pictures"]]
    assert Client().submit("a cat").result().files
    server.attempts = [[event(), 0.05, "pictures"]]
    assert isinstance(list(Client().stream("a cat"))[-1], Generation)


def test_the_board_can_be_asked(client: Client, server: FakeServer) -> None:
    server.answer = event(step=3, max_in_flight=[32])
    status = JobStatus("a-job", Stage.DENOISING, 3, 20, pytest.approx(0.3), None)  # type: ignore[arg-type]
    assert client.jobs() == [status]
    assert client.job("a-job") == status
    assert client.status().jobs == (status,)
    client.cancel("a-job")
    assert server.calls[-1] == ("jobs", {"action": "cancel", "job_id": "a-job"})
    server.answer = UnknownJob("gone")
    with pytest.raises(UnknownJob):
        client.cancel("a-job")


def test_one_client_serves_many_threads(client: Client, server: FakeServer) -> None:
    all_are_here = threading.Event()
    server.attempts = [[all_are_here, "pictures"]] * 20
    server.slow = {f"picture {i}": 0.01 * (i % 3) for i in range(60)}
    with ThreadPoolExecutor(20) as pool:
        made = pool.map(client.generate, server.slow)
        wait_until(lambda: server.in_flight == 20)
        all_are_here.set()
    assert [each.parameters.prompt for each in made] == list(server.slow)
    assert server.most_in_flight == 20


# --- Ctrl-C


def test_ctrl_c_breaks_a_generation_off(
    client: Client, server: FakeServer, interrupt: Callable[[Callable[[], bool]], None]
) -> None:
    server.attempts = [[event(), FOREVER]]
    interrupt(lambda: server.silent == 1)
    with pytest.raises(KeyboardInterrupt):
        client.generate("a cat")
    assert server.broken_off == ["a cat"], "it is gone when the interrupt goes on"
    assert client.generate("another").files


def test_ctrl_c_breaks_a_stream_and_many_off(
    client: Client, server: FakeServer, interrupt: Callable[[Callable[[], bool]], None]
) -> None:
    server.attempts = [[event(), FOREVER]]
    interrupt(lambda: server.silent == 1)
    with pytest.raises(KeyboardInterrupt):
        list(client.stream("a cat"))
    assert server.broken_off == ["a cat"]
    server.attempts = [["pictures"], [FOREVER], [FOREVER]]
    many = client.generate_many(["a", "b", "c"])
    assert next(many).parameters.prompt == "a"
    interrupt(lambda: server.silent == 3)
    with pytest.raises(KeyboardInterrupt):
        next(many)
    assert sorted(server.broken_off) == ["a cat", "b", "c"]


def test_ctrl_c_while_waiting_for_a_job_leaves_the_job_alone(
    client: Client, server: FakeServer, interrupt: Callable[[Callable[[], bool]], None]
) -> None:
    finish = threading.Event()
    server.attempts = [[event(), finish, "pictures"]]
    job = client.submit("a cat")
    interrupt(lambda: True)
    with pytest.raises(KeyboardInterrupt):
        job.result()
    finish.set()
    assert job.result().files


# --- the end


def test_closing_cancels_what_other_threads_wait_for(server: FakeServer) -> None:
    server.attempts = [[event(), FOREVER]] * 3
    client = Client()
    with ThreadPoolExecutor() as pool:
        waiting: list[Any] = [
            pool.submit(client.generate, "a cat"),
            pool.submit(lambda: list(client.stream("a dog"))),
            pool.submit(lambda: client.submit("a cow").result()),
        ]
        wait_until(lambda: server.in_flight == 3)
        client.close()
        for each in waiting:
            with pytest.raises(Cancelled):
                each.result(60)
    assert (server.in_flight, server.closed) == (0, True)


def test_a_closed_client_says_so(server: FakeServer) -> None:
    client = Client()
    client.close()
    client.close()
    for use in (lambda: client.generate("a cat"), client.jobs, lambda: client.submit("a cat")):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_what_was_begun_before_a_client_was_closed_is_cancelled_unless_it_is_done(server: FakeServer) -> None:
    client = Client()
    done = client.submit("a cat")
    assert done.result().files
    server.attempts = [[event(), FOREVER]] * 2
    events, job = client.stream("a dog"), client.submit("a cow")
    next(events)
    client.close()
    assert done.result().files
    for use in (lambda: next(events), job.result):
        with pytest.raises(Cancelled):
            use()
    job.cancel()
    events.close()
    assert sorted(server.broken_off) == ["a cow", "a dog"]


def test_a_client_that_is_forgotten_ends_its_thread(server: FakeServer) -> None:
    before = threads()
    for _ in range(5):
        Client().generate("a cat")
    gc.collect()
    wait_until(lambda: threads() <= before)
    assert server.closed


def test_garbage_that_is_collected_in_the_clients_own_thread_does_no_harm(client: Client, server: FakeServer) -> None:
    server.attempts = [[event(), FOREVER]]
    cycle: list[Any] = [client.stream("a cat")]
    cycle.append(cycle)
    next(cycle[0])
    gc.disable()
    del cycle

    def prompts() -> Iterator[str]:
        gc.collect()
        yield "a dog"

    try:
        assert len(list(client.generate_many(prompts()))) == 1
    finally:
        gc.enable()
    wait_until(lambda: server.broken_off == ["a cat"])


def test_prompts_cannot_wait_for_the_client_that_reads_them(client: Client) -> None:
    prompts = (client.generate("a cat").parameters.prompt for _ in range(3))
    with pytest.raises(RuntimeError, match="its own thread"):
        next(client.generate_many(prompts))
    assert client.generate("a dog").files


def test_a_bad_url_starts_nothing() -> None:
    before = threads()
    with pytest.raises(ValueError, match="allowed: grpc://host:port"):
        Client("localhost:8001")
    assert threads() <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_told_to_make_a_client_of_its_own() -> None:
    """In a process of its own, as the tests' may hold gRPC, which takes no fork with calls under way."""
    ended = run_program(FORK)
    assert (ended.returncode, ended.stdout) == (0, "0 True\n")


def run_program(code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(CLIENT), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


FORK = """
import os
from fake_server import FakeServer
from tiny_sd_client import Client, _async_client

server = FakeServer()
_async_client.connect = lambda address: server
with Client() as client:
    client.generate("a cat")
    if (child := os.fork()) == 0:
        try:
            client.generate("a cat")
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 1)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, bool(client.generate("a cat").files))
"""
SCRIPT = """
import atexit
from fake_server import FOREVER, FakeServer, event
from tiny_sd_client import Client, _async_client, _client

_client._FAREWELL_S = 60.0
server = FakeServer(attempts=[[event(), FOREVER], [event(), FOREVER]])
_async_client.connect = lambda address: server
# What is registered first is called last.
atexit.register(lambda: print("broken off:", *sorted(server.broken_off), "closed:", server.closed))
client = Client()
job = client.submit("a dog")
events = client.stream("a cat")
next(events)
{ending}
"""


@pytest.mark.parametrize(("ending", "code"), [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_a_program_may_end_without_closing_anything(ending: str, code: int) -> None:
    ended = run_program(SCRIPT.format(ending=ending))
    assert ended.returncode == code
    assert ended.stdout == "broken off: a cat a dog closed: True\n"
    noise = [line for line in ended.stderr.splitlines() if "Executing <" not in line]
    assert noise == [] or "ZeroDivisionError" in noise[-1]


def test_islice_reads_no_more_than_it_is_asked_for(client: Client, server: FakeServer) -> None:
    assert [each.parameters.prompt for each in islice(client.generate_many("abcdefgh", concurrency=1), 2)] == ["a", "b"]
    wait_until(lambda: server.in_flight == 0)
    assert len(server.asked) <= 3
