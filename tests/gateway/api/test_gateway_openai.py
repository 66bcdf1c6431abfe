"""OpenAI's dialect, with the package ``openai`` as it comes from PyPI."""

from __future__ import annotations

import io
from typing import Any

import openai
import pytest
import requests
from fake_triton import decoded, picture, preview
from PIL import Image
from running_gateway import SLUG, RunningGateway

from tiny_sd_client import Busy, ServerFault

PROMPT = "a small red circle"
PATH = "/v1/images/generations"


@pytest.fixture
def client(gateway: RunningGateway) -> openai.OpenAI:
    return openai.OpenAI(api_key=gateway.key, base_url=f"{gateway.url}/v1", max_retries=0)


def test_generate(client: openai.OpenAI, gateway: RunningGateway) -> None:
    answer = client.images.generate(model=SLUG, prompt=PROMPT, n=2, size="768x512", extra_body={"seed": 7})
    assert [decoded(image.b64_json or "") for image in answer.data or []] == [picture(PROMPT, 7), picture(PROMPT, 8)]
    assert (answer.size, answer.output_format, answer.background) == ("768x512", "png", "opaque")
    asked = gateway.triton.asked[0].parameters
    assert (asked.img_width, asked.img_height, asked.samples, asked.image_format) == (768, 512, 2, "png")
    assert gateway.balance() == 97_000


def test_what_is_left_out_gets_its_default(client: openai.OpenAI, gateway: RunningGateway) -> None:
    client.images.generate(prompt=PROMPT, size="auto", quality="high", user="me")
    asked = gateway.triton.asked[0].parameters
    assert (asked.img_width, asked.img_height, asked.samples, asked.num_inference_steps) == (512, 512, 1, 20)


def test_the_documented_parameters_are_fields_too(client: openai.OpenAI, gateway: RunningGateway) -> None:
    documented = {"num_inference_steps": 40, "scheduler": "euler_a", "negative_prompt": "blue", "img_width": 1024}
    raw = client.images.with_raw_response.generate(
        prompt=PROMPT, extra_body={**documented, "strength": 1}, style="vivid"
    )
    assert set(raw.headers["x-ignored-parameters"].split(", ")) == {"strength", "style"}
    asked = gateway.triton.asked[0].parameters
    assert (asked.num_inference_steps, asked.scheduler, asked.negative_prompt) == (40, "Euler a", "blue")
    assert (asked.img_width, asked.img_height) == (1024, 512)


def test_pictures_may_come_as_urls(client: openai.OpenAI, gateway: RunningGateway) -> None:
    answer = client.images.generate(
        prompt=PROMPT, n=2, response_format="url", output_format="webp", extra_body={"seed": 7}
    )
    files = [requests.get(image.url or "", timeout=60) for image in answer.data or []]
    assert [file.content for file in files] == [picture(PROMPT, 7), picture(PROMPT, 8)]
    assert {file.headers["content-type"] for file in files} == {"image/webp"}


