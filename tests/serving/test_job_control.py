"""Job control on the server: progress, previews, admission, and every way to stop a generation."""

from __future__ import annotations

import base64
import io
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from callers import (
    Answer,
    change_of,
    grpc,
    grpc_stream,
    http_generate,
    http_stream,
    job_ids,
    jobs,
    metrics,
    tensor,
)
from PIL import Image
from serving_server import SMALL_SIZES, serve
from tritonclient.utils import InferenceServerException

from local_server import LocalServer
from tiny_sd_client import Busy, Client

LIMIT = 16
SMALL = {"img_width": 128, "img_height": 128}
LONG: dict[str, Any] = {"prompt": "a long walk", "num_inference_steps": 100, "scheduler": "Heun", "samples": 4}
"""At the default size it takes far longer than anything that these tests do to it."""
EVALUATIONS = 4 * 199
STEPS = "tiny_sd_unet_steps_total:unet"


@pytest.fixture(scope="module")
def server(painting_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Small pictures, time slices of a single U-Net call, and room for 16 generations."""
    environment = {**SMALL_SIZES, "TINY_SD_QUANTUM_MS": "1", "TINY_SD_MAX_IN_FLIGHT": str(LIMIT)}
    with serve(painting_checkpoint, tmp_path_factory.mktemp("jobs") / "log", environment) as server:
        yield server


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether the condition comes true; the time is only for not waiting forever."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def idle(server: LocalServer) -> bool:
    return not job_ids(server.http_url) and metrics(server.metrics_url)["tiny_sd_jobs_in_flight:unet"] == 0


def status(server: LocalServer, id: str) -> dict[str, Any]:
    body: dict[str, Any] = jobs(server.http_url, action="status", job_id=id).json()
    return body


def denoising(server: LocalServer, id: str) -> bool:
    return status(server, id).get("step", 0) > 0


@contextmanager
def in_flight(server: LocalServer, id: str, **parameters: object) -> Iterator[Any]:
    """A unary generation that the U-Net works on when the block begins; yields its future."""

    def call() -> Answer:
        with triton.InferenceServerClient(server.grpc_url) as client:
            inputs = [tensor(triton, name, value) for name, value in {**LONG, **parameters}.items()]
            client.infer("tiny_sd", inputs, request_id=id)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        assert eventually(lambda: denoising(server, id))
        yield future


def streams(server: LocalServer) -> dict[str, Callable[..., Iterator[dict[str, Any]]]]:
    return {
        "grpc": lambda **parameters: grpc_stream(server.grpc_url, **parameters),
        "http": lambda **parameters: http_stream(server.http_url, **parameters),
    }


def correlation(preview: bytes, picture: bytes) -> float:
    """Of the pixels, around the mean of each colour, which all pictures of a checkpoint share."""
    small = Image.open(io.BytesIO(preview)).convert("RGB")
    shrunk = Image.open(io.BytesIO(picture)).convert("RGB").resize(small.size, Image.Resampling.BOX)
    both = [np.asarray(image, float) for image in (small, shrunk)]
    return float(np.corrcoef([(each - each.mean((0, 1))).ravel() for each in both])[0, 1])


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize("scheduler", ["UniPC", "Heun", "PNDM"])
def test_progress_never_falls_and_ends_at_the_last_step(server: LocalServer, transport: str, scheduler: str) -> None:
    wanted = {"prompt": "a red circle", "seed": 5, "num_inference_steps": 40, "scheduler": scheduler, "samples": 2}
    *events, last = streams(server)[transport](id=f"mine-{scheduler}", **wanted)
    steps = [event["step"] for event in events]
    assert steps == sorted(steps)
    assert len(set(steps)) > 5, "hardly any progress was seen"
    assert all(event["steps"] == 40 for event in [*events, last])
    seconds = [event["seconds"] for event in [*events, last]]
    assert seconds == sorted(seconds)
    order = ["queued", "denoising", "decoding", "done"]
    stages = [text(event["stage"]) for event in [*events, last]]
    assert stages == sorted(stages, key=order.index)
    assert "denoising" in stages
    assert (stages[-1], last["step"], last["seconds_left"]) == ("done", 40, 0.0)
    assert {text(event["job_id"]) for event in [*events, last]} == {f"mine-{scheduler}"}
    images = [base64.b64decode(image) for image in last["image"]]
    assert images == grpc(server.grpc_url, **wanted).images, "the same pictures as without a stream"


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def test_the_estimate_of_the_time_left_counts_down(server: LocalServer) -> None:
    events = list(grpc_stream(server.grpc_url, **{**LONG, "samples": 2}))
    left = [event["seconds_left"] for event in events if event["step"] and text(event["stage"]) == "denoising"]
    middle = events[len(events) // 2]
    actual = events[-1]["seconds"] - middle["seconds"]
    assert actual / 3 < middle["seconds_left"] < actual * 3
    assert left[-1] < left[0] / 3


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_previews_look_like_the_picture_and_like_no_other(server: LocalServer, transport: str) -> None:
    size = {"img_width": 512, "img_height": 512, "prompt": "a red circle", "num_inference_steps": 60, "samples": 2}
    *events, last = streams(server)[transport](seed=5, preview_every=10, image_format="png", **size)
    shown = [(event["step"], event["preview"]) for event in events if "preview" in event]
    assert len(shown) >= 3
    assert all(step // 10 > before // 10 for (before, _), (step, _) in itertools.pairwise(shown))
    finals = [base64.b64decode(image) for image in last["image"]]
    for _, previews in shown:
        files = [base64.b64decode(preview) for preview in previews]
        assert len(files) == 2
        likeness = [[correlation(file, final) for final in finals] for file in files]
        assert min(likeness[0][0], likeness[1][1]) > 0.8, "a preview shows another picture than the final one"
        assert max(likeness[0][1], likeness[1][0]) < 0.3, "the check cannot tell one picture from another"


def test_without_preview_every_there_are_no_previews_and_raw_ones_come_raw(server: LocalServer) -> None:
    wanted = {"prompt": "a red circle", "num_inference_steps": 60, **SMALL}
    assert not any("preview" in event for event in grpc_stream(server.grpc_url, **wanted))
    *_, last = grpc_stream(server.grpc_url, base64=False, **wanted)
    with closing(grpc_stream(server.grpc_url, preview_every=1, base64=False, **LONG)) as events:
        preview = next(event["preview"][0] for event in events if "preview" in event)
    assert all(file.startswith(b"\xff\xd8") for file in (preview, last["image"][0]))
    assert eventually(lambda: idle(server))


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"prompt": ""}, "prompt: got ''"),
        ({"prompt": "a", "samples": 9}, "samples: got 9; allowed: an integer from 1 to 4"),
        ({"prompt": "a", "preview_every": -1}, "preview_every: got -1; allowed: an integer from 0 (none) to 100"),
        ({"prompt": "a", "id": "with spaces"}, "id: got 11 characters; allowed: "),
        ({"prompt": "a", "id": "x" * 129}, "id: got 129 characters; allowed: "),
        ({"seed": 3}, "prompt: is required"),
    ],
)
def test_a_stream_refuses_as_the_ensemble_does(
    server: LocalServer, transport: str, parameters: dict[str, Any], complaint: str
) -> None:
    if transport == "grpc":
        with pytest.raises(InferenceServerException) as caught:
            list(grpc_stream(server.grpc_url, **parameters))
        assert caught.value.message().startswith(complaint)
    else:
        [event] = http_stream(server.http_url, **parameters)
        assert event["error"].startswith(complaint)
    assert job_ids(server.http_url) == []


def test_an_id_is_returned_whether_given_or_not(server: LocalServer) -> None:
    ids = [http_generate(server.http_url, prompt="a", id=id, **SMALL).json()["job_id"] for id in ("../me", "", "")]
    assert ids[0] == "../me"
    assert len(set(ids)) == 3


def test_hostile_ids_are_plain_text_to_the_board(server: LocalServer) -> None:
    for id in ("../../../tmp/evil", "a'; DROP TABLE jobs; --", "%00", "$(reboot)", "~", '"'):
        assert jobs(server.http_url, action="cancel", job_id=id).json()["error"].startswith("unknown_job: ")
        if " " not in id:
            with in_flight(server, id) as call:
                assert job_ids(server.http_url) == [id]
                assert jobs(server.http_url, action="cancel", job_id=id).json()["stage"] == "cancelling"
                with pytest.raises(InferenceServerException, match="cancelled: "):
                    call.result()
    assert jobs(server.http_url).json()["max_in_flight"] == LIMIT


def test_an_id_in_flight_is_refused_and_its_owner_goes_on(server: LocalServer) -> None:
    with in_flight(server, "taken") as call:
        for stream in streams(server).values():
            try:
                [event] = stream(id="taken", prompt="a red circle")
            except InferenceServerException as error:
                event = {"error": error.message()}
            assert event["error"].startswith("id: got 'taken'; allowed: an id that no generation in flight has")
        with triton.InferenceServerClient(server.grpc_url) as client, pytest.raises(InferenceServerException) as caught:
            client.infer("tiny_sd", [tensor(triton, "prompt", "a red circle")], request_id="taken")
        assert caught.value.status() == "StatusCode.ALREADY_EXISTS"
        assert status(server, "taken")["stage"] == "denoising"
        jobs(server.http_url, action="cancel", job_id="taken")
        with pytest.raises(InferenceServerException, match="cancelled: "):
            call.result()


def test_the_board_lists_what_is_in_flight_over_every_transport(server: LocalServer) -> None:
    with in_flight(server, "first") as first, in_flight(server, "second") as second:
        listed = jobs(server.http_url).json()
        assert listed["job_id"] == ["first", "second"]
        assert listed["steps"] == [100, 100]
        assert all(0 < step <= 100 for step in listed["step"])
        assert listed["seconds"][0] > listed["seconds"][1] > 0
        with triton.InferenceServerClient(server.grpc_url) as client:
            answer = client.infer("jobs", [tensor(triton, "action", "cancel"), tensor(triton, "job_id", "first")])
            assert answer.as_numpy("stage")[0].tolist() == [b"cancelling"]
            with pytest.raises(InferenceServerException) as caught:
                client.infer("jobs", [tensor(triton, "action", "status"), tensor(triton, "job_id", "nobody")])
            assert caught.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException, match="cancelled: ") as caught:
            first.result()
        assert caught.value.status() == "StatusCode.CANCELLED"
        assert "action: got 'nonsense'; allowed: list, status, cancel" in jobs(server.http_url, action="nonsense").text
        assert "job_id: is required to cancel" in jobs(server.http_url, action="cancel").text
        assert not second.done()
        jobs(server.http_url, action="cancel", job_id="second")
        assert isinstance(second.exception(), InferenceServerException)
    assert idle(server)


def test_a_job_cancelled_by_its_id_gets_no_further_time_slice(server: LocalServer) -> None:
    with change_of(server.metrics_url) as change, in_flight(server, "me") as call:
        jobs(server.http_url, action="cancel", job_id="me")
        then = metrics(server.metrics_url)[STEPS]
        with pytest.raises(InferenceServerException, match="cancelled: the generation was cancelled"):
            call.result()
        assert idle(server)
        # The call that ran at the moment ends its slice.
        assert metrics(server.metrics_url)[STEPS] <= then + 1
    assert change[STEPS] < EVALUATIONS
    assert change["tiny_sd_jobs_cancelled_total:unet"] == 1


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_a_caller_who_leaves_his_stream_stops_the_job(server: LocalServer, transport: str) -> None:
    with change_of(server.metrics_url) as change:
        stream = streams(server)[transport](id="gone", **LONG)
        next(event for event in stream if event["step"] > 0)
        stream.close()  # type: ignore[attr-defined]
        assert eventually(lambda: idle(server))
    assert change["tiny_sd_jobs_cancelled_total:unet"] == 1
    assert change[STEPS] < EVALUATIONS / 2, "the U-Net went on for a caller who had gone"


def test_a_caller_who_is_gone_before_denoising_begins_costs_no_step(server: LocalServer) -> None:
    with change_of(server.metrics_url) as change, ThreadPoolExecutor(LIMIT) as pool:
        # Keeps the stages busy, so that the job has not got far when its caller leaves.
        others = [pool.submit(grpc, server.grpc_url, prompt=f"other {i}", **SMALL) for i in range(4)]
        stream = grpc_stream(server.grpc_url, **LONG)
        next(stream)
        stream.close()
        assert all(other.result().images for other in others)
        assert eventually(lambda: idle(server))
    assert change[STEPS] < 4 * 20 + EVALUATIONS / 2


def test_the_timeout_of_a_stream_is_kept(server: LocalServer) -> None:
    events = list(http_stream(server.http_url, timeout=300_000, **LONG))
    assert events[-1]["error"].startswith("overdue: ")
    assert idle(server)


def test_jobs_that_get_lost_on_the_way_are_forgotten(server: LocalServer) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        # The first stage alone: it admits the job, and nobody brings it to the next stage.
        client.infer("tokenizer", [tensor(triton, "prompt", "lost")], request_id="lost")
    assert status(server, "lost")["stage"] == "queued"
    assert eventually(lambda: job_ids(server.http_url) == [])


def test_a_full_server_says_so_and_serves_what_it_has_taken_on(server: LocalServer) -> None:
    answers: Counter[str] = Counter()
    busy: list[str] = []

    def call(number: int) -> None:
        try:
            served = grpc(server.grpc_url, prompt=f"caller {number}", seed=number, **SMALL)
            assert served.images
            answers["served"] += 1
        except InferenceServerException as error:
            assert error.status() == "StatusCode.UNAVAILABLE"
            busy.append(error.message())

    with change_of(server.metrics_url) as change, ThreadPoolExecutor(10 * LIMIT) as pool:
        list(pool.map(call, range(10 * LIMIT)))
    assert answers["served"] + len(busy) == 10 * LIMIT
    assert answers["served"] >= LIMIT, "fewer than the server has room for"
    assert busy, "ten times as many callers as there is room for, and none was refused"
    assert all(f"busy: {LIMIT} of {LIMIT} generations are in flight; come back in " in message for message in busy)
    assert change["tiny_sd_jobs_refused_total:tokenizer"] == len(busy)
    assert change.once("nv_inference_count_total:vae_decoder", answers["served"]) == answers["served"]
    assert idle(server)


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_streams_beyond_what_a_full_server_takes_are_refused_at_once(server: LocalServer, transport: str) -> None:
    url = {"grpc": f"grpc://{server.grpc_url}", "http": f"http://{server.http_url}"}[transport]
    with Client(url, patience=0) as client:
        taken = [client.submit(**LONG) for _ in range(LIMIT)]
        assert eventually(lambda: len(job_ids(server.http_url)) == LIMIT)
        beyond = [client.submit(**LONG) for _ in range(LIMIT)]
        for job in beyond:
            with pytest.raises(Busy, match=f"{LIMIT} of {LIMIT} generations are in flight"):
                job.result()
        assert not any(job.done() for job in taken), "those that were taken on go on"
        for job in taken:
            job.cancel()
    assert eventually(lambda: idle(server))


def test_patient_callers_of_a_full_server_are_all_served(server: LocalServer) -> None:
    prompts = [{"prompt": f"caller {number}", "seed": number} for number in range(5 * LIMIT)]
    with change_of(server.metrics_url) as change, Client(f"grpc://{server.grpc_url}", patience=300) as client:
        made = list(client.generate_many(prompts, concurrency=5 * LIMIT, **SMALL))
    assert [generation.seeds for generation in made] == [(number,) for number in range(5 * LIMIT)]
    assert change["tiny_sd_jobs_refused_total:tokenizer"] > 0, "more callers than there is room for"
    assert change.once("nv_inference_count_total:vae_decoder", 5 * LIMIT) == 5 * LIMIT
    assert eventually(lambda: idle(server))


def test_a_full_server_answers_503_over_http(server: LocalServer) -> None:
    with ThreadPoolExecutor(LIMIT) as pool:
        long = [pool.submit(in_flight_call, server, f"long {i}") for i in range(LIMIT)]
        assert eventually(lambda: len(job_ids(server.http_url)) == LIMIT)
        prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": ["one too many"]}
        url = f"http://{server.http_url}/v2/models/tiny_sd/infer"
        response = requests.post(url, json={"inputs": [prompt]}, timeout=60)
        assert response.status_code == 503
        assert "busy: " in response.json()["error"]
        response = http_generate(server.http_url, prompt="one too many")
        assert response.status_code == 400, "this Triton answers every error of a model so on generate"
        assert "busy: " in response.json()["error"]
        for id in job_ids(server.http_url):
            jobs(server.http_url, action="cancel", job_id=id)
        assert all(isinstance(each.exception(), InferenceServerException) for each in long)
    assert idle(server)


def in_flight_call(server: LocalServer, prompt: str) -> Answer:
    return grpc(server.grpc_url, **{**LONG, "prompt": prompt})


def leave_unary_by_id(server: LocalServer, id: str, after_s: float, wanted: dict[str, Any]) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client, ThreadPoolExecutor(1) as pool:
        inputs = [tensor(triton, name, value) for name, value in wanted.items()]
        call = pool.submit(client.infer, "tiny_sd", inputs, request_id=id)
        time.sleep(after_s)
        jobs(server.http_url, action="cancel", job_id=id)
        assert call.exception() is None or "cancelled: " in str(call.exception())


def leave_unary(server: LocalServer, id: str, after_s: float, wanted: dict[str, Any]) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        inputs = [tensor(triton, name, value) for name, value in wanted.items()]
        call = client.async_infer("tiny_sd", inputs, callback=lambda result, error: None, request_id=id)
        time.sleep(after_s)
        call.cancel()


def leave_stream(server: LocalServer, id: str, after_s: float, wanted: dict[str, Any], transport: str) -> None:
    stream = streams(server)[transport](id=id, **wanted)
    end = time.monotonic() + after_s
    for _ in stream:
        if time.monotonic() > end:
            break
    stream.close()  # type: ignore[attr-defined]


WAYS_TO_LEAVE: list[Callable[..., None]] = [
    leave_unary_by_id,
    leave_unary,
    partial(leave_stream, transport="grpc"),
    partial(leave_stream, transport="http"),
]


def memory(server: LocalServer) -> float:
    """Of the server and its stubs, without what they share, in MiB."""
    return sum(process.memory_full_info().uss for process in server.process_tree()) / 2**20


def shared_memory(server: LocalServer) -> int:
    """What the server keeps on tmpfs, in bytes."""
    files = [file for file in Path("/dev/shm").rglob("*") if file.name.startswith(server.shared_memory_prefix)]
    return sum(file.stat().st_size for folder in files for file in [folder, *folder.rglob("*")])


@pytest.mark.parametrize("many", [100, pytest.param(300, marks=pytest.mark.long)])
def test_half_of_many_generations_are_cancelled_and_the_others_do_not_notice(server: LocalServer, many: int) -> None:
    chance = random.Random(4)
    kinds: list[dict[str, Any]] = [
        {"prompt": f"kind {i}", "seed": i, "scheduler": scheduler, **SMALL}
        for i, scheduler in enumerate(["UniPC", "Euler a", "Heun", "DPM2 Karras", "PNDM", "dpmpp_2m"])
    ]
    alone = [grpc(server.grpc_url, **kind).images for kind in kinds]
    # Has patience: those who leave without a word keep their places for some seconds, and may fill the server.
    patient = Client(f"grpc://{server.grpc_url}")

    def generation(number: int) -> None:
        kind = number % len(kinds)
        if number % 2:
            leave = chance.choice(WAYS_TO_LEAVE)
            leave(server, f"left-{number}", chance.uniform(0.0, 0.6), {**kinds[kind], "num_inference_steps": 40})
        else:
            assert list(patient.generate(**kinds[kind]).files) == alone[kind]

    def generations(numbers: range) -> None:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(generation, numbers))
        assert eventually(lambda: idle(server))

    generations(range(60))
    settled, shared = memory(server), shared_memory(server)
    generations(range(60, many))
    patient.close()
    assert shared_memory(server) == shared
    assert memory(server) < 1.02 * settled
