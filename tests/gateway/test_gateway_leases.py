"""Working on generations: whose one is, how it ends, and what becomes of those whose worker is gone."""

from __future__ import annotations

import asyncio

import pytest
from books import FILES, LEASE_S, TTL_S, audit, change, let_lease_run_out, order
from sqlalchemy import select

from tiny_sd_client.parameters import InvalidParameter
from tiny_sd_gateway import generations, keys, leases, ledger
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import LeaseLost
from tiny_sd_gateway.generations import Api, Claim, Depth, Lease, State
from tiny_sd_gateway.leases import Swept
from tiny_sd_gateway.tables import GenerationRow, PictureRow, RateWindow

pytestmark = pytest.mark.anyio

ATTEMPTS = 3


@pytest.fixture
async def key_id(database: Database) -> int:
    """A key with fifty credits."""
    return (await keys.create(database, "me", 50_000)).key.id


async def claim(database: Database, owner: str = "worker") -> Claim:
    claimed = await leases.claim(database, owner, LEASE_S)
    assert claimed
    return claimed


async def queued_and_claimed(database: Database, key_id: int) -> Claim:
    await generations.submit(database, order(key_id))
    return await claim(database)


async def begun(database: Database, key_id: int, api: Api = Api.V1) -> Claim:
    started = await generations.begin(database, order(key_id, api), "worker", LEASE_S)
    assert isinstance(started, Claim)
    return started


async def every_way_to_go_on(database: Database, lease: Lease) -> None:
    """What a worker may do with a generation; each must raise LeaseLost."""
    with pytest.raises(LeaseLost):
        await leases.heartbeat(database, lease, LEASE_S)
    with pytest.raises(LeaseLost):
        await leases.complete(database, lease, FILES, 1.0, TTL_S)
    with pytest.raises(LeaseLost):
        await leases.fail(database, lease, 500, "broken", TTL_S)
    with pytest.raises(LeaseLost):
        await leases.release(database, lease)
    with pytest.raises(LeaseLost):
        await leases.retry(database, lease, delay_s=0, status=500, message="broken", max_attempts=ATTEMPTS, ttl_s=TTL_S)


async def test_an_empty_queue_has_nothing(database: Database) -> None:
    assert await leases.claim(database, "worker", LEASE_S) is None


async def test_each_is_taken_up_once(database_url: str) -> None:
    async with Database(database_url) as one, Database(database_url) as other:
        key_id = (await keys.create(one, "me", 50_000)).key.id
        accepted = [(await generations.submit(one, order(key_id))).id for _ in range(10)]
        taken = await asyncio.gather(
            *(leases.claim(it, f"worker {n}", LEASE_S) for n in range(10) for it in (one, other))
        )
        assert sorted(each.generation.id for each in taken if each) == sorted(accepted)
        assert await generations.depth(one) == Depth(queued=0, processing=10)
        await audit(one)


async def test_a_key_with_a_long_queue_does_not_hold_up_the_others(database: Database) -> None:
    busy, calm, late = [(await keys.create(database, name, 50_000)).key.id for name in ("busy", "calm", "late")]
    for _ in range(5):
        await generations.submit(database, order(busy))
    for _ in range(2):
        await generations.submit(database, order(calm))

    async def next_key() -> int:
        await asyncio.sleep(0.002)  # turns are told apart by milliseconds
        return (await claim(database)).generation.key_id

    turns = [await next_key() for _ in range(3)]
    await generations.submit(database, order(late))
    turns += [await next_key() for _ in range(5)]
    assert turns == [busy, calm, busy, late, calm, busy, busy, busy]


async def test_of_one_key_the_oldest_goes_first(database: Database, key_id: int) -> None:
    accepted = []
    for _ in range(4):
        accepted.append((await generations.submit(database, order(key_id))).id)
        await asyncio.sleep(0.002)
    assert [(await claim(database)).generation.id for _ in range(4)] == accepted


