"""The asyncio client: what it asks for, what it makes of the answers, when it tries again, and how it breaks off."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from board_users import Clock
from fake_server import FOREVER, FakeServer, event
from hypothesis import given, settings
from hypothesis import strategies as st
from leaping_loop import LeapingLoop

from tiny_sd_client import (
    AsyncClient,
    Busy,
    Cancelled,
    DeadlineExceeded,
    Generation,
    InvalidParameter,
    JobStatus,
    Progress,
    ServerFault,
    ServerStatus,
    Stage,
    Unavailable,
    UnknownJob,
    _async_client,
    _attempts,
)

LOST = Unavailable("the connection was lost")
BUSY = Busy("4 of 4 generations are in flight; come back in 0.02 s", retry_after=0.02, in_flight=4, limit=4)
REFUSED = InvalidParameter("img_width", "got 300; allowed: 512, 768, 1024")
ID_TAKEN = InvalidParameter("id", "is in flight already")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the client and of its event loops."""
    clock = Clock()
    monkeypatch.setattr(asyncio.events, "new_event_loop", lambda: LeapingLoop(clock))
    monkeypatch.setattr(_async_client, "time", clock)
    monkeypatch.setattr(_attempts, "time", clock)
    return clock


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr(_async_client, "connect", lambda address: server)
    monkeypatch.setattr(_attempts, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(_attempts, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(_async_client, "_GRACE_S", 0.1)
    return server


def run(use: Callable[[AsyncClient], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    """What ``use`` returns for a client of the fake server."""

    async def session() -> Any:
        async with AsyncClient(**settings) as client:
            return await use(client)

    return asyncio.run(session())


def generate(prompt: str = "a cat", *, client: dict[str, Any] | None = None, **arguments: Any) -> Generation:
    generation = run(lambda each: each.generate(prompt, **arguments), **(client or {}))
    assert isinstance(generation, Generation)
    return generation


def stream(prompt: str = "a cat", **arguments: Any) -> list[Progress | Generation]:
    async def collect(client: AsyncClient) -> list[Progress | Generation]:
        return [each async for each in client.stream(prompt, **arguments)]

    events = run(collect)
    assert isinstance(events, list)
    return events


# --- what is asked, what comes back


def test_every_parameter_is_sent_and_the_answer_is_read(server: FakeServer) -> None:
    server.attempts = [[0.25, "pictures"]]
    generation = generate("a cat", seed=7, samples=2, scheduler="euler_a", base64=True)
    assert server.asked[0].inputs == {
        "prompt": "a cat",
        "negative_prompt": "",
        "scheduler": "Euler a",
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
        "samples": 2,
        "seed": 7,
        "img_width": 512,
        "img_height": 512,
        "base64": False,
        "image_format": "jpeg",
        "preview_every": 0,
    }
    assert generation.files == (b"picture of a cat 7", b"picture of a cat 8")
    assert generation.seeds == (7, 8)
    assert generation.parameters.seed == 7
    assert generation.job_id == "a-job"
    assert generation.timings.server == 2.0
    assert generation.timings.total == pytest.approx(0.25)


def test_a_wrong_parameter_costs_no_round_trip(server: FakeServer) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("samples", {"samples": 9}),
        ("steps", {"steps": 30}),
        ("prompt", {"prompt": " "}),
        ("img_width", {"img_width": 0}),
        ("timeout", {"timeout": 0}),
        ("timeout", {"timeout": float("nan")}),
        ("timeout", {"timeout": "5"}),
        ("timeout", {"timeout": sys.maxsize}),
        ("job_id", {"job_id": "two words"}),
        ("job_id", {"job_id": ""}),
        ("job_id", {"job_id": "x" * 129}),
    ]
    for name, arguments in wrong:
        with pytest.raises(InvalidParameter, match="allowed: ") as caught:
            generate(**arguments)
        assert caught.value.parameter == name
    assert server.asked == []


@pytest.mark.parametrize("preview_every", [-1, 101, 2.5, True, None, "5"])
def test_a_wrong_preview_interval_is_refused_at_the_call(preview_every: Any, server: FakeServer) -> None:
    async def call(client: AsyncClient) -> None:
        with pytest.raises(InvalidParameter, match=r"^preview_every: got .*; allowed: an integer from 0"):
            client.stream("a cat", preview_every=preview_every)

    run(call)


def test_whether_the_server_offers_a_size_is_its_own_decision(server: FakeServer) -> None:
    assert generate(img_width=640).parameters.img_width == 640
    server.attempts = [[REFUSED]]
    with pytest.raises(InvalidParameter) as caught:
        generate(img_width=300)
    assert caught.value.allowed == "512, 768, 1024"
    assert len(server.asked) == 2, "nobody tries a refused parameter again"


def test_a_stream_tells_of_progress_and_gives_the_generation_last(server: FakeServer) -> None:
    preview = event(step=9, preview=[b"small 1", b"small 2"])
    server.attempts = [[event("queued"), event(step=4), preview, event("decoding", 20), "pictures"]]
    *told, last = stream(preview_every=5)
    assert [(each.stage, each.step) for each in told if isinstance(each, Progress)] == [
        (Stage.QUEUED, 0),
        (Stage.DENOISING, 4),
        (Stage.DENOISING, 9),
        (Stage.DECODING, 20),
        (Stage.DONE, 20),
    ]
    assert [each.previews for each in told if isinstance(each, Progress)] == [(), (), (b"small 1", b"small 2"), (), ()]
    assert isinstance(last, Generation)
    assert server.asked[0].inputs["preview_every"] == 5
    assert server.broken_off == []


def test_what_travels_as_base64_is_decoded(server: FakeServer) -> None:
    server.base64 = True
    answer = event("done", 20, image=["cGljdHVyZQ=="], seeds=[1], parameters=['{"prompt": "x", "seed": 1}'])
    server.attempts = [[event(preview=["cHJldmlldw=="]), answer]]
    progress, _, generation = stream()
    assert isinstance(progress, Progress)
    assert isinstance(generation, Generation)
    assert progress.previews == (b"preview",)
    assert generation.files == (b"picture",)
    assert server.asked[0].inputs["base64"] is True


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        event() | {"stage": [b"napping"]},
        event() | {"step": ["many"]},
        event() | {"step": []},
        event() | {"step": [float("inf")]},
        event("done", 20),
        event("done", 20, image=[b"x"], seeds=[1], parameters=[b"{"]),
        event("done", 20, image=[b"x"], seeds=[1], parameters=[b"[" * 100_000]),
        event("done", 20, image=[b"x"], seeds=[1], parameters=[b'{"prompt": "x", "from_the_future": 1}']),
        event(job_id="two") | {"job_id": [b"one", b"two"]},
    ],
)
def test_an_answer_that_makes_no_sense_is_a_fault_of_the_server(nonsense: Any, server: FakeServer) -> None:
    server.attempts = [[nonsense]]
    with pytest.raises(ServerFault, match="grpc://localhost:8001: an answer of the server makes no sense"):
        generate()


def test_pictures_that_are_here_are_not_lost_to_what_comes_after_them(server: FakeServer) -> None:
    for ending in (LOST, FOREVER, event()):
        server.attempts = [["pictures", ending]]
        assert generate().files


# --- trying again


def test_a_busy_server_is_tried_again_after_the_time_it_named(server: FakeServer) -> None:
    server.attempts = [[BUSY], [BUSY], ["pictures"]]
    assert generate().files
    first, second, third = (asked.at for asked in server.asked)
    assert second - first >= BUSY.retry_after
    assert third - second >= BUSY.retry_after


@pytest.mark.parametrize("before", [[], [event("queued")], [event(step=12)]])
def test_a_lost_connection_is_tried_again_by_generate_at_any_time(before: list[Any], server: FakeServer) -> None:
    server.attempts = [[*before, LOST], [*before, LOST], [event(), "pictures"]]
    assert generate().files
    assert len(server.asked) == 3


def test_every_attempt_makes_the_same_pictures(server: FakeServer) -> None:
    server.attempts = [[LOST], [event(), LOST], ["pictures"]]
    generation = generate()
    assert len({asked.inputs["seed"] for asked in server.asked}) == 1
    assert generation.seeds == (server.asked[0].inputs["seed"],)
    assert generate().seeds != generation.seeds, "but the next generation is another one"


def test_a_stream_is_tried_again_only_before_it_has_told_of_anything(server: FakeServer) -> None:
    server.attempts = [[BUSY], [LOST], [event(), "pictures"]]
    assert len(stream()) == 3
    server.attempts = [[event(), LOST]]
    with pytest.raises(Unavailable):
        stream()
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    "error", [REFUSED, ID_TAKEN, DeadlineExceeded("late"), Cancelled("by somebody"), UnknownJob("?"), ServerFault("!")]
)
def test_other_errors_are_not_tried_again(error: Exception, server: FakeServer) -> None:
    server.attempts = [[error]]
    with pytest.raises(type(error)):
        generate()
    assert len(server.asked) == 1


