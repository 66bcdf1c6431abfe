"""The documented API: what it takes, what it answers, what it charges."""

from __future__ import annotations

import concurrent.futures
import json
import time
from typing import Any

import pytest
import requests
from fake_triton import INFER_S, decoded, picture
from running_gateway import PROMPT, SLUG, RunningGateway, StartGateway, wait_until

from tiny_sd_client import Busy, Cancelled, DeadlineExceeded, InvalidParameter, ServerFault, Unavailable
from tiny_sd_gateway import leases
from tiny_sd_gateway.faults import DatabaseUnavailable

PATH = f"/v1/{SLUG}"
DOCUMENTED_SAMPLE = {
    "prompt": "cyborg in a battlefield, explosions, highly detailed",
    "negative_prompt": "(worst quality, low quality:1.4), blurry, watermark",
    "scheduler": "dpmpp_2m",
    "num_inference_steps": 100,
    "guidance_scale": 7.5,
    "samples": 1,
    "seed": 2313248373,
    "img_width": 512,
    "img_height": 512,
    "base64": False,
}


def test_the_documented_sample_answers_with_a_picture_and_the_documented_headers(gateway: RunningGateway) -> None:
    answer = gateway.post(PATH, json=DOCUMENTED_SAMPLE)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.content == picture(DOCUMENTED_SAMPLE["prompt"], 2313248373)
    expected = {
        "x-remaining-credits": "95",
        "x-cost": "5",
        "x-seed-value": "2313248373",
        "x-generation-time": f"{INFER_S:.3f}",
        "link": '</license>; rel="license"',
    }
    assert {name: answer.headers[name] for name in expected} == expected
    asked = gateway.triton.asked[0]
    assert asked.parameters.picture() == {**without(DOCUMENTED_SAMPLE, "base64"), "image_format": "jpeg"}
    assert asked.job_id == f"{answer.headers['x-request-id']}-1"
    assert asked.timeout == pytest.approx(gateway.settings.timeout_s, abs=60)


def test_base64_is_the_default_and_comes_as_json(gateway: RunningGateway) -> None:
    answer = gateway.post(PATH, json=PROMPT).json()
    assert decoded(answer["image"]) == picture(PROMPT["prompt"], answer["seed"])
    assert (answer["status"], answer["infer_time"], answer["seeds"]) == ("success", INFER_S, [answer["seed"]])
    assert gateway.post(PATH, json=answer["parameters"]).json()["image"] == answer["image"]


@pytest.mark.parametrize("base64", [True, False])
def test_several_pictures_come_as_a_list(gateway: RunningGateway, base64: bool) -> None:
    answer = gateway.post(PATH, json={**PROMPT, "samples": 3, "seed": 7, "base64": base64}).json()
    assert [decoded(image) for image in answer["image"]] == [picture(PROMPT["prompt"], seed) for seed in (7, 8, 9)]
    assert answer["seeds"] == [7, 8, 9]
    assert gateway.balance() == 97_000


def test_image_format_decides_on_the_content_type(gateway: RunningGateway) -> None:
    for kind in ("png", "webp", "jpeg"):
        answer = gateway.post(PATH, json={**PROMPT, "base64": False, "image_format": kind})
        assert answer.headers["content-type"] == f"image/{kind}"


@pytest.mark.parametrize(
    "body",
    [
        {"json": {**PROMPT, "samples": "2", "guidance_scale": "8", "seed": "9", "base64": "false"}},
        {"json": {**PROMPT, "samples": 2.0, "guidance_scale": 8, "seed": 9, "base64": 0, "scheduler": None}},
        {"data": {**PROMPT, "samples": "2", "guidance_scale": "8", "seed": "9", "base64": "0"}},
        {
            "files": {
                name: (None, str(value))
                for name, value in {**PROMPT, "samples": 2, "guidance_scale": 8.0, "seed": 9}.items()
            }
        },
        {"data": json.dumps({**PROMPT, "samples": 2, "guidance_scale": 8, "seed": 9})},
        {
            "data": json.dumps({**PROMPT, "samples": 2, "guidance_scale": 8, "seed": 9}),
            "headers": {"content-type": "application/x-www-form-urlencoded"},  # as curl -d says
        },
    ],
)
def test_numbers_may_come_as_text_in_json_and_in_forms(gateway: RunningGateway, body: dict[str, Any]) -> None:
    answer = gateway.post(PATH, **body)
    assert answer.status_code == 200, answer.text
    asked = gateway.triton.asked[0].parameters
    assert (asked.samples, asked.guidance_scale, asked.seed) == (2, 8.0, 9)