async def test_completing_keeps_the_pictures_and_settles(database: Database, key_id: int) -> None:
    held = await queued_and_claimed(database, key_id)
    done = await leases.complete(database, held.lease, FILES, 1.5, TTL_S)
    assert (done.state, done.infer_s, done.expired) == (State.COMPLETED, 1.5, False)
    assert done.finished_at is not None
    assert done.expires_at is not None
    assert (done.expires_at - done.finished_at).total_seconds() == TTL_S
    kept = await generations.pictures_of(database, key_id, done.id)
    assert [(each.position, each.seed, each.media_type, each.data) for each in kept] == [
        (0, 7, "image/jpeg", b"first"),
        (1, 8, "image/jpeg", b"second"),
    ]
    assert [await generations.picture(database, each.id) for each in kept] == list(kept)
    assert all(len(each.id) == 32 for each in kept)
    assert await generations.picture(database, "A" * 32) is None
    assert await ledger.balance(database, key_id) == 49_000
    await audit(database)


async def test_failing_tells_why_and_refunds(database: Database, key_id: int) -> None:
    for held in (await queued_and_claimed(database, key_id), await begun(database, key_id)):
        failed = await leases.fail(database, held.lease, 504, "too late", TTL_S)
        assert (failed.state, failed.error_status, failed.error) == (State.FAILED, 504, "too late")
    assert await ledger.balance(database, key_id) == 50_000
    await audit(database)


async def test_cancelling_refunds_and_stops_the_worker(database: Database, key_id: int) -> None:
    waiting = await generations.submit(database, order(key_id))
    assert (await leases.cancel(database, key_id, waiting.id, TTL_S)).state is State.CANCELLED
    for held in (await queued_and_claimed(database, key_id), await begun(database, key_id)):
        gone = await leases.cancel(database, key_id, held.generation.id, TTL_S)
        assert gone.state is State.CANCELLED
        await every_way_to_go_on(database, held.lease)
        assert await leases.cancel(database, key_id, held.generation.id, TTL_S) == gone
    assert await leases.claim(database, "worker", LEASE_S) is None
    assert await ledger.balance(database, key_id) == 50_000
    await audit(database)


async def test_what_has_ended_is_not_cancelled(database: Database, key_id: int) -> None:
    held = await queued_and_claimed(database, key_id)
    done = await leases.complete(database, held.lease, FILES, 1.0, TTL_S)
    assert await leases.cancel(database, key_id, done.id, TTL_S) == done
    assert await ledger.balance(database, key_id) == 49_000
    await audit(database)


async def test_a_worker_that_does_not_know_whether_it_was_heard_may_say_it_again(
    database: Database, key_id: int
) -> None:
    held = await queued_and_claimed(database, key_id)
    done = await leases.complete(database, held.lease, FILES, 1.0, TTL_S)
    assert await leases.complete(database, held.lease, FILES, 1.0, TTL_S) == done
    with pytest.raises(LeaseLost):
        await leases.fail(database, held.lease, 500, "broken", TTL_S)
    assert len(await generations.pictures_of(database, key_id, done.id)) == 2

    held = await begun(database, key_id)
    failed = await leases.fail(database, held.lease, 500, "broken", TTL_S)
    assert await leases.fail(database, held.lease, 500, "broken", TTL_S) == failed
    with pytest.raises(LeaseLost):
        await leases.complete(database, held.lease, FILES, 1.0, TTL_S)

    held = await queued_and_claimed(database, key_id)
    await leases.release(database, held.lease)
    await leases.release(database, held.lease)
    assert await generations.depth(database) == Depth(queued=1, processing=0)
    await audit(database)


async def test_an_earlier_owner_has_no_say(database: Database, key_id: int) -> None:
    first = await queued_and_claimed(database, key_id)
    await let_lease_run_out(database, first.generation.id)
    assert await leases.sweep(database, ATTEMPTS, TTL_S) == Swept(requeued=1, failed=0, expired=0)
    second = await claim(database, "worker")  # of the same name even
    assert second.generation.id == first.generation.id
    assert second.lease.job_id != first.lease.job_id
    await every_way_to_go_on(database, first.lease)
    done = await leases.complete(database, second.lease, FILES, 1.0, TTL_S)
    assert (done.state, done.attempt) == (State.COMPLETED, 2)
    assert await ledger.balance(database, key_id) == 49_000
    await audit(database)