@pytest.mark.parametrize("error", [BUSY, LOST])
def test_without_patience_there_is_one_attempt(error: Exception, server: FakeServer) -> None:
    server.attempts = [[error]]
    with pytest.raises(type(error)):
        generate(client={"patience": 0})
    assert len(server.asked) == 1


def test_when_patience_ends_the_servers_last_answer_is_raised(server: FakeServer, clock: Clock) -> None:
    server.attempts = [[BUSY]] * 1000
    began = clock.now
    with pytest.raises(Busy) as caught:
        generate(client={"patience": 0.2})
    assert clock.now - began == pytest.approx(0.2)
    assert (caught.value.retry_after, caught.value.in_flight, caught.value.limit) == (0.02, 4, 4)
    assert 8 <= len(server.asked) <= 12


def test_patience_lasts_from_the_loss_of_what_was_under_way(server: FakeServer) -> None:
    server.attempts = [[event(), 0.3, LOST], ["pictures"]]
    assert generate(client={"patience": 0.1}).files, "0.3 s of work were no waiting"
    server.attempts = [[event(), 0.1, LOST]] * 100
    with pytest.raises(Unavailable):
        generate(client={"patience": 0.15})
    assert len(server.asked) == 2 + 3, "a generation that is lost again and again is given up"


def test_the_name_of_a_lost_attempt_may_be_taken_for_a_while(server: FakeServer) -> None:
    server.attempts = [[LOST], [ID_TAKEN], [ID_TAKEN], ["pictures"]]
    assert generate(job_id="mine").files
    assert [asked.request_id for asked in server.asked] == ["mine"] * 4