def test_unknown_names_are_ignored_and_listed(gateway: RunningGateway) -> None:
    strange = {"strength": 0.5, "a, b": 1, "größe\ud800": 2}
    answer = gateway.post(PATH, json={**PROMPT, **strange, "style": None})
    assert answer.status_code == 200
    assert answer.headers["x-ignored-parameters"] == "strength, a%2C%20b, gr%C3%B6%C3%9Fe%3F"
    assert gateway.post(PATH, json={**PROMPT, "": 1}).headers["x-ignored-parameters"] == '""'
    many = gateway.post(PATH, json={**PROMPT, **{f"name{i}": i for i in range(1000)}})
    assert many.headers["x-ignored-parameters"].endswith("name19, and-980-more")


@pytest.mark.parametrize(
    ("parameter", "given", "message"),
    [
        ("num_inference_steps", 5, "got 5; allowed: an integer from 20 to 100"),
        ("num_inference_steps", "5", "got 5; allowed: an integer from 20 to 100"),
        ("num_inference_steps", "many", "got 'many'; allowed: an integer from 20 to 100"),
        ("num_inference_steps", True, "got True; allowed: an integer from 20 to 100"),
        ("guidance_scale", "inf", "got 'inf'; allowed: a number from 0.1 to 25.0"),
        ("guidance_scale", float("nan"), "got nan; allowed: a number from 0.1 to 25.0"),
        ("img_width", 640, "got 640; allowed: 512, 768, 1024"),
        ("base64", "maybe", "got 'maybe'; allowed: true or false"),
        ("prompt", None, "is required; allowed: "),
        ("prompt", "\ud800", "got "),
        ("prompt", "a\x00b", "got "),
        ("prompt", ["a"], "got a value of type list; allowed: "),
        ("seed", 2**63, "got 9223372036854775808; allowed: "),
        ("scheduler", "fast", "got 'fast'; allowed: DDIM, "),
    ],
)
def test_an_invalid_value_is_refused_with_its_name_and_what_is_allowed(
    gateway: RunningGateway, parameter: str, given: object, message: str
) -> None:
    answer = gateway.post(PATH, data=json.dumps({**PROMPT, parameter: given}))
    assert (answer.status_code, answer.json()["parameter"]) == (422, parameter)
    assert answer.json()["error"].startswith(f"{parameter}: {message}")
    assert gateway.balance() == 100_000
    assert not gateway.triton.asked


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"1" * 5000 + b"}"]
)
def test_a_malformed_body_is_refused(gateway: RunningGateway, body: bytes) -> None:
    answer = gateway.post(PATH, data=body, headers={"content-type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_malformed_forms_are_refused(gateway: RunningGateway) -> None:
    multipart = {"content-type": "multipart/form-data"}
    assert gateway.post(PATH, data=b"x", headers=multipart).status_code == 400
    assert gateway.post(PATH, data=b"x", headers={"content-type": "multipart/form-data; boundary=y"}).status_code == 400
    files = gateway.post(PATH, files={"prompt": ("prompt.txt", b"a small red circle")})
    assert (files.status_code, files.json()["error"]) == (422, "prompt: got a file; allowed: text")
    assert gateway.post(PATH, files={"prompt": (None, "x" * 70_000)}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "wrong"},
        {"x-api-key": "tsd_" + "x" * 43},
        {"authorization": "Bearer"},
        {"authorization": "Basic abc"},
    ],
)
def test_without_a_known_key_nothing_goes(gateway: RunningGateway, headers: dict[str, str]) -> None:
    answer = requests.post(gateway.url + PATH, json=PROMPT, headers=headers, timeout=60)
    assert answer.status_code == 401
    assert list(answer.json()) == ["error"]
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_may_come_as_a_bearer_token(gateway: RunningGateway) -> None:
    answer = requests.post(
        gateway.url + PATH, json=PROMPT, headers={"authorization": f"Bearer {gateway.key}"}, timeout=60
    )
    assert answer.status_code == 200


def test_wrong_urls_and_methods_are_told(gateway: RunningGateway) -> None:
    assert gateway.post("/v1/other-model", json=PROMPT).status_code == 404
    assert gateway.get("/v1").json() == {"error": "no such URL"}
    assert gateway.request("PUT", f"/v2/requests/{'0' * 32}").headers["allow"] == "DELETE, GET"
    assert gateway.request("PUT", "/page.js").headers["allow"] in ("GET, HEAD", "HEAD, GET")
    wrong = gateway.get(PATH)
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()) == (
        405,
        "POST",
        {"error": "wrong method; allowed: POST"},
    )


def test_a_host_that_is_none_is_nobody_elses_trouble(gateway: RunningGateway) -> None:
    strange = {"host": "["}
    assert gateway.get("/v1/credits", headers=strange).status_code == 200
    assert gateway.get("/v1/credits/", headers=strange).json() == {"error": "no such URL"}
    assert gateway.post(f"/v2/{SLUG}", json=PROMPT, headers=strange).status_code == 200


