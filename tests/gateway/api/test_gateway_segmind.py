"""The package ``segmind`` as it comes from PyPI, with nothing changed but URL and key."""

from __future__ import annotations

import pytest
import segmind
from fake_triton import decoded, picture
from running_gateway import SLUG, RunningGateway, StartGateway

from tiny_sd_client import InvalidParameter

WANTED = {"prompt": "a small red circle", "seed": 7}


@pytest.fixture
def client(gateway: RunningGateway) -> segmind.SegmindClient:
    return segmind.SegmindClient(api_key=gateway.key, base_url=f"{gateway.url}/v1")


def test_run_sync(client: segmind.SegmindClient) -> None:
    answer = client.run_sync(SLUG, **WANTED, base64=False)
    assert (answer.headers["content-type"], answer.content) == ("image/jpeg", picture(**WANTED))
    assert decoded(client.run_sync(SLUG, **WANTED).json()["image"]) == picture(**WANTED)


def test_run(client: segmind.SegmindClient) -> None:
    result = client.run(SLUG, **WANTED)
    assert result["status"] == "COMPLETED"
    assert result["metrics"]["inference_time"] > 0
    assert client._client.get(result["output"]).content == picture(**WANTED)


def test_submit_async(client: segmind.SegmindClient, gateway: RunningGateway) -> None:
    gateway.triton.held.add(WANTED["prompt"])
    job = client.submit_async(SLUG, **WANTED)
    gateway.triton.wait_for_in_flight(1)
    assert job.status()["status"] == "PROCESSING"
    assert job.result()["status"] == "PROCESSING"
    with pytest.raises(segmind.InferenceTimeout):
        job.wait(timeout=0.1, interval=0.05)
    gateway.triton.let_go(WANTED["prompt"])
    assert job.wait(interval=0.05)["images"][0]["seed"] == 7


def test_a_failure_is_raised_with_its_reason(client: segmind.SegmindClient, gateway: RunningGateway) -> None:
    gateway.triton.at_start.append(InvalidParameter("prompt", "got 1,300 tokens; allowed: at most 1,200"))
    with pytest.raises(segmind.InferenceFailed) as failed:
        client.run(SLUG, **WANTED)
    assert failed.value.detail == "prompt: got 1,300 tokens; allowed: at most 1,200"


def test_a_cancelled_job_ends_the_wait(client: segmind.SegmindClient, gateway: RunningGateway) -> None:
    gateway.triton.held.add(WANTED["prompt"])
    job = client.submit_async(SLUG, **WANTED)
    gateway.post(job.submit_response["cancel_url"])
    with pytest.raises(segmind.InferenceFailed, match="cancelled"):
        job.wait(interval=0.05)


@pytest.mark.parametrize("method", ["run", "run_sync"])
def test_refusals_carry_their_status_and_message(client: segmind.SegmindClient, method: str) -> None:
    with pytest.raises(segmind.SegmindError) as refused:
        getattr(client, method)(SLUG, **WANTED, num_inference_steps=5)
    assert refused.value.status == 422
    assert refused.value.detail == "num_inference_steps: got 5; allowed: an integer from 20 to 100"
    with pytest.raises(segmind.SegmindError) as unknown:
        getattr(client, method)("other-model", **WANTED)
    assert (unknown.value.status, unknown.value.detail) == (404, "no such URL")


def test_a_wrong_key_is_refused(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    stranger = segmind.SegmindClient(api_key="SG_0123456789abcdef", base_url=f"{gateway.url}/v1")
    with pytest.raises(segmind.SegmindError) as refused:
        stranger.run_sync(SLUG, **WANTED)
    assert refused.value.status == 401