def test_the_server_names_a_generation_that_the_caller_has_not_named(server: FakeServer) -> None:
    generate()
    assert server.asked[0].request_id == ""


@given(failures=st.integers(1, 10_000), retry_after=st.floats(0, 1000))
def test_waits_grow_and_are_never_shorter_than_the_server_asked(failures: int, retry_after: float) -> None:
    for error in (Busy("full", retry_after=retry_after), LOST):
        asked = retry_after if isinstance(error, Busy) else 0.0
        wait = _attempts._wait(error, failures)
        least = max(asked, min(0.1 * 2 ** min(failures - 1, 20), 5.0))
        assert least <= wait <= 1.5 * least


# --- timeouts


def test_the_timeout_is_sent_to_the_server_less_what_earlier_attempts_took(server: FakeServer) -> None:
    server.attempts = [[0.1, BUSY], ["pictures"]]
    generate(timeout=5)
    first, second = (asked.timeout for asked in server.asked)
    assert first == pytest.approx(5)
    assert second == pytest.approx(4.875, abs=0.006)
    generate()
    assert server.asked[-1].timeout is None
    generate(client={"timeout": 7})
    assert server.asked[-1].timeout == pytest.approx(7)
    generate(timeout=3, client={"timeout": 7})
    assert server.asked[-1].timeout == pytest.approx(3)