def test_too_few_credits_are_refused_and_none_are_taken(gateway: RunningGateway) -> None:
    poor = gateway.new_key(1.5)
    assert gateway.post(PATH, key=poor, json=PROMPT).headers["x-remaining-credits"] == "0.5"
    answer = gateway.post(PATH, key=poor, json=PROMPT)
    assert (answer.status_code, answer.json()) == (406, {"error": "not enough credits: 1 needed, 0.5 left"})
    assert gateway.balance(poor) == 500


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_refused(start_gateway: StartGateway, chunked: bool) -> None:
    gateway = start_gateway(body_limit_bytes=2000)
    body = json.dumps({**PROMPT, "negative_prompt": "x" * 2000}).encode()
    answer = gateway.post(PATH, data=iter([body[:1000], body[1000:]]) if chunked else body)
    assert (answer.status_code, answer.json()["error"]) == (413, "body: is too long; allowed: 2000 bytes")


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Busy("32 of 32 generations are in flight; come back in 3 s", retry_after=2.4), 429, "3"),
        (Unavailable("grpc://secret-host:8001: connection refused"), 503, "5"),
        (DeadlineExceeded("the timeout passed"), 504, None),
        (Cancelled("somebody did"), 409, None),
        (ServerFault("grpc://secret-host:8001: Traceback (most recent call last)"), 500, None),
        (InvalidParameter("prompt", "got 1,300 tokens; allowed: at most 1,200"), 422, None),
        (InvalidParameter("id", "got 'x'; allowed: an id that no other has"), 500, None),
        (RuntimeError("secret-host broke"), 500, None),
    ],
)
@pytest.mark.parametrize("when", ["at_start", "midway"])
def test_what_triton_answers_instead_of_pictures_is_told_and_refunded(
    gateway: RunningGateway, error: Exception, status: int, retry_after: str | None, when: str
) -> None:
    attempts = 3 if isinstance(error, Unavailable) else 1
    getattr(gateway.triton, when).extend([error] * attempts)
    answer = gateway.post(PATH, json=PROMPT)
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after), answer.text
    assert len(gateway.triton.asked) == attempts
    assert "secret-host" not in answer.text
    assert "Traceback" not in answer.text
    assert ("request_id" in answer.json()) == (status == 500)
    assert gateway.balance() == 100_000
    assert gateway.post(PATH, json=PROMPT).status_code == 200


@pytest.mark.parametrize("when", ["at_start", "midway"])
def test_whoever_waits_is_spared_a_triton_that_is_lost_where_another_one_lives(
    gateway: RunningGateway, when: str
) -> None:
    getattr(gateway.triton, when).append(Unavailable("grpc://triton:8001: Stream removed"))
    answer = gateway.post(PATH, json=PROMPT)
    assert (answer.status_code, answer.headers["x-cost"]) == (200, "1")
    first, second = gateway.triton.asked
    assert first.parameters == second.parameters
    assert first.timeout is not None
    assert second.timeout is not None
    assert second.timeout < first.timeout, "both attempts together have the time of one"
    assert gateway.balance() == 99_000


def test_a_triton_that_is_lost_until_the_time_is_over_is_told_as_a_timeout(start_gateway: StartGateway) -> None:
    gateway = start_gateway(timeout_s=0.1)
    gateway.triton.midway.append(Unavailable("grpc://triton:8001: Stream removed"))
    assert gateway.post(PATH, json=PROMPT).status_code == 504
    assert gateway.balance() == 100_000


def test_a_caller_who_leaves_cancels_and_is_not_charged(gateway: RunningGateway) -> None:
    gateway.triton.held.add("held")
    connection = gateway.send_and_keep(PATH, {"prompt": "held"})
    gateway.triton.wait_for_in_flight(1)
    assert gateway.balance() == 99_000
    connection.close()
    gateway.triton.wait_for_in_flight(0)
    assert gateway.triton.broken_off == [gateway.triton.asked[0].job_id]
    wait_until(lambda: gateway.balance() == 100_000)


