"""Rate limits, on both databases and over several gateways."""

from __future__ import annotations

import concurrent.futures

from running_gateway import PROMPT, SLUG, StartGateway

PATH = f"/v1/{SLUG}"


def test_replicas_share_the_limit(start_gateway: StartGateway, database_url: str) -> None:
    first, second = start_gateway(database_url=database_url), start_gateway(database_url=database_url)
    key = first.new_key(100, requests_per_minute=10)
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as threads:
        asked = [threads.submit(gateway.post, PATH, key=key, json=PROMPT) for gateway in (first, second) * 10]
        codes = [future.result().status_code for future in asked]
    assert (codes.count(200), codes.count(429)) == (10, 10)
    assert first.balance(key) == 90_000


def test_the_usual_limit_holds_for_keys_without_one(start_gateway: StartGateway) -> None:
    gateway = start_gateway(requests_per_minute=2)
    assert [gateway.post(PATH, json=PROMPT).status_code for _ in range(3)] == [200, 200, 429]
    assert gateway.get("/v1/credits").status_code == 200  # only what asks for pictures counts
    other = gateway.new_key(100)
    assert gateway.post(f"/v2/{SLUG}", key=other, json=PROMPT).status_code == 200
    assert gateway.post("/v1/images/generations", key=other, json=PROMPT).status_code == 200
    refused = gateway.post("/v1/generations/stream", key=other, json=PROMPT)
    assert refused.status_code == 429


def test_a_window_ends(start_gateway: StartGateway, database_url: str) -> None:
    gateway = start_gateway(database_url=database_url)
    windows = gateway.service.limits._limiter.storage

    async def three_times(expiry: int) -> list[int]:
        return [await windows.incr("test", expiry) for _ in range(3)]

    assert gateway.run(three_times(60)) == [1, 2, 3]
    assert gateway.run(windows.get("test")) == 3
    gateway.run(windows.clear("test"))
    assert gateway.run(windows.get("test")) == 0
    assert gateway.run(three_times(0)) == [1, 1, 1]
