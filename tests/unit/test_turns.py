"""The order of turns, against an even sharing that is carried out."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tiny_sd_engine.turns import Speed, Turn, Turns

arrivals = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=12)
"""When each comes, and how much it has to do; a unit of work takes a unit of time."""


@dataclass
class Served:
    turn: Turn
    left: int
    ended: int = 0


def in_turn(coming: list[tuple[int, int]]) -> list[int]:
    """When each is done, in the order of coming."""
    turns, served = Turns(), list[Served]()
    waiting = sorted(coming)
    now = 0
    while waiting or any(each.left for each in served):
        while waiting and waiting[0][0] <= now:
            work = waiting.pop(0)[1]
            served.append(Served(turns.enter(work), work))
        unfinished = [each for each in served if each.left]
        now += 1
        if unfinished:
            first = min(unfinished, key=lambda each: each.turn)
            first.left -= 1
            first.ended = now
            turns.worked(1)
    return [each.ended for each in served]


def sharing_evenly(coming: list[tuple[int, int]]) -> list[float]:
    """The same where everybody there gets as much at every moment."""
    waiting = sorted(coming)
    left: list[float] = []
    ended: list[float] = []
    now = 0.0
    while waiting or any(left):
        there = [index for index, work in enumerate(left) if work]
        until = [now + min(left[index] for index in there) * len(there)] if there else []
        until += [float(waiting[0][0])] if waiting else []
        for index in there:
            left[index] -= (min(until) - now) / len(there)
            if left[index] < 1e-9:
                left[index], ended[index] = 0.0, min(until)
        now = min(until)
        while waiting and waiting[0][0] <= now:
            left.append(float(waiting.pop(0)[1]))
            ended.append(0.0)
    return ended


@given(arrivals)
def test_nobody_is_done_later_than_by_even_sharing(coming: list[tuple[int, int]]) -> None:
    # Work is done in whole units, so one may have to wait for the rest of another's.
    for ours, even in zip(in_turn(coming), sharing_evenly(coming), strict=True):
        assert ours <= even + 1


def test_a_short_one_overtakes_a_long_one_and_two_alike_do_not_slow_each_other_down() -> None:
    assert in_turn([(0, 50), (10, 5)]) == [55, 15]
    assert in_turn([(0, 20), (0, 20)]) == [20, 40]


def test_a_long_one_is_not_put_off_for_ever() -> None:
    short_ones_half_of_the_time = [(moment, 8) for moment in range(0, 400, 16)]
    assert in_turn([(0, 40), *short_ones_half_of_the_time])[1] <= 2 * 40 + 8


def test_who_leaves_takes_no_more_part() -> None:
    turns = Turns()
    leaving, staying = turns.enter(10), turns.enter(30)
    turns.leave(leaving)
    turns.leave(leaving)  # once more does nothing
    turns.worked(20)
    assert turns.enter(9) < staying < turns.enter(11), "the one that stays has had all twenty"


def test_the_speed_is_that_of_late_and_no_job_is_faster_than_its_calls_one_after_another() -> None:
    speed = Speed()
    assert speed.seconds(1, 1) is None
    speed.measured(work=100, calls=10, seconds=2.0)
    assert speed.seconds(work=500, calls=3) == 10.0
    assert speed.seconds(work=500, calls=80) == 16.0
    for _ in range(40):
        speed.measured(work=400, calls=10, seconds=2.0)
    assert abs(speed.seconds(work=500, calls=3) - 2.5) < 0.01