def test_a_timeout_that_the_server_keeps_is_its_answer(server: FakeServer) -> None:
    server.attempts = [[event(), 0.15, DeadlineExceeded("the server says so")]]
    with pytest.raises(DeadlineExceeded, match="the server says so"):
        generate(timeout=0.1)


@pytest.mark.parametrize("before", [[], [event()]])
def test_a_timeout_that_the_server_does_not_keep_is_kept_by_the_client(
    before: list[Any], server: FakeServer, clock: Clock
) -> None:
    server.attempts = [[*before, FOREVER]]
    began = clock.now
    with pytest.raises(DeadlineExceeded, match=r"the timeout of 0.1 s passed"):
        generate(timeout=0.1)
    assert clock.now - began == pytest.approx(0.1 + _async_client._GRACE_S)
    assert server.broken_off == ["a cat"]


def test_events_do_not_put_a_timeout_off(server: FakeServer) -> None:
    ticks = itertools.chain.from_iterable((0.02, event(step=i)) for i in range(100))
    server.attempts = [list(ticks)]
    with pytest.raises(DeadlineExceeded):
        generate(timeout=0.1)


def test_a_timeout_ends_the_waiting_for_a_busy_server(server: FakeServer, clock: Clock) -> None:
    server.attempts = [[Busy("full", retry_after=60)]] * 10
    began = clock.now
    with pytest.raises(DeadlineExceeded):
        generate(timeout=0.2)
    assert clock.now - began == pytest.approx(0.2)


def test_a_timeout_is_also_a_timeout_error(server: FakeServer) -> None:
    server.attempts = [[FOREVER]]
    with pytest.raises(TimeoutError):
        generate(timeout=0.05)


def test_silence_means_that_the_connection_is_lost(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_async_client, "_SILENCE_S", 0.1)
    server.attempts = [[event(), FOREVER]]
    with pytest.raises(Unavailable, match=r"grpc://localhost:8001: said nothing for 0\.1 s"):
        stream()
    assert server.broken_off == ["a cat"]
    server.attempts = [[0.07, event(), 0.07, event(), 0.07, "pictures"]]
    assert stream()


def test_a_stream_that_ends_without_pictures_was_lost(server: FakeServer) -> None:
    server.attempts = [[event()], ["pictures"]]
    assert generate().files
    server.attempts = [[event()]]
    with pytest.raises(Unavailable, match="ended before the pictures came"):
        stream()


# --- breaking off


def test_a_cancelled_task_breaks_its_stream_off(server: FakeServer) -> None:
    server.attempts = [[event(), FOREVER]]

    async def use(client: AsyncClient) -> None:
        task = asyncio.create_task(client.generate("a cat"))
        await asyncio.sleep(0.05)
        assert server.in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.broken_off == ["a cat"]

    run(use)


def test_a_task_that_is_cancelled_while_it_waits_for_a_busy_server_is_gone(server: FakeServer) -> None:
    server.attempts = [[Busy("full", retry_after=60)]]

    async def use(client: AsyncClient) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.generate("a cat"), 0.05)
        await asyncio.sleep(0.05)

    run(use)
    assert len(server.asked) == 1


def test_leaving_a_stream_early_breaks_it_off(server: FakeServer) -> None:
    server.attempts = [[event(), event(step=1), FOREVER]] * 2

    async def close(client: AsyncClient) -> None:
        async with aclosing(client.stream("a cat")) as events:
            async for _ in events:
                break
        assert server.broken_off == ["a cat"]

    async def forget(client: AsyncClient) -> None:
        async for _ in client.stream("a dog"):
            break
        await asyncio.sleep(0.05)
        assert server.broken_off == ["a cat", "a dog"]

    run(close)
    run(forget)


