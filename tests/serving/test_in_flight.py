"""Requests are batched in flight: they join, share and leave between two steps, and none changes another's picture."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from callers import Answer, change_of, grpc, http_generate, http_infer, metrics
from tritonclient.utils import InferenceServerException

from local_server import LocalServer
from tiny_sd_client.parameters import Scheduler

SMALL = {"img_width": 128, "img_height": 128}


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether the condition comes true; the time is only for not waiting forever."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def jobs_in_flight(server: LocalServer) -> float:
    return metrics(server.metrics_url)["tiny_sd_jobs_in_flight:unet"]


@contextmanager
def background(server: LocalServer, **parameters: object) -> Iterator[Any]:
    """A generation that the U-Net, which had nothing to do, is at when the block begins; yields its future."""

    def steps() -> float:
        return metrics(server.metrics_url)["tiny_sd_unet_steps_total:unet"]

    with ThreadPoolExecutor(1) as pool:
        before = steps()
        future = pool.submit(grpc, server.grpc_url, **parameters)
        assert eventually(lambda: steps() > before)
        yield future


def test_a_short_request_overtakes_a_long_one_and_shares_its_executions_and_unet_calls(
    batching_server: LocalServer,
) -> None:
    server = batching_server
    long = {"prompt": "a long walk", "num_inference_steps": 100, "scheduler": "Heun", "seed": 1, "samples": 4}
    size = {"img_width": 512, "img_height": 512}
    with change_of(server.metrics_url) as change, background(server, **long, **size) as walk:
        short = grpc(server.grpc_url, prompt="a short one", seed=2, num_inference_steps=20, **size)
        assert not walk.done(), "the short request waited for the long one"
        assert short.images != walk.result().images
    assert change["nv_inference_count_total:unet"] > change["nv_inference_exec_count_total:unet"]
    eight_rows, all_calls = (change[f"tiny_sd_unet_call_rows_bucket:unet:{le}"] for le in ("8", "+Inf"))
    shared = all_calls - eight_rows
    assert shared >= 15, "most of the short request's 20 steps share the long one's U-Net calls"
    assert change["tiny_sd_unet_steps_total:unet"] == 4 * 199 + 20
    assert all_calls == 199 + 20 - shared


def test_all_stages_batch_under_concurrency(batching_server: LocalServer) -> None:
    server = batching_server
    with change_of(server.metrics_url) as change, ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda i: grpc(server.grpc_url, prompt=f"number {i}", seed=i, **SMALL), range(72)))
    for stage in ("tokenizer", "text_encoder", "unet", "vae_decoder"):
        requests, executions = (change[f"nv_inference_{what}_total:{stage}"] for what in ("count", "exec_count"))
        assert requests > executions > 0, f"{stage} never saw two requests at once"
    rows = change["tiny_sd_unet_call_rows_sum:unet"] / change["tiny_sd_unet_call_rows_count:unet"]
    assert rows > 8, "of 16 allowed: requests take turns instead of sharing calls"
    assert jobs_in_flight(server) == 0


def random_request(chance: random.Random) -> dict[str, object]:
    return {
        "prompt": f"picture {chance.random()}" * chance.choice([1, 1, 30]),
        "scheduler": chance.choice(list(Scheduler)).value,
        "num_inference_steps": chance.randint(20, 40),
        "guidance_scale": chance.choice([1.0, 4.0, 7.5]),
        "samples": chance.randint(1, 3),
        "seed": chance.randint(0, 2**40),
        "img_width": chance.choice([512, 768]),
        "img_height": 512,
    }


def test_neighbours_do_not_matter(server: LocalServer) -> None:
    chance = random.Random(5)
    mine = {"prompt": "a red circle", "seed": 77, "scheduler": "Euler a", "samples": 2, "num_inference_steps": 30}
    alone = grpc(server.grpc_url, **mine)
    with ThreadPoolExecutor(8) as pool, change_of(server.metrics_url) as change:
        others = [pool.submit(grpc, server.grpc_url, **random_request(chance)) for _ in range(7)]
        among = pool.submit(grpc, server.grpc_url, **mine).result()
        for other in others:
            assert other.result().images
    assert change["nv_inference_count_total:unet"] > change["nv_inference_exec_count_total:unet"]
    assert among == alone


def test_the_plain_mode_makes_the_same_pictures_batch_by_batch(
    plain_server: LocalServer, batching_server: LocalServer
) -> None:
    mine = {"prompt": "a red circle", "seed": 3, "scheduler": "DDIM", **SMALL}
    with change_of(plain_server.metrics_url) as change, ThreadPoolExecutor(6) as pool:
        assert grpc(plain_server.grpc_url, **mine).seeds == [3]
        plain = list(pool.map(lambda i: grpc(plain_server.grpc_url, **{**mine, "seed": i}), range(12)))
    assert change.once("nv_inference_count_total:unet", 13) == 13, "no request is handed back to Triton"
    assert change["nv_inference_exec_count_total:unet"] < 13
    assert plain == [grpc(batching_server.grpc_url, **{**mine, "seed": i}) for i in range(12)]


def test_an_overdue_request_stops_within_a_time_slice(server: LocalServer) -> None:
    long = {"prompt": "too slow", "num_inference_steps": 100, "scheduler": "Heun", "samples": 4}
    with change_of(server.metrics_url) as change:
        with pytest.raises(InferenceServerException) as caught:
            grpc(server.grpc_url, timeout_us=400_000, **long)
        answered = metrics(server.metrics_url)["tiny_sd_unet_steps_total:unet"]
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert "timeout" in caught.value.message()
        assert jobs_in_flight(server) == 0
        time.sleep(0.5)
        assert metrics(server.metrics_url)["tiny_sd_unet_steps_total:unet"] == answered
    assert change["tiny_sd_jobs_overdue_total:unet"] == 1
    assert change["tiny_sd_unet_steps_total:unet"] < 4 * 199


def test_generate_takes_a_timeout_as_well_and_neighbours_of_an_overdue_request_go_on(server: LocalServer) -> None:
    mine = {"prompt": "a red circle", "seed": 3}
    alone = grpc(server.grpc_url, **mine)
    with background(server, **mine, num_inference_steps=60) as neighbour:
        response = http_generate(server.http_url, prompt="too slow", num_inference_steps=100, timeout=100_000)
        assert response.status_code == 400, "this Triton answers every error of a model so on generate"
        assert "the request's timeout passed" in response.json()["error"]
        with pytest.raises(InferenceServerException, match="the request's timeout passed") as caught:
            http_infer(server.http_url, timeout_us=100_000, prompt="too slow", num_inference_steps=100)
        assert caught.value.status() == "503"
        assert neighbour.result().images
    assert grpc(server.grpc_url, **mine) == alone


def direct_unet_request(steps: int) -> list[Any]:
    """A request to the ``unet`` model itself, on the test checkpoint's shapes."""
    text = np.zeros((1, 77, 48), np.float32)
    arrays = [
        ("prompt_embeds", "FP32", text),
        ("negative_embeds", "FP32", text),
        ("scheduler", "BYTES", np.array([[b"UniPC"]], np.object_)),
        ("num_inference_steps", "INT32", np.array([[steps]], np.int32)),
        ("guidance_scale", "FP32", np.array([[7.5]], np.float32)),
        ("img_width", "INT32", np.array([[256]], np.int32)),
        ("img_height", "INT32", np.array([[256]], np.int32)),
        ("seeds", "INT64", np.array([[1]], np.int64)),
        ("deadline", "FP64", np.array([[0.0]])),
        ("job_id", "BYTES", np.array([[b""]], np.object_)),
        ("preview_every", "INT32", np.array([[0]], np.int32)),
    ]
    inputs = []
    for name, dtype, array in arrays:
        inputs.append(triton.InferInput(name, array.shape, dtype))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def test_jobs_that_triton_drops_are_evicted_and_the_others_finish(batching_server: LocalServer) -> None:
    server = batching_server
    mine: dict[str, object] = {"prompt": "a red circle", "seed": 3, **SMALL}
    alone: Answer = grpc(server.grpc_url, **mine)
    with (
        change_of(server.metrics_url) as change,
        triton.InferenceServerClient(server.grpc_url) as client,
        background(server, prompt="keeps on", num_inference_steps=100, scheduler="Heun", **SMALL) as neighbour,
    ):
        for _ in range(24):
            call = client.async_infer("unet", direct_unet_request(100), callback=lambda result, error: None)
            time.sleep(0.15)
            call.cancel()
        assert neighbour.result().images
        assert grpc(server.grpc_url, **mine) == alone
        assert eventually(lambda: jobs_in_flight(server) == 0)
    assert change["tiny_sd_jobs_evicted_total:unet"] > 0, "Triton told the model of every cancelled request"
