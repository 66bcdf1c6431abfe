"""Random histories of keys, orders and workers, against a model that is simple enough to be right."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from books import FILES, LEASE_S, TTL_S, audit, change, let_lease_run_out, order
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tiny_sd_gateway import generations, keys, leases, ledger
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import GatewayError, IdempotencyConflict, InsufficientCredits, LeaseLost, UnknownKey
from tiny_sd_gateway.generations import Api, Claim, Generation, Lease, State
from tiny_sd_gateway.leases import Swept
from tiny_sd_gateway.tables import GenerationRow

T = TypeVar("T")

ATTEMPTS = 2
FREE_AGAIN = (State.FAILED, State.CANCELLED)


@dataclass
class Expected:
    """What the model knows of a generation."""

    key_id: int
    api: Api
    price: int
    prompt: str
    name: str | None
    state: State
    lease: Lease | None = None
    attempt: int = 0
    failures: int = 0
    overdue: bool = False
    expired: bool = False
    swept: bool = False
    pictures: int = 0

    def leave(self, state: State) -> None:
        """Its lease is over, and it is in ``state`` now."""
        self.state = state
        self.overdue = False


class History(RuleBasedStateMachine):
    """Whatever is done, and in whatever order, the database says what the model says."""

    empty: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.empty, self.folder / "gateway.db")
        self.runner = asyncio.Runner()
        self.database = Database(f"sqlite:///{self.folder / 'gateway.db'}")
        self.balances: dict[int, int] = {}
        self.revoked: set[int] = set()
        self.generations: dict[str, Expected] = {}
        self.leases: list[Lease] = []
        """All that there ever were: the old ones must not do any harm."""

    def teardown(self) -> None:
        self.now(self.database.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def now(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def fails(self, error: type[GatewayError], work: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(error):
            self.now(work)

    def in_state(self, *states: State) -> list[str]:
        return [id for id, expected in self.generations.items() if expected.state in states]

    # Keys

    @initialize()
    def first_key(self) -> None:
        self.new_key(8000)

    @rule(data=st.data(), what=st.sampled_from(["new", "credit", "credit", "revoke"]))
    def see_to_keys(self, data: st.DataObject, what: str) -> None:
        if what == "new":
            self.new_key(data.draw(st.sampled_from([0, 1000, 5000])))
        elif what == "credit":
            self.credit(data, data.draw(st.sampled_from([-4000, -1000, 1, 2000])))
        elif len(self.balances) > len(self.revoked) + 1:
            self.revoke(data)

    def new_key(self, credits: int) -> None:
        new = self.now(keys.create(self.database, "key", credits))
        assert new.key.id not in self.balances
        self.balances[new.key.id] = credits

    def credit(self, data: st.DataObject, amount: int) -> None:
        key_id = data.draw(st.sampled_from(sorted(self.balances)))
        work = ledger.credit(self.database, key_id, amount)
        if key_id in self.revoked:
            self.fails(UnknownKey, work)
        elif self.balances[key_id] + amount < 0:
            self.fails(InsufficientCredits, work)
        else:
            self.balances[key_id] += amount
            assert self.now(work) == self.balances[key_id]

    def revoke(self, data: st.DataObject) -> None:
        key_id = data.draw(st.sampled_from(sorted(self.balances.keys() - self.revoked)[1:]))
        self.now(keys.revoke(self.database, str(key_id)))
        self.revoked.add(key_id)

    # Orders

    @rule(
        data=st.data(),
        api=st.sampled_from([Api.V1, Api.V2, Api.V2, Api.PAGE]),
        price=st.sampled_from([0, 500, 1000, 3000]),
        name=st.sampled_from([None, None, "a", "b"]),
        prompt=st.sampled_from(["a cat", "a dog"]),
    )
    def ask(self, data: st.DataObject, api: Api, price: int, name: str | None, prompt: str) -> None:
        key_id = data.draw(st.sampled_from(sorted(self.balances)))
        wanted = order(key_id, api, price, name, prompt)
        if api is Api.V2:
            work: Coroutine[Any, Any, Claim | Generation] = generations.submit(self.database, wanted)
        else:
            work = generations.begin(self.database, wanted, "waiter", LEASE_S)
        if key_id in self.revoked:
            self.fails(UnknownKey, work)
            return
        earlier_id, earlier = self.called(key_id, name)
        if earlier and earlier.expired:
            earlier.name = earlier = None
        if earlier and (earlier.api, earlier.prompt) != (api, prompt):
            self.fails(IdempotencyConflict, work)
            return
        if earlier and not (api is not Api.V2 and earlier.state in FREE_AGAIN):
            found = self.now(work)
            assert isinstance(found, Generation)
            assert (found.id, found.state) == (earlier_id, earlier.state)
            return
        if self.balances[key_id] < price:
            self.fails(InsufficientCredits, work)
            return
        if earlier:
            earlier.name = None
        self.balances[key_id] -= price
        done = self.now(work)
        expected = Expected(key_id, api, price, prompt, name, State.QUEUED)
        if isinstance(done, Claim):
            expected.state, expected.lease, expected.attempt = State.PROCESSING, done.lease, 1
            self.leases.append(done.lease)
            done = done.generation
        assert done.id not in self.generations
        self.generations[done.id] = expected

    def called(self, key_id: int, name: str | None) -> tuple[str, Expected | None]:
        for generation_id, each in self.generations.items():
            if name and (each.key_id, each.name) == (key_id, name):
                return generation_id, each
        return "", None

    @precondition(lambda self: self.generations)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        generation_id = data.draw(st.sampled_from(list(self.generations)))
        expected = self.generations[generation_id]
        found = self.now(leases.cancel(self.database, expected.key_id, generation_id, TTL_S))
        if not expected.state.ended:
            self.balances[expected.key_id] += expected.price
            expected.leave(State.CANCELLED)
        assert found.state is expected.state

    # Workers

    @precondition(lambda self: self.generations)
    @rule()
    def claim(self) -> None:
        claim = self.now(leases.claim(self.database, "worker", LEASE_S))
        waiting = self.in_state(State.QUEUED)
        if claim is None:
            assert not waiting
            return
        assert claim.generation.id in waiting
        expected = self.generations[claim.generation.id]
        expected.state, expected.lease = State.PROCESSING, claim.lease
        expected.attempt += 1
        assert claim.lease.attempt == expected.attempt
        self.leases.append(claim.lease)

    def taken_over(self) -> list[Lease]:
        """Leases of generations that have another worker now."""
        return [
            lease
            for lease in self.leases
            if (expected := self.generations[lease.generation_id]).state is State.PROCESSING and lease != expected.lease
        ]

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from((self.taken_over() or self.leases) + self.leases[-5:]))
        expected = self.generations[lease.generation_id]
        queue_only = ["release", "retry"] if expected.api is Api.V2 else []
        what = data.draw(st.sampled_from(["heartbeat", "complete", "fail", *queue_only]))
        work: Coroutine[Any, Any, Any] = {
            "heartbeat": lambda: leases.heartbeat(self.database, lease, LEASE_S),
            "complete": lambda: leases.complete(self.database, lease, FILES, 1.0, TTL_S),
            "fail": lambda: leases.fail(self.database, lease, 500, "broken", TTL_S),
            "release": lambda: leases.release(self.database, lease),
            "retry": lambda: leases.retry(
                self.database, lease, delay_s=0, status=500, message="broken", max_attempts=ATTEMPTS, ttl_s=TTL_S
            ),
        }[what]()
        said_again = {
            "heartbeat": (),
            "complete": (State.COMPLETED,),
            "fail": (State.FAILED,),
            "release": (State.QUEUED,),
            "retry": (State.QUEUED, State.FAILED),
        }[what]
        if lease != expected.lease or expected.state not in (State.PROCESSING, *said_again):
            self.fails(LeaseLost, work)
            return
        self.now(work)
        if expected.state is not State.PROCESSING:
            return
        expected.overdue = False
        if what == "complete":
            expected.pictures = len(FILES)
            expected.leave(State.COMPLETED)
        elif what == "fail":
            self.fail(expected)
        elif what == "release":
            expected.leave(State.QUEUED)
        elif what == "retry":
            self.count_failure(expected)

    def fail(self, expected: Expected) -> None:
        self.balances[expected.key_id] += expected.price
        expected.leave(State.FAILED)

    def count_failure(self, expected: Expected) -> None:
        expected.failures += 1
        if expected.failures < ATTEMPTS:
            expected.leave(State.QUEUED)
        else:
            self.fail(expected)

    # Time

    @precondition(lambda self: self.in_state(State.PROCESSING))
    @rule(data=st.data())
    def lease_runs_out(self, data: st.DataObject) -> None:
        generation_id = data.draw(st.sampled_from(self.in_state(State.PROCESSING)))
        self.now(let_lease_run_out(self.database, generation_id))
        self.generations[generation_id].overdue = True

    @precondition(lambda self: self.with_results())
    @rule(data=st.data())
    def results_expire(self, data: st.DataObject) -> None:
        generation_id = data.draw(st.sampled_from(self.with_results()))
        self.now(change(self.database, GenerationRow, generation_id, results_until=1))
        self.generations[generation_id].expired = True

    def with_results(self) -> list[str]:
        return [id for id, each in self.generations.items() if each.state.ended and not each.swept]

    @rule()
    def sweep(self) -> None:
        requeued = failed = expired = 0
        for each in self.generations.values():
            if each.expired and not each.swept:
                expired += 1
                each.swept, each.name = True, None
            if each.overdue and each.api is Api.V2:
                self.count_failure(each)
            elif each.overdue:
                self.fail(each)
            else:
                continue
            requeued += each.state is State.QUEUED
            failed += each.state is State.FAILED
        assert self.now(leases.sweep(self.database, ATTEMPTS, TTL_S)) == Swept(requeued, failed, expired)

    # What holds always

    @invariant()
    def books_are_right(self) -> None:
        self.now(audit(self.database))
        listed = self.now(keys.accounts(self.database))
        assert {account.key.id: account.balance for account in listed} == self.balances

    @invariant()
    def every_generation_is_as_expected(self) -> None:
        for generation_id, expected in self.generations.items():
            found = self.now(generations.find(self.database, expected.key_id, generation_id))
            assert (found.state, found.attempt, found.expired) == (expected.state, expected.attempt, expected.expired)
            pictures = self.now(generations.pictures_of(self.database, expected.key_id, generation_id))
            assert len(pictures) == (0 if expected.expired else expected.pictures)


def test_every_history_adds_up(migrated_file: Path) -> None:
    History.empty = migrated_file
    run_state_machine_as_test(
        History,
        settings=settings(max_examples=30, stateful_step_count=60, suppress_health_check=list(HealthCheck)),
    )