def test_a_stream_may_be_read_by_one_task_after_another(server: FakeServer) -> None:
    server.attempts = [[event(), 0.02, event(step=1), 0.02, "pictures"]]

    async def use(client: AsyncClient) -> list[Any]:
        events = client.stream("a cat", timeout=10)
        return [await asyncio.create_task(anext_of(events)) for _ in range(4)]

    async def anext_of(events: AsyncIterator[Any]) -> Any:
        return await anext(events)

    assert isinstance(run(use)[-1], Generation)


# --- jobs in the background


def test_a_job_tells_of_its_progress_and_gives_its_result(server: FakeServer) -> None:
    server.attempts = [[0.03, event(step=3), 0.1, "pictures"]]

    async def use(client: AsyncClient) -> None:
        job = client.submit("a cat", preview_every=3)
        assert (job.progress(), job.done()) == (None, False)
        await asyncio.sleep(0.08)
        progress = job.progress()
        assert progress is not None
        assert (progress.step, job.done()) == (3, False)
        with pytest.raises(TimeoutError, match="goes on"):
            await job.result(timeout=0.01)
        assert (await job.result()).files == (await job.result(timeout=1)).files
        assert job.done()
        assert job.progress().stage is Stage.DONE  # type: ignore[union-attr]
        await job.cancel()
        assert (await job.result()).files, "what has ended cannot be cancelled"

    run(use)
    assert server.asked[0].inputs["preview_every"] == 3


def test_a_job_keeps_its_name_through_all_attempts(server: FakeServer) -> None:
    server.attempts = [[BUSY], [BUSY], ["pictures"]]

    async def use(client: AsyncClient) -> str:
        job = client.submit("a cat")
        await job.result()
        other = client.submit("a cat", job_id="mine")
        assert other.id == "mine"
        assert (await other.result()).files
        return job.id

    job_id = run(use)
    assert [asked.request_id for asked in server.asked] == [job_id] * 3 + ["mine"]
    assert len(job_id) > 20


def test_a_cancelled_job_breaks_its_stream_off_and_has_no_result(server: FakeServer) -> None:
    server.attempts = [[event(), FOREVER]]

    async def use(client: AsyncClient) -> None:
        job = client.submit("a cat")
        await asyncio.sleep(0.05)
        await job.cancel()
        assert job.done()
        assert server.broken_off == ["a cat"]
        with pytest.raises(Cancelled):
            await job.result()

    run(use)


def test_whoever_waits_for_a_job_may_be_cancelled_without_it(server: FakeServer) -> None:
    server.attempts = [[0.1, "pictures"]]

    async def use(client: AsyncClient) -> None:
        job = client.submit("a cat")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job.result(), 0.02)
        assert (await job.result()).files

    run(use)


