"""The queue over HTTP, and what its workers do when Triton is full, away or broken."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from books import change
from fake_triton import INFER_S, picture
from running_gateway import PROMPT, SLUG, RunningGateway, StartGateway, wait_until

from tiny_sd_client import Busy, InvalidParameter, ServerFault, Unavailable
from tiny_sd_gateway import leases, runner
from tiny_sd_gateway.tables import GenerationRow

PATH = f"/v2/{SLUG}"
STUB_DIED = ServerFault("grpc://triton:8001: Stub process 'unet_0_0' is not healthy.")


def test_a_request_is_queued_done_and_fetched(gateway: RunningGateway) -> None:
    submitted = gateway.post(PATH, json={**PROMPT, "seed": "7", "strength": 1})
    assert submitted.status_code == 200
    body = submitted.json()
    assert body["status"] == "QUEUED"
    assert submitted.headers["x-ignored-parameters"] == "strength"
    assert body["status_url"] == f"{gateway.url}/v2/requests/{body['request_id']}/status"
    status = wait_for_end(gateway, body)
    assert (status["status"], status["request_id"]) == ("COMPLETED", body["request_id"])
    assert status["metrics"].keys() == {"inference_time", "queue_time", "total_time", "cost", "remaining_credits"}
    result = gateway.get(body["response_url"]).json()
    assert (result["status"], result["seed"], result["prompt"]) == ("COMPLETED", 7, PROMPT["prompt"])
    assert (result["metrics"]["inference_time"], result["metrics"]["cost"]) == (INFER_S, 1.0)
    assert result["metrics"]["remaining_credits"] == 99.0
    (image,) = result["images"]
    assert result["output"] == image["url"]
    file = requests.get(image["url"], timeout=60)  # without a key
    assert (file.status_code, file.headers["content-type"], file.content) == (200, "image/jpeg", picture(**drawn(7)))
    assert (image["file_size"], image["file_name"]) == (len(file.content), "7.jpg")
    assert file.headers["link"] == '</license>; rel="license"'
    assert gateway.balance() == 99_000


def test_several_pictures_have_several_urls(gateway: RunningGateway) -> None:
    body = gateway.post(PATH, json={**PROMPT, "seed": 7, "samples": 3}).json()
    wait_for_end(gateway, body)
    result = gateway.get(body["response_url"]).json()
    assert [requests.get(url, timeout=60).content for url in result["output"]] == [
        picture(**drawn(7 + i)) for i in range(3)
    ]


def test_urls_are_those_of_the_outside(start_gateway: StartGateway) -> None:
    gateway = start_gateway(public_url="https://pictures.example/api/")
    body = gateway.post(PATH, json=PROMPT).json()
    assert body["response_url"] == f"https://pictures.example/api/v2/requests/{body['request_id']}"


def test_wrong_values_are_refused_before_they_are_queued(gateway: RunningGateway) -> None:
    assert gateway.post(PATH, json={**PROMPT, "samples": 9}).status_code == 422
    assert gateway.post(PATH, data="{").status_code == 400
    assert gateway.post(PATH, key="", json=PROMPT).status_code == 401
    assert gateway.post(PATH, key=gateway.new_key(0.5), json=PROMPT).status_code == 406
    assert gateway.balance() == 100_000


def test_a_request_that_is_not_done_says_so(gateway: RunningGateway) -> None:
    gateway.triton.held.add("held")
    body = gateway.post(PATH, json={"prompt": "held"}).json()
    gateway.triton.wait_for_in_flight(1)
    assert gateway.triton.asked[0].timeout is None
    status, result = gateway.get(body["status_url"]), gateway.get(body["response_url"])
    assert (status.status_code, result.status_code) == (200, 202)
    assert status.json()["status"] == result.json()["status"] == "PROCESSING"
    gateway.triton.let_go("held")


@pytest.mark.parametrize("path", ["/cancel", ""])
def test_a_request_can_be_cancelled_while_it_runs(gateway: RunningGateway, path: str) -> None:
    gateway.triton.held.add("held")
    body = gateway.post(PATH, json={"prompt": "held"}).json()
    gateway.triton.wait_for_in_flight(1)
    cancelled = gateway.request("POST" if path else "DELETE", body["response_url"] + path)
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "FAILED")
    gateway.triton.wait_for_in_flight(0)
    for url in (body["status_url"], body["response_url"]):
        answer = gateway.get(url)
        assert (answer.status_code, answer.json()["status"]) == (422, "FAILED")
        assert answer.json()["error"].startswith("cancelled: ")
    assert gateway.balance() == 100_000


def test_a_request_can_be_cancelled_in_the_queue(start_gateway: StartGateway) -> None:
    gateway = start_gateway(workers=0)
    body = gateway.post(PATH, json=PROMPT).json()
    assert gateway.balance() == 99_000
    gateway.post(body["cancel_url"])
    assert gateway.balance() == 100_000
    assert gateway.get(body["status_url"]).json()["status"] == "FAILED"


def test_cancelling_what_is_done_changes_nothing(gateway: RunningGateway) -> None:
    body = gateway.post(PATH, json=PROMPT).json()
    wait_for_end(gateway, body)
    assert gateway.post(body["cancel_url"]).json()["status"] == "COMPLETED"
    assert gateway.balance() == 99_000


def test_nobody_sees_the_requests_of_others(gateway: RunningGateway) -> None:
    body = gateway.post(PATH, json=PROMPT).json()
    wait_for_end(gateway, body)
    stranger = gateway.new_key(1)
    for method, url in (
        ("GET", "status_url"),
        ("GET", "response_url"),
        ("POST", "cancel_url"),
        ("DELETE", "response_url"),
    ):
        answer = gateway.request(method, body[url], key=stranger)
        assert (answer.status_code, answer.json()) == (404, {"error": "no such request, or it is not yours"})
        assert gateway.request(method, body[url], key="").status_code == 401


@pytest.mark.parametrize("name", ["x", "%00", "0" * 32, "a" * 200, "%2e%2e"])
def test_unknown_ids_are_unknown(gateway: RunningGateway, name: str) -> None:
    assert gateway.get(f"/v2/requests/{name}").status_code == 404
    assert gateway.get(f"/v2/requests/{name}/status").status_code == 404
    assert gateway.get(f"/v2/pictures/{name}").status_code == 404


def test_results_expire(start_gateway: StartGateway) -> None:
    gateway = start_gateway(results_ttl_s=0.5)
    body = gateway.post(PATH, json=PROMPT).json()
    wait_for_end(gateway, body)
    wait_until(lambda: gateway.get(body["response_url"]).status_code == 410)
    assert gateway.get(body["status_url"]).json()["status"] == "COMPLETED"


def test_an_idempotency_key_gets_the_same_request(gateway: RunningGateway) -> None:
    headers = {"idempotency-key": "mine"}
    first = gateway.post(PATH, json=PROMPT, headers=headers).json()
    wait_for_end(gateway, first)
    second = gateway.post(PATH, json=PROMPT, headers=headers).json()
    assert (second["request_id"], second["status"]) == (first["request_id"], "COMPLETED")
    assert gateway.post(PATH, json={**PROMPT, "samples": 2}, headers=headers).status_code == 409
    assert gateway.balance() == 99_000


@pytest.mark.parametrize(
    "error",
    [Busy("4 of 4 generations are in flight", retry_after=0.1), Unavailable("grpc://triton:8001: gone")],
)
@pytest.mark.parametrize("when", ["at_start", "midway"])
def test_the_queue_waits_until_triton_can(start_gateway: StartGateway, error: Exception, when: str) -> None:
    gateway = start_gateway(max_attempts=1)  # what is not the generation's fault costs no attempt
    getattr(gateway.triton, when).extend([error, error])
    body = gateway.post(PATH, json={**PROMPT, "seed": 7}).json()
    assert wait_for_end(gateway, body)["status"] == "COMPLETED"
    assert len(gateway.triton.asked) == 3
    assert len({asked.job_id for asked in gateway.triton.asked}) == 3
    assert {asked.parameters.seed for asked in gateway.triton.asked} == {7}
    assert gateway.balance() == 99_000


def test_what_finds_a_model_dead_waits_until_it_lives(start_gateway: StartGateway) -> None:
    gateway = start_gateway(max_attempts=1)
    gateway.triton.at_start.extend([STUB_DIED] * 3)
    assert gateway.post(f"/v1/{SLUG}", json=PROMPT).status_code == 500
    body = gateway.post(PATH, json=PROMPT).json()
    assert wait_for_end(gateway, body)["status"] == "COMPLETED"
    assert len(gateway.triton.asked) == 4
    assert gateway.balance() == 99_000


def test_what_kills_a_model_each_time_is_given_up(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_RETRY_FAULT_S", 3600.0)  # until the model lives, and is about to die again
    gateway = start_gateway(max_attempts=2)
    gateway.triton.midway.append(STUB_DIED)
    body = gateway.post(PATH, json=PROMPT).json()
    wait_until(lambda: gateway.service.health.broken)
    wait_until(lambda: gateway.get(body["status_url"]).json()["status"] == "QUEUED")
    assert gateway.get("/readyz").status_code == 200
    gateway.triton.midway.append(STUB_DIED)
    gateway.in_database(lambda database: change(database, GenerationRow, body["request_id"], claimable_at=1))
    assert wait_for_end(gateway, body)["status"] == "FAILED"
    assert gateway.balance() == 100_000


def test_a_fault_is_tried_again_and_given_up_after_max_attempts(start_gateway: StartGateway) -> None:
    gateway = start_gateway(max_attempts=2)
    gateway.triton.midway.extend([ServerFault("grpc://secret-host:8001: it broke")] * 2)
    body = gateway.post(PATH, json=PROMPT).json()
    status = wait_for_end(gateway, body)
    assert (status["status"], status["error"]) == ("FAILED", "internal error")
    assert len(gateway.triton.asked) == 2
    assert gateway.balance() == 100_000


def test_what_triton_refuses_is_not_tried_again(gateway: RunningGateway) -> None:
    gateway.triton.at_start.append(InvalidParameter("prompt", "got 1,300 tokens; allowed: at most 1,200"))
    body = gateway.post(PATH, json=PROMPT).json()
    assert wait_for_end(gateway, body)["error"] == "prompt: got 1,300 tokens; allowed: at most 1,200"
    assert gateway.get(body["status_url"]).status_code == 422
    assert gateway.balance() == 100_000


def test_a_gateway_that_stops_gives_back_what_it_has_begun(start_gateway: StartGateway) -> None:
    first = start_gateway(drain_s=0.3)
    first.triton.held.add("held")
    body = first.post(PATH, json={"prompt": "held", "seed": 3}).json()
    first.triton.wait_for_in_flight(1)
    first.stop()
    second = start_gateway()
    status = wait_for_end(
        second, {**body, "status_url": f"{second.url}/v2/requests/{body['request_id']}/status"}, first.key
    )
    assert status["status"] == "COMPLETED"
    assert second.triton.asked[0].parameters == first.triton.asked[0].parameters
    assert second.balance(first.key) == 99_000


def test_what_a_dead_gateway_had_begun_is_taken_over(start_gateway: StartGateway) -> None:
    idle = start_gateway(workers=0)
    body = idle.post(PATH, json=PROMPT).json()
    assert idle.in_database(lambda database: leases.claim(database, "dead", 0.5))  # and never a heartbeat
    gateway = start_gateway()
    assert wait_for_end(idle, body)["status"] == "COMPLETED"
    assert gateway.triton.asked[0].job_id == f"{body['request_id']}-2"
    assert idle.balance() == 99_000


def test_a_worker_whose_generation_is_cancelled_elsewhere_stops(start_gateway: StartGateway) -> None:
    working, other = start_gateway(lease_s=0.6), start_gateway(workers=0)
    working.triton.held.add("held")
    body = working.post(PATH, json={"prompt": "held"}).json()
    working.triton.wait_for_in_flight(1)
    other.post(f"/v2/requests/{body['request_id']}/cancel", key=working.key)
    working.triton.wait_for_in_flight(0)
    assert working.balance() == 100_000


def test_no_more_than_its_workers_run_at_a_time(start_gateway: StartGateway) -> None:
    gateway = start_gateway(workers=2)
    gateway.triton.held.add("held")
    bodies = [gateway.post(PATH, json={"prompt": "held"}).json() for _ in range(5)]
    gateway.triton.wait_for_in_flight(2)
    assert "tiny_sd_gateway_queue_length 3.0" in gateway.get("/metrics").text
    gateway.triton.let_go("held")
    for body in bodies:
        assert wait_for_end(gateway, body)["status"] == "COMPLETED"
    assert gateway.triton.most_in_flight == 2


def wait_for_end(gateway: RunningGateway, submitted: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """The status of a request once it has ended."""
    status: dict[str, Any] = {}

    def ended() -> bool:
        status.update(gateway.get(submitted["status_url"], key=key).json())
        return status["status"] in ("COMPLETED", "FAILED")

    wait_until(ended, 120)
    return status


def drawn(seed: int) -> dict[str, Any]:
    return {**PROMPT, "seed": seed}
