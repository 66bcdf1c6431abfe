"""Accepting generations: what is reserved and written down, and what an idempotency key stands for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from books import FILES, LEASE_S, TTL_S, audit, change, order

from tiny_sd_client.parameters import parse
from tiny_sd_gateway import generations, keys, leases, ledger
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import IdempotencyConflict, InsufficientCredits, UnknownGeneration, UnknownKey
from tiny_sd_gateway.generations import Api, Claim, Depth, Generation, Idempotency, Order, State
from tiny_sd_gateway.tables import GenerationRow

pytestmark = pytest.mark.anyio

SYNCHRONOUS = [Api.V1, Api.OPENAI, Api.PAGE]


@pytest.fixture
async def key_id(database: Database) -> int:
    """A key with five credits."""
    return (await keys.create(database, "me", 5000)).key.id


async def begin(database: Database, wanted: Order) -> Claim:
    begun = await generations.begin(database, wanted, "worker", LEASE_S)
    assert isinstance(begun, Claim)
    return begun


async def test_submitting_reserves_the_price_and_queues(database: Database, key_id: int) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    accepted = await generations.submit(database, order(key_id))
    assert accepted.state is State.QUEUED
    assert (accepted.key_id, accepted.api, accepted.price, accepted.attempt) == (key_id, Api.V2, 1000, 0)
    assert accepted.parameters == order(key_id).parameters
    assert before < accepted.created_at < before + timedelta(minutes=1)
    assert not accepted.expired
    assert await ledger.balance(database, key_id) == 4000
    assert await generations.find(database, key_id, accepted.id) == accepted
    assert await generations.depth(database) == Depth(queued=1, processing=0)
    await audit(database)


@pytest.mark.parametrize("api", SYNCHRONOUS)
async def test_beginning_reserves_the_price_and_leases_at_once(database: Database, key_id: int, api: Api) -> None:
    begun = await begin(database, order(key_id, api))
    assert begun.generation.state is State.PROCESSING
    assert (begun.lease.generation_id, begun.lease.owner) == (begun.generation.id, "worker")
    assert begun.lease.job_id == f"{begun.generation.id}-1"
    assert await ledger.balance(database, key_id) == 4000
    assert await generations.depth(database) == Depth(queued=0, processing=1)
    assert await leases.claim(database, "other", LEASE_S) is None  # somebody waits for it: it is no other worker's
    await audit(database)


async def test_what_a_generation_was_asked_for_is_kept_to_the_last_bit(database: Database, key_id: int) -> None:
    wanted = parse(
        {
            "prompt": "ein Fuchs 🦊 'in' \"Anführungszeichen\"\n\\",
            "seed": 2**63 - 4,
            "guidance_scale": 7.123456789012345,
            "scheduler": "dpmpp_2m",
            "image_format": "webp",
            "base64": False,
        }
    )
    accepted = await generations.submit(database, Order(key_id, Api.V2, "slug", wanted, 1))
    assert (await generations.find(database, key_id, accepted.id)).parameters == wanted


async def test_who_cannot_pay_gets_nothing(database: Database, key_id: int) -> None:
    for api in Api:
        with pytest.raises(InsufficientCredits, match=r"5.001 needed, 5 left"):
            if api is Api.V2:
                await generations.submit(database, order(key_id, price=5001))
            else:
                await begin(database, order(key_id, api, price=5001))
    assert await generations.depth(database) == Depth(0, 0)
    await audit(database)


async def test_the_last_thousandth_may_be_spent_and_what_is_free_needs_none(database: Database, key_id: int) -> None:
    await generations.submit(database, order(key_id, price=5000))
    assert await ledger.balance(database, key_id) == 0
    await begin(database, order(key_id, Api.V1, price=0))
    await audit(database)


async def test_a_revoked_key_gets_nothing_new_and_its_queue_goes_on(database: Database, key_id: int) -> None:
    await generations.submit(database, order(key_id))
    await keys.revoke(database, str(key_id))
    with pytest.raises(UnknownKey):
        await generations.submit(database, order(key_id))
    with pytest.raises(UnknownKey):
        await begin(database, order(key_id, Api.V1))
    claim = await leases.claim(database, "worker", LEASE_S)
    assert claim
    await leases.complete(database, claim.lease, FILES, 1.0, TTL_S)
    await audit(database)


async def test_orders_that_make_no_sense_are_refused(database: Database, key_id: int) -> None:
    with pytest.raises(ValueError, match="the seed is not drawn"):
        Order(key_id, Api.V2, "slug", parse({"prompt": "a cat"}), 1)
    with pytest.raises(ValueError, match="allowed: 1 to 255"):
        Idempotency.of("", "x")
    with pytest.raises(ValueError, match="got 256 characters"):
        Idempotency.of("x" * 256, "x")
    with pytest.raises(ValueError, match="api"):
        await generations.submit(database, order(key_id, Api.V1))
    with pytest.raises(ValueError, match="api"):
        await begin(database, order(key_id, Api.V2))


def test_a_fingerprint_tells_what_was_asked_and_not_how_it_was_written() -> None:
    first = Idempotency.of("k", "v1", {"prompt": "a cat", "steps": 20}, b"x")
    assert Idempotency.of("k", "v1", {"steps": 20, "prompt": "a cat"}, "x") == first
    others = [
        Idempotency.of("k", "v2", {"prompt": "a cat", "steps": 20}, b"x"),
        Idempotency.of("k", "v1", {"prompt": "a cat", "steps": "20"}, b"x"),
        Idempotency.of("k", "v1", {"prompt": "a cat", "steps": 20}, b"", b"x"),
        Idempotency.of("k", "v1x", {"prompt": "a cat", "steps": 20}, b""),
    ]
    assert len({other.fingerprint for other in (first, *others)}) == 5


async def test_the_same_request_again_is_the_same_generation_charged_once(database: Database, key_id: int) -> None:
    first = await generations.submit(database, order(key_id, name="mine"))
    again = await generations.submit(database, order(key_id, name="mine"))
    assert again == first
    assert await ledger.balance(database, key_id) == 4000

    begun = await begin(database, order(key_id, Api.V1, name="waiting"))
    assert (
        await generations.begin(database, order(key_id, Api.V1, name="waiting"), "other", LEASE_S) == begun.generation
    )
    assert await ledger.balance(database, key_id) == 3000
    await audit(database)


async def test_it_is_so_even_when_there_is_nothing_left_to_pay_with(database: Database, key_id: int) -> None:
    first = await generations.submit(database, order(key_id, name="mine", price=5000))
    assert await generations.submit(database, order(key_id, name="mine", price=5000)) == first


async def test_it_is_so_when_many_ask_at_once(database_url: str) -> None:
    async with Database(database_url) as one, Database(database_url) as other:
        key_id = (await keys.create(one, "me", 5000)).key.id
        accepted = await asyncio.gather(
            *(generations.submit(it, order(key_id, name="mine")) for it in (one, other) for _ in range(10)),
        )
        begun = await asyncio.gather(
            *(
                generations.begin(it, order(key_id, Api.V1, name="waiting"), "worker", LEASE_S)
                for it in (one, other)
                for _ in range(10)
            ),
        )
        assert len({generation.id for generation in accepted}) == 1
        claims = [each for each in begun if isinstance(each, Claim)]
        assert [claims[0].generation] * 19 == [each for each in begun if isinstance(each, Generation)]
        assert await ledger.balance(one, key_id) == 3000
        await audit(one)


async def test_another_request_by_the_same_name_is_refused(database: Database, key_id: int) -> None:
    await generations.submit(database, order(key_id, name="mine"))
    with pytest.raises(IdempotencyConflict):
        await generations.submit(database, order(key_id, name="mine", prompt="a dog"))
    with pytest.raises(IdempotencyConflict):
        await begin(database, order(key_id, Api.V1, name="mine"))
    assert await ledger.balance(database, key_id) == 4000


async def test_names_of_different_keys_have_nothing_to_do_with_each_other(database: Database, key_id: int) -> None:
    other = (await keys.create(database, "other", 5000)).key.id
    mine = await generations.submit(database, order(key_id, name="mine"))
    theirs = await generations.submit(database, order(other, name="mine", prompt="a dog"))
    assert mine.id != theirs.id


@pytest.mark.parametrize("end", ["fail", "cancel"])
async def test_who_waited_in_vain_may_ask_again_by_the_same_name(database: Database, key_id: int, end: str) -> None:
    wanted = order(key_id, Api.V1, name="mine")
    first = await begin(database, wanted)
    if end == "fail":
        await leases.fail(database, first.lease, 503, "the server is full", TTL_S)
    else:
        await leases.cancel(database, key_id, first.generation.id, TTL_S)
    with pytest.raises(IdempotencyConflict):
        await begin(database, order(key_id, Api.V1, name="mine", prompt="a dog"))
    second = await begin(database, wanted)
    assert second.generation.id != first.generation.id
    assert await generations.begin(database, wanted, "worker", LEASE_S) == second.generation
    assert await ledger.balance(database, key_id) == 4000
    await audit(database)


async def test_a_queued_one_that_failed_stays_what_its_name_stands_for(database: Database, key_id: int) -> None:
    wanted = order(key_id, name="mine")
    first = await generations.submit(database, wanted)
    ended = await leases.cancel(database, key_id, first.id, TTL_S)
    assert await generations.submit(database, wanted) == ended


@pytest.mark.parametrize("api", [Api.V1, Api.V2])
async def test_a_name_is_free_again_once_the_results_expired(database: Database, key_id: int, api: Api) -> None:
    wanted = order(key_id, api, name="mine")
    if api is Api.V2:
        await generations.submit(database, wanted)
        claim = await leases.claim(database, "worker", LEASE_S)
        assert claim
    else:
        claim = await begin(database, wanted)
    done = await leases.complete(database, claim.lease, FILES, 1.0, TTL_S)
    await change(database, GenerationRow, done.id, results_until=1)
    other = order(key_id, api, name="mine", prompt="a dog")
    if api is Api.V2:
        again = await generations.submit(database, other)
    else:
        again = (await begin(database, other)).generation
    assert again.id != done.id
    assert await ledger.balance(database, key_id) == 3000
    await audit(database)


async def test_a_key_sees_only_its_own(database: Database, key_id: int) -> None:
    other = (await keys.create(database, "other", 5000)).key.id
    await generations.submit(database, order(key_id))
    claim = await leases.claim(database, "worker", LEASE_S)
    assert claim
    done = await leases.complete(database, claim.lease, FILES, 1.0, TTL_S)
    for stranger, generation_id in ((other, done.id), (key_id, "0" * 32)):
        with pytest.raises(UnknownGeneration):
            await generations.find(database, stranger, generation_id)
        with pytest.raises(UnknownGeneration):
            await leases.cancel(database, stranger, generation_id, TTL_S)
        assert await generations.pictures_of(database, stranger, generation_id) == ()
    assert len(await generations.pictures_of(database, key_id, done.id)) == 2
