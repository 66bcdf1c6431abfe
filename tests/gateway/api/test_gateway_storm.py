"""Many callers at once, some of whom leave, on both databases."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor

from books import audit
from running_gateway import SLUG, RunningGateway, StartGateway, wait_until

CALLERS = 90


def test_what_callers_got_is_what_they_paid_for(start_gateway: StartGateway, database_url: str) -> None:
    gateway = start_gateway(database_url=database_url)
    gateway.triton.seconds_per_event = 0.02
    keys = [gateway.key, gateway.new_key(20)]

    with ThreadPoolExecutor(max_workers=CALLERS) as threads:
        outcomes = list(threads.map(lambda number: call(gateway, number, keys), range(CALLERS)))
    wait_until(lambda: gateway.triton.in_flight == 0)
    wait_until(lambda: "tiny_sd_gateway_processing 0.0" in gateway.get("/metrics").text)
    wait_until(lambda: "tiny_sd_gateway_queue_length 0.0" in gateway.get("/metrics").text)
    assert not [outcome for outcome in outcomes if outcome not in ("200", "406", "left", "queued")]
    assert outcomes.count("200") > 0
    assert outcomes.count("406") > 0
    gateway.in_database(audit)
    paid = outcomes.count("200") + outcomes.count("queued")
    spent = 100_000 + 20_000 - sum(gateway.balance(key) for key in keys)
    # Who left may have done so when the picture was finished already.
    assert paid * 1000 <= spent <= (paid + outcomes.count("left")) * 1000


def call(gateway: RunningGateway, number: int, keys: list[str]) -> str:
    """What becomes of the ``number``th caller."""
    key, body = keys[number % 2], {"prompt": f"number {number}"}
    if number % 3 == 0:
        answer = gateway.post(f"/v2/{SLUG}", key=key, json=body)
        return "queued" if answer.status_code == 200 else str(answer.status_code)
    if number % 3 == 1 and key == gateway.key:
        connection = gateway.send_and_keep(f"/v1/{SLUG}", body)
        connection.settimeout(random.uniform(0, 0.5))
        with contextlib.suppress(TimeoutError):
            connection.recv(1)
        connection.close()
        return "left"
    return str(gateway.post(f"/v1/{SLUG}", key=key, json=body).status_code)
