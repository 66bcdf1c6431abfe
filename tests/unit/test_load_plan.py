"""load_tests' open loop: what is planned, when it is sent, and from when its time counts; without a server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import islice, pairwise
from statistics import mean, variance

import gevent
import pytest

from load_tests import levels
from load_tests.arrivals import Planned, follow, plan
from load_tests.calls import Call, Failed, Lost, Mark, Refused
from load_tests.figures import Outcome, Record
from load_tests.mix import Mix, Request
from load_tests.traffic import Traffic
from tiny_sd_client.parameters import Parameters

MIX = Mix.parse("draft=9,long=1", "512")
REQUEST = next(plan(MIX, 1.0, "any")).request


def planned(count: int, rate: float = 5.0, seed: str = "7", mix: Mix = MIX) -> list[Planned]:
    return list(islice(plan(mix, rate, seed), count))


def test_a_seed_gives_the_same_plan_again_and_another_one_another() -> None:
    assert planned(100) == planned(100)
    assert [each.due for each in planned(100)] != [each.due for each in planned(100, seed="8")]


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    arrivals = planned(20_000)
    gaps = [after.due - before.due for before, after in pairwise([Planned(0.0, REQUEST), *arrivals])]
    # Exponential gaps: their standard deviation is their mean, 0.2 s; four standard errors of 20,000 are 2.8 %.
    assert mean(gaps) == pytest.approx(0.2, rel=0.03)
    assert variance(gaps) ** 0.5 == pytest.approx(0.2, rel=0.05)
    # Counts in windows of 2 s: as many on average as the rate says, and their variance is their mean.
    windows = [0] * 1900
    for each in arrivals:
        if (window := int(each.due / 2)) < len(windows):
            windows[window] += 1
    assert mean(windows) == pytest.approx(10, rel=0.03)
    assert variance(windows) == pytest.approx(10, rel=0.15)


def test_another_rate_or_mix_keeps_the_rest_of_the_plan() -> None:
    slow, fast = planned(100, rate=1.0), planned(100, rate=10.0)
    assert [each.request for each in slow] == [each.request for each in fast]
    assert [each.due for each in fast] == pytest.approx([each.due / 10 for each in slow])
    others = planned(100, mix=Mix.parse("several", "768"))
    assert [each.due for each in others] == [each.due for each in planned(100)]


class Time:
    """A clock that only moves when somebody waits on it or takes time; ``stop`` is set from ``end`` on."""

    def __init__(self, end: float) -> None:
        self.now = 100.0
        self._end = 100.0 + end

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        stopped = self.now + timeout >= self._end
        self.now = max(self.now, self._end) if stopped else self.now + timeout
        return stopped


def followed(dues: list[float], end: float, taking: float = 0.0) -> list[tuple[float, float]]:
    """When each request was due and sent, since the start; sending one takes ``taking`` seconds."""
    time, sent = Time(end), []

    def send(request: Request, due: float) -> None:
        sent.append((due - 100, time() - 100))
        time.now += taking

    follow((Planned(due, REQUEST) for due in dues), send, time, time)
    return sent


def test_each_request_is_sent_when_it_is_due_until_the_end() -> None:
    assert followed([1.0, 1.5, 4.0, 9.0], end=5.0) == [(1.0, 1.0), (1.5, 1.5), (4.0, 4.0)]


def test_a_generator_that_is_too_slow_sends_late_but_everything_that_was_due() -> None:
    # Each takes 2 s, so the end comes while the second is sent; the fourth was due by then, the fifth was not.
    sent = followed([1.0, 2.0, 3.0, 4.0, 8.0], end=5.0, taking=2.0)
    assert sent == [(1.0, 1.0), (2.0, 3.0), (3.0, 5.0), (4.0, 7.0)]


class Measured:
    """Traffic by a clock of its own, which only ``takes`` moves."""

    def __init__(self, timeout: float = 60.0) -> None:
        self.now = 1000.0
        self.records: list[Record] = []
        self.sizes: list[int] = []
        self.traffic = Traffic(timeout, self._ended, lambda: self.now)

    def _ended(self, record: Record, size: int) -> None:
        self.records.append(record)
        self.sizes.append(size)

    def send(self, call: Call, due: float) -> Record:
        self.traffic.send("grpc", call, REQUEST, due).join()
        return self.records[-1]

    def takes(self, seconds: float, then: Callable[[], int] = lambda: 5, marks: tuple[str, ...] = ()) -> Call:
        def call(parameters: Parameters, mark: Mark) -> int:
            assert parameters == REQUEST.parameters
            for name in marks:
                self.now += seconds / 4
                mark(name)
            self.now += seconds - seconds / 4 * len(marks)
            return then()

        return call


def raising(fault: BaseException) -> Callable[[], int]:
    def fail() -> int:
        raise fault

    return fail


def test_time_counts_from_the_planned_instant_and_the_generators_part_is_told_apart() -> None:
    measured = Measured()
    # Due 3 s ago: a caller who waited his turn would have been as unhappy.
    record = measured.send(measured.takes(2.0), due=997.0)
    assert (record.due, record.late, record.seconds) == (-3.0, 3.0, 5.0)
    assert (record.outcome, record.transport, record.kind) == (Outcome.ANSWERED, "grpc", REQUEST.kind)
    assert measured.sizes == [5]


def test_what_comes_on_the_way_counts_from_the_planned_instant_at_its_first_time() -> None:
    measured = Measured()
    record = measured.send(measured.takes(4.0, marks=("first progress", "first preview", "first preview")), due=999.0)
    assert record.marks == {"first progress": 2.0, "first preview": 3.0}
    assert record.seconds == 5.0


@pytest.mark.parametrize(
    ("fault", "outcome", "problem"),
    [
        (Refused(), Outcome.REFUSED, "refused: busy"),
        (Failed("no such thing"), Outcome.FAILED, "no such thing"),
        (Lost("connection: closed"), Outcome.LOST, "connection: closed"),
        (KeyError("image"), Outcome.FAILED, "KeyError: 'image'"),
    ],
)
def test_every_end_is_recorded_with_its_time(fault: Exception, outcome: Outcome, problem: str) -> None:
    measured = Measured()
    record = measured.send(measured.takes(2.0, raising(fault)), due=1000.0)
    assert (record.outcome, record.problem, record.seconds) == (outcome, problem, 2.0)


def test_a_request_that_is_not_answered_in_time_is_lost_and_holds_up_nobody() -> None:
    measured = Measured(timeout=0.05)
    waiting = gevent.event.Event()
    stuck = measured.traffic.send("grpc", lambda *_: waiting.wait(), REQUEST, 1000.0)
    assert measured.send(measured.takes(1.0), due=1000.0).outcome is Outcome.ANSWERED
    stuck.join()
    assert (measured.records[-1].outcome, measured.records[-1].problem) == (Outcome.LOST, "no answer in time")


def test_the_end_waits_for_what_is_under_way() -> None:
    measured = Measured()

    def slow(parameters: Parameters, mark: Mark) -> int:
        gevent.sleep(0.05)
        return 1

    for _ in range(3):
        measured.traffic.send("grpc", slow, REQUEST, 1000.0)
    measured.traffic.finish()
    assert [record.outcome for record in measured.records] == [Outcome.ANSWERED] * 3


def test_a_request_that_cannot_be_got_rid_of_otherwise_is_lost_at_the_end() -> None:
    measured = Measured(timeout=0.05)

    def stubborn(parameters: Parameters, mark: Mark) -> int:
        while True:
            with suppress(Lost):
                gevent.sleep(60)

    measured.traffic.send("grpc", stubborn, REQUEST, 1000.0)
    measured.traffic.finish()
    assert [record.problem for record in measured.records] == ["no answer before the end of the test"]


def test_shapes_go_up_in_steps_have_a_rush_in_the_middle_or_ramp_up_and_hold() -> None:
    course = [part / 100 for part in range(100)]
    assert [levels.users(levels.step(at), 10) for at in (0, 0.19, 0.2, 0.5, 0.99)] == [2, 2, 4, 6, 10]
    assert {at for at in course if levels.spike(at) == 1} == {part / 100 for part in range(40, 60)}
    assert {levels.users(levels.spike(at), 10) for at in course} == {2, 10}
    assert levels.soak(0.0) == 0
    assert levels.users(levels.soak(0.0), 10) == 1  # never nobody
    assert all(levels.soak(at) == 1 for at in course if at >= 0.05)