def test_a_stream_has_partial_images_and_then_the_picture(client: openai.OpenAI, gateway: RunningGateway) -> None:
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 7})
    events = list(stream)
    assert [type(event).__name__ for event in events] == ["ImageGenPartialImageEvent"] * 2 + ["ImageGenCompletedEvent"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert decoded(events[0].b64_json) == preview()
    assert Image.open(io.BytesIO(decoded(events[0].b64_json))).format == "JPEG"
    assert events[0].output_format == "jpeg"
    assert decoded(events[-1].b64_json) == picture(PROMPT, 7)
    assert (events[-1].output_format, events[-1].size) == ("png", "512x512")
    assert gateway.triton.asked[0].preview_every == 7
    assert gateway.balance() == 99_000


def test_a_stream_without_partial_images_has_the_pictures_alone(client: openai.OpenAI, gateway: RunningGateway) -> None:
    stream = client.images.generate(prompt=PROMPT, stream=True, n=2, extra_body={"seed": 7})
    assert [decoded(event.b64_json) for event in stream] == [picture(PROMPT, 7), picture(PROMPT, 8)]
    assert gateway.triton.asked[0].preview_every == 0


def test_leaving_a_stream_cancels_and_refunds(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.triton.held.add(PROMPT)
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=3)
    next(iter(stream))
    stream.close()
    gateway.triton.wait_for_in_flight(0)
    assert gateway.triton.broken_off
    client.close()


def test_a_failure_within_a_stream_is_raised(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.triton.midway.append(ServerFault("secret-host broke"))
    with pytest.raises(openai.APIError, match="internal error"):
        list(client.images.generate(prompt=PROMPT, stream=True, partial_images=1))
    assert gateway.balance() == 100_000


def test_a_failure_before_a_stream_has_its_status(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.triton.at_start.append(Busy("32 of 32 generations are in flight", retry_after=3))
    with pytest.raises(openai.RateLimitError) as refused:
        client.images.generate(prompt=PROMPT, stream=True)
    assert refused.value.response.headers["retry-after"] == "3"


def test_a_busy_server_is_tried_again_by_the_package(gateway: RunningGateway) -> None:
    patient = openai.OpenAI(api_key=gateway.key, base_url=f"{gateway.url}/v1", max_retries=2)
    gateway.triton.at_start.append(Busy("32 of 32 generations are in flight", retry_after=0.5))
    assert patient.images.generate(prompt=PROMPT).data


@pytest.mark.parametrize(
    ("values", "parameter", "problem"),
    [
        ({"n": 5}, "n", "got 5; allowed: an integer from 1 to 4"),
        ({"n": "many"}, "n", "got 'many'; allowed: an integer from 1 to 4"),
        ({"size": "640x512"}, "size", "got '640x512'; allowed: auto, or WIDTHxHEIGHT with each of 512, 768, 1024"),
        ({"size": 512}, "size", "got 512; allowed: auto, or WIDTHxHEIGHT with each of 512, 768, 1024"),
        ({"output_format": "gif"}, "output_format", "got 'gif'; allowed: jpeg, png, webp"),
        ({"response_format": "file"}, "response_format", "got 'file'; allowed: b64_json, url"),
        ({"background": "transparent"}, "background", "got 'transparent'; allowed: opaque, auto"),
        ({"partial_images": 4}, "partial_images", "got 4; allowed: an integer from 0 to 3"),
        ({"stream": "perhaps"}, "stream", "got 'perhaps'; allowed: true or false"),
        ({"num_inference_steps": 5}, "num_inference_steps", "got 5; allowed: an integer from 20 to 100"),
        ({"prompt": ""}, "prompt", "got ''; allowed: text with a visible character"),
    ],
)
def test_wrong_values_are_refused_in_openais_shape(
    gateway: RunningGateway, values: dict[str, Any], parameter: str, problem: str
) -> None:
    answer = gateway.post(PATH, json={"prompt": PROMPT, **values})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, parameter, "invalid_request_error")
    assert error["message"].startswith(f"{parameter}: {problem}")
    assert gateway.balance() == 100_000


def test_every_refusal_is_one_of_the_packages_exceptions(client: openai.OpenAI, gateway: RunningGateway) -> None:
    def refused(kind: type[openai.APIStatusError], by: openai.OpenAI = client, **more: Any) -> Any:
        with pytest.raises(kind) as error:
            by.images.generate(prompt=PROMPT, **more)
        return error.value

    stranger = openai.OpenAI(api_key="sk-unknown", base_url=f"{gateway.url}/v1", max_retries=0)
    poor = openai.OpenAI(api_key=gateway.new_key(0.5), base_url=f"{gateway.url}/v1", max_retries=2)
    assert refused(openai.AuthenticationError, stranger).code == "invalid_api_key"
    assert refused(openai.RateLimitError, poor).code == "insufficient_quota"
    assert refused(openai.NotFoundError, model="dall-e-3").code == "model_not_found"
    gateway.triton.at_start.append(ServerFault("secret-host broke"))
    broken = refused(openai.InternalServerError)
    assert "secret-host" not in str(broken)
    assert broken.response.headers["x-request-id"] in broken.message


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [SLUG]
    assert client.models.retrieve(SLUG).owned_by == "tiny-sd"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


def test_an_idempotency_key_holds_here_too(client: openai.OpenAI, gateway: RunningGateway) -> None:
    same = {"extra_headers": {"idempotency-key": "mine"}}
    first, second = (client.images.generate(prompt=PROMPT, **same) for _ in range(2))
    assert first == second
    with pytest.raises(openai.ConflictError):
        client.images.generate(prompt=PROMPT, response_format="url", **same)
    assert gateway.balance() == 99_000
    with pytest.raises(openai.BadRequestError, match="none for streams"):
        client.images.generate(prompt=PROMPT, stream=True, **same)