async def test_a_stranger_has_no_say_either(database: Database, key_id: int) -> None:
    held = await queued_and_claimed(database, key_id)
    await every_way_to_go_on(database, Lease(held.lease.generation_id, "stranger", held.lease.attempt))
    await every_way_to_go_on(database, Lease("0" * 32, "worker", 1))


async def test_a_lease_that_ran_out_is_still_its_owners_until_somebody_takes_it(
    database: Database, key_id: int
) -> None:
    held = await queued_and_claimed(database, key_id)
    await let_lease_run_out(database, held.generation.id)
    await leases.heartbeat(database, held.lease, LEASE_S)
    assert await leases.sweep(database, ATTEMPTS, TTL_S) == Swept(0, 0, 0)
    await let_lease_run_out(database, held.generation.id)
    assert (await leases.complete(database, held.lease, (), 1.0, TTL_S)).state is State.COMPLETED


async def test_heartbeats_hold_a_lease_as_long_as_they_say(database: Database, key_id: int) -> None:
    held = await queued_and_claimed(database, key_id)
    await leases.heartbeat(database, held.lease, 0.01)
    await asyncio.sleep(0.05)
    assert (await leases.sweep(database, ATTEMPTS, TTL_S)).requeued == 1


async def test_what_is_put_back_runs_again_as_often_as_it_takes(database: Database, key_id: int) -> None:
    await generations.submit(database, order(key_id))
    for attempt in range(1, 3 * ATTEMPTS):
        held = await claim(database)
        assert held.lease.attempt == attempt
        await leases.release(database, held.lease)
    await audit(database)


async def test_what_is_put_back_for_later_is_not_taken_up_before(database: Database, key_id: int) -> None:
    held = await queued_and_claimed(database, key_id)
    await leases.release(database, held.lease, delay_s=3600)
    assert await leases.claim(database, "worker", LEASE_S) is None
    await change(database, GenerationRow, held.generation.id, claimable_at=1)
    assert (await claim(database)).generation.id == held.generation.id


async def test_after_its_last_attempt_it_fails_and_is_refunded(database: Database, key_id: int) -> None:
    await generations.submit(database, order(key_id))
    for attempt in range(1, ATTEMPTS + 1):
        held = await claim(database)
        after = await leases.retry(
            database, held.lease, delay_s=0, status=500, message="broken", max_attempts=ATTEMPTS, ttl_s=TTL_S
        )
        assert after.state is (State.QUEUED if attempt < ATTEMPTS else State.FAILED)
    assert (after.error_status, after.error) == (500, "broken")
    assert await ledger.balance(database, key_id) == 50_000
    await audit(database)


async def test_who_waits_has_no_place_in_the_queue(database: Database, key_id: int) -> None:
    held = await begun(database, key_id)
    with pytest.raises(ValueError, match="its caller waits for it"):
        await leases.release(database, held.lease)
    with pytest.raises(ValueError, match="its caller waits for it"):
        await leases.retry(database, held.lease, delay_s=0, status=500, message="x", max_attempts=2, ttl_s=TTL_S)
    await leases.heartbeat(database, held.lease, LEASE_S)


async def test_a_queued_one_whose_workers_die_is_given_up_after_its_last_attempt(
    database: Database, key_id: int
) -> None:
    accepted = await generations.submit(database, order(key_id))
    for attempt in range(1, ATTEMPTS + 1):
        await claim(database)
        await let_lease_run_out(database, accepted.id)
        swept = await leases.sweep(database, ATTEMPTS, TTL_S)
        assert swept == (Swept(1, 0, 0) if attempt < ATTEMPTS else Swept(0, 1, 0))
    given_up = await generations.find(database, key_id, accepted.id)
    assert (given_up.state, given_up.error_status) == (State.FAILED, 500)
    assert await ledger.balance(database, key_id) == 50_000
    await audit(database)


