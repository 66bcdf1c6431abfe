"""For those who run it: health, readiness, metrics, logs, documentation, CORS."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import re
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from running_gateway import PROMPT, SLUG, RunningGateway, StartGateway, wait_until

from tiny_sd_client import Busy, ServerFault, Unavailable
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import DatabaseUnavailable

PATH = f"/v1/{SLUG}"
STUB_DIED = ServerFault("grpc://triton:8001: Stub process 'vae_decoder_0_0' is not healthy.")


def test_it_is_alive_whatever_triton_does(gateway: RunningGateway) -> None:
    gateway.triton.status_error = Unavailable("gone")
    assert gateway.get("/healthz", key="").json() == {"status": "ok"}


def test_it_is_ready_when_triton_has_begun_a_picture(gateway: RunningGateway) -> None:
    assert gateway.get("/readyz", key="").json() == {"status": "ok"}
    (asked,) = gateway.triton.asked
    assert (asked.parameters.num_inference_steps, asked.parameters.img_width) == (20, 512)
    assert gateway.triton.broken_off == [asked.job_id]  # after its first step
    gateway.get("/readyz")
    assert len(gateway.triton.asked) == 1  # which is proof enough for a while


def test_who_draws_needs_no_proof(gateway: RunningGateway) -> None:
    gateway.post(PATH, json=PROMPT)
    assert gateway.get("/readyz").status_code == 200
    assert len(gateway.triton.asked) == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"status_error": Unavailable("grpc://secret-host:8001: refused")}, "Triton cannot be reached"),
        ({"status_error": ServerFault("unknown model 'jobs'")}, "Triton cannot be reached"),
        ({"ready": False}, "Triton is starting or stopping"),
        ({"at_probe": [STUB_DIED]}, "Triton cannot make pictures"),
    ],
)
def test_it_is_not_ready_when_triton_is_not(gateway: RunningGateway, trouble: dict[str, Any], reason: str) -> None:
    for name, value in trouble.items():
        setattr(gateway.triton, name, value)
    answer = gateway.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"].startswith(f"not ready: {reason}")
    assert "secret-host" not in answer.text


def test_a_full_triton_is_ready(gateway: RunningGateway) -> None:
    gateway.triton.at_probe.append(Busy("32 of 32 generations are in flight"))
    assert gateway.get("/readyz").status_code == 200


def test_a_model_that_died_makes_it_unready_until_a_picture_is_finished_again(gateway: RunningGateway) -> None:
    assert gateway.get("/readyz").status_code == 200
    gateway.triton.midway.append(STUB_DIED)
    assert gateway.post(PATH, json=PROMPT).status_code == 500
    gateway.triton.at_probe.append(STUB_DIED)
    assert gateway.get("/readyz").status_code == 503
    before = len(gateway.triton.broken_off)
    assert gateway.get("/readyz").status_code == 200
    assert len(gateway.triton.broken_off) == before  # this time it wanted to see the end


def test_it_is_not_ready_without_its_database(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(self: Database) -> None:
        raise DatabaseUnavailable("secret-host: gone")

    monkeypatch.setattr(Database, "ping", gone)
    answer = gateway.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"error": "not ready: the database cannot be reached"})


def test_metrics_count_requests_generations_credits_and_the_queue(start_gateway: StartGateway) -> None:
    gateway = start_gateway(workers=0)
    gateway.post(PATH, json={**PROMPT, "samples": 2})
    gateway.post(PATH, json={**PROMPT, "samples": 9})
    gateway.post(f"/v2/{SLUG}", json=PROMPT)
    gateway.triton.at_start.append(Busy("full"))
    gateway.post(PATH, json=PROMPT)
    gateway.get("/nowhere/at/all")
    gateway.triton.held.add("held")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        held = threads.submit(gateway.post, PATH, json={"prompt": "held"})
        gateway.triton.wait_for_in_flight(1)
        samples = metrics(gateway)
        gateway.triton.let_go("held")
        held.result()
    name = "tiny_sd_gateway_"
    assert samples[f"{name}requests_total", ("200", "POST", PATH)] == 1
    assert samples[f"{name}requests_total", ("422", "POST", PATH)] == 1
    assert samples[f"{name}requests_total", ("429", "POST", PATH)] == 1
    assert samples[f"{name}requests_total", ("404", "GET", "unmatched")] == 1
    assert samples[f"{name}generations_total", ("v1", "completed")] == 1
    assert samples[f"{name}generations_total", ("v1", "refused")] == 1
    assert samples[f"{name}credits_charged_total", ("v1",)] == 2
    assert samples[f"{name}generation_seconds_count", ("v1",)] == 1
    assert samples[f"{name}request_seconds_count", (PATH,)] == 3
    assert samples[f"{name}in_flight", ("v1",)] == 1
    assert samples[f"{name}in_flight", ("v2",)] == 0
    assert samples[f"{name}queue_length", ()] == 1
    assert samples[f"{name}processing", ()] == 1


def test_logs_have_neither_keys_nor_prompts(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tiny_sd_gateway")
    private = {"prompt": "a very private circle"}
    gateway.triton.at_start.extend([ServerFault("it broke"), RuntimeError("it broke")])
    assert [gateway.post(PATH, json=private).status_code for _ in range(3)] == [500, 500, 200]
    submitted = gateway.post(f"/v2/{SLUG}", json=private).json()
    wait_until(lambda: gateway.get(submitted["response_url"]).status_code == 200)
    picture = gateway.get(submitted["response_url"]).json()["output"]
    assert gateway.get(picture).status_code == 200
    gateway.stop()
    for secret in (private["prompt"], gateway.key, picture.rpartition("/")[2]):
        assert secret not in caplog.text
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "tiny_sd_gateway"]
    requests_logged = [line for line in lines if line["event"] == "request"]
    assert requests_logged[0].items() >= {"method": "POST", "route": PATH, "code": 500}.items()
    broke = next(line for line in lines if line["event"] == "generation broke")
    assert "RuntimeError" in broke["exception"]
    assert broke["request_id"] == requests_logged[1]["request_id"]


def test_prompts_are_logged_where_the_operator_wants_them(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tiny_sd_gateway")
    start_gateway(log_prompts=True).post(PATH, json=PROMPT)
    assert PROMPT["prompt"] in caplog.text


def test_the_licence_has_the_use_restrictions(gateway: RunningGateway) -> None:
    answer = gateway.get("/license", key="")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "You agree not to use the Model" in answer.text
    assert "CreativeML Open RAIL-M" in answer.text


def test_the_documentation_says_what_the_answers_are(gateway: RunningGateway) -> None:
    page = gateway.get("/docs", key="").text
    assert "/openapi.json" in page
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 2
    for url in loaded:  # nothing from elsewhere
        assert gateway.get(url, key="").status_code == 200
    document = gateway.get("/openapi.json", key="").json()
    v1 = document["paths"][PATH]["post"]
    assert v1["requestBody"]["content"]["application/json"]["example"]["scheduler"] == "dpmpp_2m"
    assert v1["responses"].keys() == {"200", "400", "401", "406", "409", "413", "422", "429", "500", "503", "504"}
    assert v1["responses"]["200"]["content"].keys() == {"image/jpeg", "image/png", "image/webp", "application/json"}
    assert v1["security"] == [{"APIKeyHeader": []}, {"HTTPBearer": []}]
    assert "HTTPValidationError" not in json.dumps(document)
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_pages_of_other_origins_may_call_only_if_the_operator_allows_them(start_gateway: StartGateway) -> None:
    origin = {"origin": "https://pages.example"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    closed, opened = start_gateway(), start_gateway(cors_origins=("https://pages.example",))
    assert "access-control-allow-origin" not in closed.post(PATH, json=PROMPT, headers=origin).headers
    assert opened.request("OPTIONS", PATH, headers=preflight).status_code == 200
    for answer in (opened.post(PATH, json=PROMPT, headers=origin), opened.post(PATH, data="{", headers=origin)):
        assert answer.headers["access-control-allow-origin"] == "https://pages.example"
        assert "x-remaining-credits" in answer.headers["access-control-expose-headers"]
    stranger = opened.post(PATH, json=PROMPT, headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_a_fault_of_ours_is_answered_with_an_id_and_without_a_traceback(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("tiny_sd_gateway.ledger.balance", broken)
    plain = gateway.get("/v1/credits")
    assert (plain.status_code, plain.json()["error"]) == (500, "internal error")
    assert plain.json()["request_id"] == plain.headers["x-request-id"]
    monkeypatch.setattr("tiny_sd_gateway.keys.find", broken)
    dialect = gateway.get("/v1/models")
    assert (dialect.status_code, dialect.json()["error"]["type"]) == (500, "server_error")
    assert "secret detail" not in plain.text + dialect.text


def metrics(gateway: RunningGateway) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name and the values of its labels, in the order of the labels' names."""
    text = requests.get(f"{gateway.url}/metrics", timeout=60).text
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