def test_a_database_that_is_away_for_longer_than_the_lease_is_told_as_that(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> None:
        raise DatabaseUnavailable("secret-host: gone")

    gateway = start_gateway(lease_s=0.3)
    gateway.triton.held.add("held")
    monkeypatch.setattr(leases, "heartbeat", gone)
    answer = gateway.post(PATH, json={"prompt": "held"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "database cannot be reached" in answer.json()["error"]
    assert gateway.triton.broken_off == [gateway.triton.asked[0].job_id]
    wait_until(lambda: gateway.balance() == 100_000)


def test_an_idempotency_key_gets_the_same_answer_and_is_charged_once(gateway: RunningGateway) -> None:
    headers = {"idempotency-key": "mine"}
    first = gateway.post(PATH, json={**PROMPT, "base64": False}, headers=headers)
    second = gateway.post(PATH, json={**PROMPT, "base64": "false", "seed": -1}, headers=headers)
    assert first.content == second.content
    for name in ("x-request-id", "x-seed-value", "x-cost", "x-generation-time", "content-type"):
        assert first.headers[name] == second.headers[name]
    assert len(gateway.triton.asked) == 1
    assert gateway.balance() == 99_000
    other = gateway.post(PATH, json={**PROMPT, "seed": 3}, headers=headers)
    assert (other.status_code, other.json()["parameter"]) == (409, "Idempotency-Key")
    queued = gateway.post(f"/v2/{SLUG}", json={**PROMPT, "base64": False}, headers=headers)
    assert queued.status_code == 409
    somebody_else = gateway.post(PATH, key=gateway.new_key(1), json={**PROMPT, "seed": 3}, headers=headers)
    assert somebody_else.status_code == 200


def test_an_idempotency_key_waits_for_the_answer_that_is_under_way(gateway: RunningGateway) -> None:
    gateway.triton.held.add("held")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        asked = [
            threads.submit(gateway.post, PATH, json={"prompt": "held"}, headers={"idempotency-key": "k"})
            for _ in range(5)
        ]
        gateway.triton.wait_for_in_flight(1)
        time.sleep(0.5)
        gateway.triton.let_go("held")
        answers = [future.result() for future in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len(gateway.triton.asked) == 1
    assert gateway.balance() == 99_000


def test_an_idempotency_key_of_a_caller_who_left_makes_the_picture_for_the_next(gateway: RunningGateway) -> None:
    gateway.triton.held.add("held")
    connection = gateway.send_and_keep(PATH, {"prompt": "held"}, "idempotency-key: k\r\n")
    gateway.triton.wait_for_in_flight(1)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        again = threads.submit(gateway.post, PATH, json={"prompt": "held"}, headers={"idempotency-key": "k"})
        time.sleep(0.3)
        gateway.triton.let_go("held")
        connection.close()
        assert again.result().status_code == 200
    assert gateway.balance() == 99_000


@pytest.mark.parametrize("key", ["", "x" * 256, "größe"])
def test_an_idempotency_key_that_cannot_be_used_is_refused(gateway: RunningGateway, key: str) -> None:
    answer = gateway.post(PATH, json=PROMPT, headers={"idempotency-key": key.encode("latin-1")})
    assert (answer.status_code, answer.json()["parameter"]) == (400, "Idempotency-Key")


def test_too_many_requests_are_told_when_to_come_back(gateway: RunningGateway) -> None:
    hasty = gateway.new_key(100, requests_per_minute=3)
    answers = [gateway.post(PATH, key=hasty, json=PROMPT) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert "3 a minute" in answers[-1].json()["error"]
    assert gateway.get("/v1/credits", key=hasty).json() == {"remaining_credits": 97.0}
    assert gateway.post(PATH, json=PROMPT).status_code == 200  # other keys are not concerned


def test_a_gateway_that_stops_finishes_what_it_has_begun_and_takes_on_nothing_new(start_gateway: StartGateway) -> None:
    gateway = start_gateway(drain_s=120)
    gateway.triton.held.add("held")
    session = requests.Session()
    session.get(gateway.url + "/healthz", timeout=60)  # a connection that stays open
    with concurrent.futures.ThreadPoolExecutor() as threads:
        under_way = threads.submit(gateway.post, PATH, json={"prompt": "held"})
        gateway.triton.wait_for_in_flight(1)
        gateway._loop.call_soon_threadsafe(gateway.service.begin_to_stop)
        wait_until(lambda: gateway.service.stopping)
        refused = session.post(gateway.url + PATH, json=PROMPT, headers={"x-api-key": gateway.key}, timeout=60)
        assert (refused.status_code, refused.json()) == (503, {"error": "the gateway is stopping"})
        assert gateway.get("/readyz").status_code == 503
        gateway.triton.let_go("held")
        assert under_way.result().status_code == 200


def test_what_takes_longer_than_the_drain_is_refunded_and_told(start_gateway: StartGateway) -> None:
    gateway = start_gateway(drain_s=0.5)
    gateway.triton.held.add("held")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        under_way = threads.submit(gateway.post, PATH, json={"prompt": "held"})
        gateway.triton.wait_for_in_flight(1)
        gateway.stop()
        answer = under_way.result()
    assert (answer.status_code, answer.json()) == (503, {"error": "the gateway is stopping"})
    assert gateway.balance() == 100_000


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