@pytest.mark.parametrize("api", [Api.V1, Api.OPENAI, Api.PAGE])
async def test_one_whose_caller_waited_for_a_dead_gateway_is_refunded(
    database: Database, key_id: int, api: Api
) -> None:
    held = await begun(database, key_id, api)
    await let_lease_run_out(database, held.generation.id)
    assert await leases.sweep(database, ATTEMPTS, TTL_S) == Swept(0, 1, 0)
    assert (await generations.find(database, key_id, held.generation.id)).error_status == 503
    with pytest.raises(LeaseLost):
        await leases.complete(database, held.lease, FILES, 1.0, TTL_S)
    assert await ledger.balance(database, key_id) == 50_000
    await audit(database)


async def test_many_may_sweep_at_once(database_url: str) -> None:
    async with Database(database_url) as one, Database(database_url) as other:
        key_id = (await keys.create(one, "me", 50_000)).key.id
        for _ in range(5):
            held = await queued_and_claimed(one, key_id)
            await let_lease_run_out(one, held.generation.id)
            held = await begun(one, key_id)
            await let_lease_run_out(one, held.generation.id)
        swept = await asyncio.gather(*(leases.sweep(it, ATTEMPTS, TTL_S) for it in (one, other) for _ in range(4)))
        assert (sum(each.requeued for each in swept), sum(each.failed for each in swept)) == (5, 5)
        assert await ledger.balance(one, key_id) == 45_000
        await audit(one)


async def test_expired_results_are_gone_at_once_and_removed_by_the_next_sweep(database: Database, key_id: int) -> None:
    held = await queued_and_claimed(database, key_id)
    done = await leases.complete(database, held.lease, FILES, 1.0, TTL_S)
    kept = await generations.pictures_of(database, key_id, done.id)
    await change(database, GenerationRow, done.id, results_until=1)

    expired = await generations.find(database, key_id, done.id)
    assert (expired.state, expired.expired) == (State.COMPLETED, True)
    assert await generations.pictures_of(database, key_id, done.id) == ()
    assert await generations.picture(database, kept[0].id) is None

    assert await leases.sweep(database, ATTEMPTS, TTL_S) == Swept(0, 0, 1)
    assert await leases.sweep(database, ATTEMPTS, TTL_S) == Swept(0, 0, 0)
    async with database.reading() as session:
        assert (await session.scalars(select(PictureRow.id))).all() == []
    assert (await generations.find(database, key_id, done.id)).expired
    await audit(database)


async def test_more_results_than_a_sweep_removes_at_once_all_go(
    database: Database, key_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_BATCH", 2)
    for _ in range(5):
        held = await begun(database, key_id)
        await leases.complete(database, held.lease, FILES, 1.0, 0.001)
    await asyncio.sleep(0.01)
    assert (await leases.sweep(database, ATTEMPTS, TTL_S)).expired == 5


async def test_rate_windows_that_are_over_are_removed(database: Database) -> None:
    async with database.writing() as session:
        session.add_all(
            [RateWindow(name="over", hits=1, expires_at=1), RateWindow(name="on", hits=1, expires_at=2**60)]
        )
    await leases.sweep(database, ATTEMPTS, TTL_S)
    async with database.reading() as session:
        assert (await session.scalars(select(RateWindow.name))).all() == ["on"]


async def test_one_that_nobody_can_read_does_not_hold_up_the_queue(database: Database, key_id: int) -> None:
    bad = await generations.submit(database, order(key_id))
    await asyncio.sleep(0.002)
    good = await generations.submit(database, order(key_id))
    await change(database, GenerationRow, bad.id, parameters={"what": "a newer gateway understands"})
    with pytest.raises(InvalidParameter):
        await leases.claim(database, "worker", LEASE_S)
    assert (await claim(database)).generation.id == good.id
