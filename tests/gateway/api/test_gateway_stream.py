"""The page's endpoints: a generation to watch, the parameters there are, those inside a picture, credits, the page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from fake_triton import INFER_S, STEPS_TOLD, decoded, picture, preview
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from running_gateway import SLUG, RunningGateway, StartGateway, wait_until

from tiny_sd_client import Busy, ServerFault, Unavailable
from tiny_sd_client.parameters import Parameters
from tiny_sd_gateway.playground import PAGE

PATH = "/v1/generations/stream"
WANTED = {"prompt": "a small red circle", "seed": 7}


def test_a_generation_tells_how_far_it_is_and_ends_with_its_pictures(gateway: RunningGateway) -> None:
    answer = gateway.post(PATH, json={**WANTED, "samples": 2, "preview_every": "4", "strength": 1}, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-ignored-parameters"] == "strength"
    *told, (kind, done) = events(answer)
    progress = [data for name, data in told if name == "progress"]
    assert [data["step"] for data in progress] == [20 * i // STEPS_TOLD for i in range(STEPS_TOLD + 1)]
    assert progress[0].keys() == {"job_id", "stage", "step", "steps", "seconds", "seconds_left"}
    previews = [data["images"] for name, data in told if name == "preview"]
    assert [[decoded(image) for image in images] for images in previews] == [[preview(), preview()]] * 3
    assert kind == "done"
    assert [(decoded(image["b64"]), image["seed"], image["media_type"]) for image in done["images"]] == [
        (picture(WANTED["prompt"], seed), seed, "image/jpeg") for seed in (7, 8)
    ]
    assert (done["cost"], done["remaining_credits"], done["infer_time"]) == (2.0, 98.0, INFER_S)
    assert done["parameters"]["samples"] == 2
    assert gateway.triton.asked[0].preview_every == 4


@pytest.mark.parametrize(
    ("parameter", "given"), [("num_inference_steps", 5), ("preview_every", 101), ("preview_every", "often")]
)
def test_wrong_values_are_refused_with_their_name(gateway: RunningGateway, parameter: str, given: object) -> None:
    answer = gateway.post(PATH, json={**WANTED, parameter: given})
    assert (answer.status_code, answer.json()["parameter"]) == (422, parameter)


def test_what_goes_wrong_before_the_first_event_has_its_status(gateway: RunningGateway) -> None:
    gateway.triton.at_start.append(Busy("32 of 32 generations are in flight", retry_after=3))
    answer = gateway.post(PATH, json=WANTED)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert gateway.post(PATH, key=gateway.new_key(0.5), json=WANTED).status_code == 406
    assert gateway.post(PATH, key="", json=WANTED).status_code == 401
    assert gateway.post(PATH, json=WANTED, headers={"idempotency-key": "mine"}).status_code == 400
    assert gateway.balance() == 100_000


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("grpc://secret-host:8001: gone"), 503), (ServerFault("secret-host broke"), 500)]
)
def test_what_goes_wrong_later_is_the_last_event(gateway: RunningGateway, error: Exception, status: int) -> None:
    gateway.triton.midway.extend([error] * (3 if isinstance(error, Unavailable) else 1))
    kind, data = list(events(gateway.post(PATH, json=WANTED, stream=True)))[-1]
    assert (kind, data["status"]) == ("error", status)
    assert "secret-host" not in data["error"]
    assert gateway.balance() == 100_000


def test_closing_the_connection_cancels_and_refunds(gateway: RunningGateway) -> None:
    gateway.triton.held.add(WANTED["prompt"])
    answer = gateway.post(PATH, json=WANTED, stream=True)
    told = events(answer)  # kept: an iterator that is thrown away closes the connection
    next(told)
    assert gateway.balance() == 99_000
    answer.close()
    gateway.triton.wait_for_in_flight(0)
    wait_until(lambda: gateway.balance() == 100_000)


def test_somebody_may_cancel_it_by_its_id(gateway: RunningGateway) -> None:
    gateway.triton.held.add(WANTED["prompt"])
    answer = gateway.post(PATH, json=WANTED, stream=True)
    gateway.post(f"/v2/requests/{answer.headers['x-request-id']}/cancel")
    kind, data = list(events(answer))[-1]
    assert (kind, data) == ("error", {"status": 409, "error": "cancelled: somebody cancelled the generation"})
    assert gateway.balance() == 100_000


def test_its_pictures_are_not_kept(gateway: RunningGateway) -> None:
    answer = gateway.post(PATH, json=WANTED)
    assert gateway.get(f"/v2/requests/{answer.headers['x-request-id']}").status_code == 410


def test_parameters_are_those_of_this_gateway(start_gateway: StartGateway) -> None:
    gateway = start_gateway(sizes=(256, 640), credits_per_picture="0.25")
    answer = gateway.get("/v1/parameters", key="").json()
    known = {parameter["name"]: parameter for parameter in answer["parameters"]}
    assert known.keys() == (Parameters.model_fields.keys() - {"base64"}) | {"preview_every"}
    assert known["prompt"]["required"] is True
    assert known["img_width"]["enum"] == [256, 640]
    assert (known["num_inference_steps"]["minimum"], known["num_inference_steps"]["maximum"]) == (20, 100)
    assert known["seed"]["maximum"] == 2**63 - 4
    assert (answer["slugs"], answer["credits_per_picture"]) == ([SLUG], "0.25")


def test_the_parameters_inside_a_picture_come_back(gateway: RunningGateway) -> None:
    made_with = gateway.post(f"/v1/{SLUG}", json={**WANTED, "num_inference_steps": 30}).json()["parameters"]
    answer = gateway.post("/v1/parameters", files={"file": png(json.dumps(made_with))})
    assert answer.json() == {"parameters": made_with}
    assert made_with["num_inference_steps"] == 30


@pytest.mark.parametrize("content", [b"no picture", b"", "plain", '{"prompt": "x", "samples": 9}', "{", "[]"])
def test_what_is_no_picture_of_ours_is_refused(gateway: RunningGateway, content: bytes | str) -> None:
    file = content if isinstance(content, bytes) else png(content)
    answer = gateway.post("/v1/parameters", files={"file": ("some.png", file)})
    assert (answer.status_code, answer.json()["parameter"]) == (422, "file")


def test_without_a_file_or_a_key_nothing_is_read(gateway: RunningGateway) -> None:
    assert gateway.post("/v1/parameters").status_code == 422
    assert gateway.post("/v1/parameters", key="", files={"file": png("{}")}).status_code == 401


def test_the_page_and_its_files_are_served_and_keep_to_themselves(gateway: RunningGateway) -> None:
    page = gateway.get("/", key="")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    for file in PAGE.iterdir():
        answer = gateway.get(f"/{'' if file.name == 'index.html' else file.name}", key="")
        assert answer.content == file.read_bytes()
        if file.suffix == ".js":
            assert answer.headers["content-type"].startswith("text/javascript")
    assert gateway.get("/../app.py", key="").status_code == 404
    assert gateway.get("/%2e%2e/app.py", key="").status_code == 404


def events(answer: requests.Response) -> Iterator[tuple[str, Any]]:
    """The events of a stream, as they come."""
    kind = ""
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


def png(parameters: str) -> bytes:
    file, text = io.BytesIO(), PngInfo()
    text.add_text("parameters", parameters)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=text)
    return file.getvalue()