def test_the_failure_of_a_job_is_its_result(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.attempts = [[ServerFault("the denoiser failed")]] * 2

    async def use(client: AsyncClient) -> None:
        job = client.submit("a cat")
        with pytest.raises(ServerFault, match="the denoiser failed"):
            await job.result()
        client.submit("nobody asks for the result of this one")
        await asyncio.sleep(0.02)

    run(use)
    assert caplog.text == ""


def test_closing_a_client_cancels_its_jobs(server: FakeServer) -> None:
    server.attempts = [[event(), FOREVER]]

    async def use() -> None:
        client = AsyncClient()
        job = client.submit("a cat")
        await asyncio.sleep(0.02)
        await client.close()
        await client.close()
        assert (job.done(), server.broken_off, server.closed) == (True, ["a cat"], True)
        with pytest.raises(Cancelled):
            await job.result()
        with pytest.raises(RuntimeError, match="closed"):
            await client.generate("a cat")

    asyncio.run(use())


@pytest.mark.parametrize("meanwhile", [asyncio.CancelledError(), LOST, BUSY], ids=["gRPC", "HTTP", "busy"])
def test_what_is_under_way_when_a_client_is_closed_ends_as_cancelled(
    meanwhile: BaseException, server: FakeServer
) -> None:
    """The task of the caller is not: nobody has cancelled that."""
    gate = threading.Event()
    server.attempts = [[gate, meanwhile]]

    async def use() -> None:
        client = AsyncClient()
        generation = asyncio.create_task(client.generate("a cat"))
        while not server.asked:
            await asyncio.sleep(0.01)
        await client.close()
        gate.set()
        with pytest.raises(Cancelled, match="the client was closed"):
            await generation
        assert len(server.asked) == 1

    asyncio.run(use())


def test_closing_a_client_ends_the_waiting_for_a_busy_server(server: FakeServer) -> None:
    server.attempts = [[Busy("come back in 50 s", retry_after=50.0)]]

    async def use() -> None:
        client = AsyncClient()
        generation = asyncio.create_task(client.generate("a cat"))
        while not server.asked:
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(Cancelled, match="the client was closed"):
            await generation

    asyncio.run(use())


# --- many


def many(*prompts: Any, **arguments: Any) -> list[Generation]:
    async def collect(client: AsyncClient) -> list[Generation]:
        return [each async for each in client.generate_many(prompts, **arguments)]

    generations = run(collect)
    assert isinstance(generations, list)
    return generations


def test_many_come_in_the_order_of_their_prompts(server: FakeServer) -> None:
    server.slow = {"a": 0.1, "b": 0.0, "c": 0.05}
    assert [each.parameters.prompt for each in many("a", "b", "c", "d")] == ["a", "b", "c", "d"]


@settings(max_examples=25)
@given(
    delays=st.lists(st.integers(0, 3), max_size=12),
    concurrency=st.integers(1, 5),
)
def test_many_are_all_made_in_order_and_never_more_at_once_than_allowed(delays: list[int], concurrency: int) -> None:
    server = FakeServer(slow={str(i): delay * 0.002 for i, delay in enumerate(delays)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_async_client, "connect", lambda address: server)
        made = many(*map(str, range(len(delays))), concurrency=concurrency)
    assert [each.parameters.prompt for each in made] == list(map(str, range(len(delays))))
    assert server.most_in_flight == min(concurrency, len(delays))


def test_a_slow_one_holds_nobody_up(server: FakeServer, clock: Clock) -> None:
    server.slow = {"slow": 0.3, **{str(i): 0.02 for i in range(20)}}
    began = clock.now
    assert len(many("slow", *map(str, range(20)), concurrency=3)) == 21
    assert clock.now - began == pytest.approx(0.3)
    assert server.most_in_flight == 3


def test_common_parameters_give_way_to_those_of_a_prompt(server: FakeServer) -> None:
    made = many("a", {"prompt": "b", "seed": 5}, seed=1, samples=2)
    assert [(each.parameters.prompt, each.seeds) for each in made] == [("a", (1, 2)), ("b", (5, 6))]


def test_the_first_failure_among_many_is_raised_at_once_and_cancels_the_rest(server: FakeServer, clock: Clock) -> None:
    server.slow = dict.fromkeys("abcdefgh", 5.0) | {"d": 0.05}
    server.failing = {"d": ServerFault("the denoiser failed")}
    began = clock.now
    with pytest.raises(ServerFault, match="the denoiser failed") as caught:
        many(*"abcdefgh", concurrency=5)
    assert caught.value.__notes__ == ["prompt 4"]
    assert clock.now - began == pytest.approx(0.05)
    assert sorted(server.broken_off) == ["a", "b", "c", "e"]
    assert server.in_flight == 0


def test_a_wrong_parameter_among_many_cancels_the_rest(server: FakeServer) -> None:
    server.slow = {"a": 5.0}
    with pytest.raises(InvalidParameter, match=r"^samples: "):
        many("a", {"prompt": "b", "samples": 9})
    with pytest.raises(InvalidParameter, match=r"^prompt: is required"):
        many({"seed": 1})
    assert server.in_flight == 0


def test_leaving_many_early_cancels_the_rest_and_reads_no_more_prompts(server: FakeServer) -> None:
    server.slow = {str(i): 5.0 for i in range(1, 100)}
    read = []

    def prompts() -> Iterator[str]:
        for i in range(100):
            read.append(i)
            yield str(i)

    async def use(client: AsyncClient) -> None:
        async with aclosing(client.generate_many(prompts(), concurrency=3)) as generations:
            async for generation in generations:
                assert generation.parameters.prompt == "0"
                break
        assert server.in_flight == 0

    run(use)
    assert read == [0, 1, 2]


@pytest.mark.parametrize("concurrency", [0, -1])
def test_at_least_one_at_a_time(concurrency: int, server: FakeServer) -> None:
    with pytest.raises(ValueError, match=r"^concurrency: "):
        many("a", concurrency=concurrency)


def test_none_at_all_are_none(server: FakeServer) -> None:
    assert many() == []


# --- the job board


def test_the_board_is_read(server: FakeServer) -> None:
    server.answer = {
        "job_id": [b"one", b"two"],
        "stage": [b"denoising", b"cancelling"],
        "step": [3, 0],
        "steps": [20, 50],
        "seconds": [1.5, 0.0],
        "seconds_left": [8.5, -1.0],
        "max_in_flight": [32],
    }
    statuses = [
        JobStatus("one", Stage.DENOISING, 3, 20, 1.5, 8.5),
        JobStatus("two", Stage.CANCELLING, 0, 50, 0.0, None),
    ]
    assert run(lambda client: client.jobs()) == statuses
    assert run(lambda client: client.status()) == ServerStatus(True, "2.51.0", 2, 32, tuple(statuses))
    with pytest.raises(ServerFault, match="told of 2 jobs"):
        run(lambda client: client.job("one"))
    assert [call for call in server.calls if call[1]["action"] != "list"] == [
        ("jobs", {"action": "status", "job_id": "one"})
    ]


@pytest.mark.parametrize("job_id", ["é", "\udcff"])
def test_no_server_is_asked_for_a_job_that_cannot_be(job_id: str, server: FakeServer) -> None:
    for ask in (AsyncClient.job, AsyncClient.cancel):
        with pytest.raises(UnknownJob) as caught:
            run(lambda client, ask=ask: ask(client, job_id))
        assert caught.value.job_id == job_id
    assert server.calls == []


def test_a_job_that_nobody_knows_is_named_by_the_error(server: FakeServer) -> None:
    for ask in (AsyncClient.job, AsyncClient.cancel):
        server.answer = UnknownJob("no generation in flight has this id")
        with pytest.raises(UnknownJob) as caught:
            run(lambda client, ask=ask: ask(client, "gone"))
        assert caught.value.job_id == "gone"


def test_a_server_that_is_not_ready_is_not_asked_for_its_jobs(server: FakeServer) -> None:
    server.ready = False
    server.answer = event()
    assert run(lambda client: client.status()) == ServerStatus(False, "2.51.0", 0, 0, ())
    assert server.calls == []


def test_the_board_is_asked_once_and_not_for_ever(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = LOST
    with pytest.raises(Unavailable, match="lost"):
        run(lambda client: client.jobs())
    with pytest.raises(Unavailable, match="lost"):
        run(lambda client: client.status())
    server.answer = None
    monkeypatch.setattr(_async_client, "_ANSWER_S", 0.05)
    with pytest.raises(Unavailable, match=r"grpc://localhost:8001: no answer for 0\.05 s"):
        run(lambda client: client.jobs())
    assert len(server.calls) == 2


# --- settings


@pytest.mark.parametrize("patience", [-1, float("nan")])
def test_patience_is_a_number_of_seconds(patience: float) -> None:
    with pytest.raises(ValueError, match=r"^patience: "):
        AsyncClient(patience=patience)


def test_a_client_may_be_made_before_there_is_an_event_loop(server: FakeServer) -> None:
    client = AsyncClient()

    async def use() -> Generation:
        async with client:
            return await client.generate("a cat")

    assert asyncio.run(use()).files
