"""The job board: who is let in, what is known of a job, who is told to stop, what becomes of those that get lost."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import board_users
import pytest
from board_users import SPAWN, Clock, admit, in_flight, processes, shown
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tiny_sd_engine import jobs
from tiny_sd_engine.errors import Busy, Cancelled, DuplicateId, InvalidInput, Overdue, UnknownJob
from tiny_sd_engine.jobs import DROPPED_AFTER_S, LOST_AFTER_S, Board, Preview, Stage, job_id, preview_interval

LONG = LOST_AFTER_S + 1
"""Seconds after which patience is over."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(jobs, "time", clock)
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs" / "board.sqlite"


@pytest.fixture
def board(path: Path, clock: Clock) -> Iterator[Board]:
    """A board whose time stands still unless a test puts it forward: nothing gets lost on a slow machine."""
    with closing(Board(path)) as board:
        yield board


# Ids and what else callers send


@pytest.mark.parametrize(
    "id", ["a", "!", "~", "x" * 128, "../../etc/passwd", "';DROP/**/TABLE/**/jobs;--", "%00\\u0000"]
)
def test_an_id_of_printable_ascii_is_taken_as_it_is(id: str) -> None:
    assert job_id(id) == id


def test_who_names_no_id_gets_one_that_nobody_else_has() -> None:
    minted = {job_id("") for _ in range(100)}
    assert len(minted) == 100
    assert all(job_id(id) == id for id in minted)


@pytest.mark.parametrize("id", [" ", "a b", "a\n", "\ta", "a\0b", "x" * 129, "é", "\u202egnp", "\ud800", "\x7f", "🙂"])
def test_an_id_of_anything_else_is_refused_without_repeating_it(id: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        job_id(id)
    assert caught.value.parameter == "id"
    limits = "allowed: 1 to 128 of printable ASCII, no spaces"
    assert str(caught.value) == f"id: got {len(id)} characters; {limits}"


@given(st.text())
def test_an_id_is_either_refused_or_harmless(id: str) -> None:
    try:
        taken = job_id(id)
    except InvalidInput:
        assert not re.fullmatch(r"[!-~]{0,128}", id)
    else:
        assert re.fullmatch(r"[!-~]{1,128}", taken)
        assert taken == id or not id


@pytest.fixture
def used(board: Board) -> Board:
    """A board on which one job has been for long."""
    admit(board, "other")
    return board


@given(st.text(min_size=1).filter(lambda id: id != "other"))
@example("../../elsewhere")
@example("/tmp/elsewhere")
@example("a' OR '1'='1")
@example("'); DELETE FROM jobs; --")
@example("a\0b")
@example("%")
@example("?1")
@example("x" * 100_000)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_id_is_a_value_on_the_board_and_nothing_else(
    tmp_path: Path, used: Board, monkeypatch: pytest.MonkeyPatch, id: str
) -> None:
    """Also one that would not get through the first stage."""
    monkeypatch.chdir(tmp_path)
    others = used.find("other")
    admit(used, id)
    assert used.take_up(Stage.DENOISING, [id]) == {}
    used.denoised({id: 3})
    used.show(id, Preview(3, ("file",)))
    assert sorted(in_flight(used)) == sorted(["other", id])
    assert (used.find(id).id, used.find(id).step) == (id, 3)
    assert shown(used.preview(id, 0)) == (3, ("file",))
    assert used.cancel(id).stage == Stage.CANCELLING
    assert list(used.take_up(Stage.DECODING, [id])) == [id]
    used.remove([id])
    assert in_flight(used) == ["other"]
    assert (used.find("other").stage, used.find("other").step) == (others.stage, others.step)
    assert {each.name for each in tmp_path.rglob("*")} <= {"jobs", "board.sqlite", "board.sqlite-journal"}


@pytest.mark.parametrize("given", [0, 1, 100])
def test_previews_may_come_every_so_many_steps(given: int) -> None:
    assert preview_interval(given) == given


@pytest.mark.parametrize("given", [-1, 101, 2**70, 1.0, "5", True, None, "x" * 1000])
def test_any_other_number_of_steps_is_refused_by_name(given: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        preview_interval(given)
    assert caught.value.parameter == "preview_every"
    assert str(caught.value) == f"preview_every: got {str(given)[:40]}; allowed: an integer from 0 (none) to 100"


# Who is let in


def test_jobs_are_let_in_up_to_the_limit_and_when_one_has_ended_the_next(board: Board) -> None:
    for id in ("a", "b", "c"):
        board.admit(id, 20, 0.0, limit=3)
    with pytest.raises(Busy):
        board.admit("d", 20, 0.0, limit=3)
    assert in_flight(board) == ["a", "b", "c"]
    board.remove(["b"])
    board.admit("d", 20, 0.0, limit=3)
    assert in_flight(board) == ["a", "c", "d"]


def test_a_refusal_says_how_many_are_in_flight_and_when_to_come_back(board: Board, clock: Clock) -> None:
    def refusal() -> str:
        with pytest.raises(Busy) as caught:
            board.admit("next", 20, 0.0, limit=2)
        return str(caught.value)

    admit(board, "slow", "fast")
    assert refusal() == "busy: 2 of 2 generations are in flight; come back in 1 s"
    board.take_up(Stage.DENOISING, ["slow", "fast"])
    clock.now += 5
    board.denoised({"slow": 1, "fast": 8}, {"slow": 95.0, "fast": 7.5})
    assert refusal() == "busy: 2 of 2 generations are in flight; come back in 8 s"
    clock.now += 6
    assert refusal() == "busy: 2 of 2 generations are in flight; come back in 2 s"
    board.hand_on("fast", Stage.DECODING)
    assert refusal() == "busy: 2 of 2 generations are in flight; come back in 1 s", "never less than a second"


def test_an_id_in_flight_is_refused_even_where_the_server_is_full(board: Board) -> None:
    admit(board, "mine")
    with pytest.raises(DuplicateId) as caught:
        board.admit("mine", 20, 0.0, limit=1)
    assert caught.value.parameter == "id"
    assert str(caught.value) == "id: got 'mine'; allowed: an id that no generation in flight has"
    board.cancel("mine")
    with pytest.raises(DuplicateId):
        admit(board, "mine")
    board.remove(["mine"])
    admit(board, "mine")
    assert board.find("mine").stage == Stage.QUEUED, "it is a new job"


def outcomes(target: Callable[..., None], path: Path, each: int, limit: int) -> list[str]:
    """What 4 processes that start at the same moment tell, each so many times."""
    start, told = SPAWN.Barrier(4), SPAWN.Queue()
    with processes(target, *((path, start, f"process-{n}", limit, told) for n in range(4))):
        return [told.get(timeout=60) for _ in range(4 * each)]


def test_several_processes_together_let_in_no_more_than_the_limit(path: Path) -> None:
    told = outcomes(board_users.admit_many, path, each=20, limit=7)
    assert told.count("admitted") == 7
    assert set(told) - {"admitted"} == {"busy: 7 of 7 generations are in flight; come back in 1 s"}
    with closing(Board(path)) as board:
        assert len(board.entries()) == 7


def test_several_processes_in_which_jobs_come_and_go_never_hold_more_than_the_limit(path: Path) -> None:
    told = outcomes(board_users.come_and_go, path, each=100, limit=2)
    assert set(told) == {"refused", "1", "2"}
    with closing(Board(path)) as board:
        assert board.entries() == []


def test_a_board_may_be_used_from_several_threads(board: Board) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(50):
                id = f"{name}-{number}"
                admit(board, id)
                with board.at_work(Stage.DENOISING, [id]):
                    board.take_up(Stage.DENOISING, [id])
                assert board.find(id).stage == Stage.DENOISING
                assert board.cancel(id).id == id
                board.remove([id])
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert failures == []
    assert board.entries() == []


# What is known of a job


def test_jobs_are_told_of_in_the_order_in_which_they_came(board: Board, clock: Clock) -> None:
    for id in ("z", "a", "m"):
        admit(board, id)
        clock.now += 1
    board.take_up(Stage.DENOISING, ["m"])
    assert [(entry.id, entry.seconds) for entry in board.entries()] == [("z", 3.0), ("a", 2.0), ("m", 1.0)]


def test_a_job_goes_from_the_queue_through_denoising_to_decoding(board: Board) -> None:
    def seen() -> tuple[Stage, int, int]:
        entry = board.find("job")
        return entry.stage, entry.step, entry.steps

    admit(board, "job", steps=30)
    assert seen() == (Stage.QUEUED, 0, 30)
    assert board.take_up(Stage.DENOISING, ["job"]) == {}
    assert seen() == (Stage.DENOISING, 0, 30)
    board.denoised({"job": 12})
    assert board.take_up(Stage.DENOISING, ["job"]) == {}
    assert seen() == (Stage.DENOISING, 12, 30)
    board.hand_on("job", Stage.DECODING)
    assert seen() == (Stage.DECODING, 30, 30)
    assert board.take_up(Stage.DECODING, ["job"]) == {}
    assert seen() == (Stage.DECODING, 30, 30)
    board.remove(["job"])
    with pytest.raises(UnknownJob):
        board.find("job")


def test_the_seconds_left_are_the_denoisers_less_those_that_have_passed(board: Board, clock: Clock) -> None:
    def left() -> float | None:
        return board.find("job").seconds_left

    admit(board, "job", "other")
    board.take_up(Stage.DENOISING, ["job", "other"])
    assert left() is None
    board.denoised({"job": 0, "other": 0}, {"other": 7.0})
    assert left() is None
    board.denoised({"job": 5}, {"job": 30.0, "other": 9.0})
    assert left() == pytest.approx(30)
    clock.now += 4
    assert left() == pytest.approx(26)
    clock.now += 100
    assert left() == 0
    board.hand_on("job", Stage.DECODING)
    assert left() == 0


def test_a_preview_takes_the_place_of_the_last_one_and_goes_with_the_job(board: Board) -> None:
    admit(board, "job", "other")
    assert board.preview("job", 0) is None
    board.show("other", Preview(1, ("theirs",)))
    board.show("job", Preview(5, ("first", "second")))
    assert shown(board.preview("job", 4)) == (5, ("first", "second"))
    assert board.preview("job", 5) is None, "it has been seen"
    board.show("job", Preview(10, ("third",)))
    assert shown(board.preview("job", 0)) == (10, ("third",))
    board.remove(["job"])
    assert board.preview("job", 0) is None
    admit(board, "job")
    assert board.preview("job", 0) is None, "not even that of an earlier job of this name"
    assert shown(board.preview("other", 0)) == (1, ("theirs",))


def test_a_newcomer_waits_once_its_text_is_encoded_and_triton_has_had_time_to_bring_it(
    board: Board, clock: Clock
) -> None:
    admit(board, "a", "b")
    start = clock.monotonic()
    clock.now += 1
    assert not board.newcomer_waits(start), "their texts are not encoded"
    board.encoded(["a"])
    assert not board.newcomer_waits(start), "it is on its way"
    clock.now += 0.05
    assert board.newcomer_waits(start)
    assert board.newcomer_waits(clock.monotonic()), "it has only just missed a run that begins now"
    clock.now += 0.1
    assert board.newcomer_waits(start)
    assert not board.newcomer_waits(clock.monotonic()), "if it could, it would be part of a run that begins now"
    board.take_up(Stage.DENOISING, ["a"])
    assert not board.newcomer_waits(start)


def test_what_has_gone_on_to_decoding_is_no_newcomer_to_denoising(board: Board, clock: Clock) -> None:
    admit(board, "a")
    start = clock.monotonic()
    clock.now += 1
    board.encoded(["a", "nobody"])
    board.hand_on("a", Stage.DECODING)
    clock.now += 1
    assert not board.newcomer_waits(start)


def test_what_is_told_of_a_job_that_is_not_there_is_dropped(board: Board) -> None:
    """Such as one that came straight to the U-Net."""
    admit(board, "other")
    assert board.take_up(Stage.DENOISING, ["job"]) == {}
    board.denoised({"job": 3})
    board.show("job", Preview(3, ("file",)))
    board.hand_on("job", Stage.DECODING)
    board.remove(["job"])
    assert in_flight(board) == ["other"]
    assert board.find("other").stage == Stage.QUEUED
    admit(board, "job")
    assert board.preview("job", 0) is None


# Who is told to stop


@pytest.mark.parametrize("stage", [Stage.DENOISING, Stage.DECODING])
def test_a_job_cancelled_before_a_stage_takes_it_up_is_stopped_by_it(board: Board, stage: Stage) -> None:
    admit(board, "job", "other")
    if stage == Stage.DECODING:
        board.take_up(Stage.DENOISING, ["job", "other"])
        board.hand_on("job", Stage.DECODING)
    assert board.cancel("job").stage == Stage.CANCELLING
    stops = board.take_up(stage, ["other", "job"])
    assert {id: str(reason) for id, reason in stops.items()} == {"job": "cancelled: the generation was cancelled"}
    assert isinstance(stops["job"], Cancelled)


def test_a_job_cancelled_while_it_is_denoised_is_stopped_the_next_time(board: Board) -> None:
    admit(board, "job")
    assert board.take_up(Stage.DENOISING, ["job"]) == {}
    board.denoised({"job": 4})
    entry = board.cancel("job")
    assert (entry.id, entry.stage, entry.step) == ("job", Stage.CANCELLING, 4)
    board.denoised({"job": 5})
    assert (board.find("job").stage, board.find("job").step) == (Stage.CANCELLING, 5)
    assert board.cancel("job").stage == Stage.CANCELLING, "once more does no harm"
    assert isinstance(board.take_up(Stage.DENOISING, ["job"])["job"], Cancelled)
    board.remove(["job"])
    with pytest.raises(UnknownJob):
        board.cancel("job")


def test_a_job_cancelled_between_two_stages_is_stopped_by_the_later(board: Board) -> None:
    admit(board, "job")
    board.take_up(Stage.DENOISING, ["job"])
    board.cancel("job")
    board.hand_on("job", Stage.DECODING)
    assert board.find("job").stage == Stage.CANCELLING
    assert isinstance(board.take_up(Stage.DECODING, ["job"])["job"], Cancelled)


@pytest.mark.parametrize("id", ["", "job2", "jo", "JOB", "%", "x" * 1000])
def test_only_a_job_in_flight_can_be_looked_at_and_cancelled(board: Board, id: str) -> None:
    admit(board, "job")
    for act in (board.cancel, board.find):
        with pytest.raises(UnknownJob) as caught:
            act(id)
        assert str(caught.value) == "unknown_job: no generation in flight has this id; it has ended or never was"
    assert board.find("job").stage == Stage.QUEUED


def test_a_job_whose_deadline_has_passed_is_stopped(board: Board, clock: Clock) -> None:
    board.admit("hasty", 20, clock.time() + 5, limit=9)
    board.admit("patient", 20, clock.time() + 500, limit=9)
    admit(board, "whenever")
    everybody = ["hasty", "patient", "whenever"]
    clock.now += 5
    assert board.take_up(Stage.DENOISING, everybody) == {}
    clock.now += 0.1
    for stage in (Stage.DENOISING, Stage.DECODING):
        stops = board.take_up(stage, everybody)
        message = "overdue: the request's timeout passed before the picture was finished"
        assert {id: str(reason) for id, reason in stops.items()} == {"hasty": message}
        assert isinstance(stops["hasty"], Overdue)
    board.cancel("hasty")
    assert isinstance(board.take_up(Stage.DECODING, ["hasty"])["hasty"], Cancelled)


# What becomes of lost jobs


def wait_for_beat(board: Board, clock: Clock) -> None:
    """Wait until a stage has told that it is at work now."""
    for _ in range(60_000):
        with board._transaction() as database:
            if database.execute("SELECT max(active) FROM stages").fetchone()[0] == clock.now:
                return
        time.sleep(0.001)
    raise AssertionError("no stage has told anything for 60 s")


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_BEAT_S", 0.001)


def test_a_job_that_waits_for_a_stage_with_nothing_to_do_is_lost(board: Board, clock: Clock) -> None:
    admit(board, "never seen")
    clock.now += LOST_AFTER_S
    board.forget_lost()
    assert in_flight(board) == ["never seen"], "not yet"
    clock.now += 0.1
    board.forget_lost()
    assert in_flight(board) == []


@pytest.mark.usefixtures("quick_beats")
def test_a_job_that_waits_for_a_stage_that_is_busy_is_not_lost(board: Board, clock: Clock) -> None:
    admit(board, "running")
    board.take_up(Stage.DENOISING, ["running"])
    admit(board, "waiting")
    with board.at_work(Stage.DENOISING, ["running"]):
        for _ in range(5):
            clock.now += LONG
            wait_for_beat(board, clock)
            board.forget_lost()
            assert in_flight(board) == ["running", "waiting"]
    clock.now += LONG
    board.forget_lost()
    assert in_flight(board) == [], "now nobody works any more"


@pytest.mark.usefixtures("quick_beats")
def test_that_one_stage_is_busy_does_not_keep_what_waits_for_another(board: Board, clock: Clock) -> None:
    admit(board, "running", "lost")
    board.take_up(Stage.DENOISING, ["running", "lost"])
    board.hand_on("lost", Stage.DECODING)
    with board.at_work(Stage.DENOISING, ["running"]):
        clock.now += LONG
        wait_for_beat(board, clock)
        board.forget_lost()
    assert in_flight(board) == ["running"]


@pytest.mark.parametrize(("stage", "patience"), [(Stage.DENOISING, LOST_AFTER_S), (Stage.DECODING, DROPPED_AFTER_S)])
def test_a_job_is_lost_when_a_much_later_one_was_taken_up(
    board: Board, clock: Clock, stage: Stage, patience: float
) -> None:
    def queue_up(id: str) -> None:
        admit(board, id)
        if stage == Stage.DECODING:
            board.take_up(Stage.DENOISING, [id])
            board.hand_on(id, stage)

    queue_up("lost")
    clock.now += patience
    queue_up("next")
    board.take_up(stage, ["next"])
    clock.now += 1
    board.forget_lost()
    assert in_flight(board) == ["lost", "next"], "they might have been mixed up"
    queue_up("later")
    board.take_up(stage, ["next", "later"])
    board.take_up(stage, ["next", "later"])
    board.forget_lost()
    assert in_flight(board) == ["next", "later"]


def test_jobs_that_wait_long_are_not_lost_while_earlier_ones_are_taken_up(board: Board, clock: Clock) -> None:
    """A backlog: a job every 5 seconds, and one every 12 seconds is taken up."""
    everybody = [f"job-{number:02}" for number in range(20)]
    for id in everybody:
        admit(board, id)
        clock.now += 5
        board.take_up(Stage.DENOISING, [])  # at work on others
        board.forget_lost()
    assert in_flight(board) == everybody
    for first, id in enumerate(everybody):
        board.take_up(Stage.DENOISING, [id])
        clock.now += 6
        board.take_up(Stage.DENOISING, [id])
        clock.now += 6
        board.forget_lost()
        assert in_flight(board)[0:] == everybody[first:], id
        board.remove([id])
    assert in_flight(board) == []


@pytest.mark.usefixtures("quick_beats")
def test_a_job_whose_stage_has_died_is_lost_though_another_of_its_kind_goes_on(board: Board, clock: Clock) -> None:
    """As where each GPU has an instance of its own, or one was started again."""
    admit(board, "running", "abandoned")
    board.take_up(Stage.DECODING, ["abandoned"])
    board.take_up(Stage.DECODING, ["running"])
    with board.at_work(Stage.DECODING, ["running"]):
        clock.now += LONG
        wait_for_beat(board, clock)
        board.forget_lost()
    assert in_flight(board) == ["running"]


@pytest.mark.usefixtures("quick_beats")
def test_as_long_as_texts_are_encoded_nobody_can_be_passed_by(board: Board, clock: Clock) -> None:
    """A long text takes its time; one that is in the cache does not."""
    admit(board, "long text", "denoised", "decoded")
    board.take_up(Stage.DENOISING, ["denoised", "decoded"])
    board.hand_on("decoded", Stage.DECODING)
    with board.encoding_texts():
        clock.now += LONG
        wait_for_beat(board, clock)
        admit(board, "in the cache")
        board.take_up(Stage.DENOISING, ["in the cache"])
        board.forget_lost()
    assert sorted(in_flight(board)) == ["in the cache", "long text"], "others' time goes on"


@pytest.mark.parametrize("way", ["denoised", "taken up", "handed on"])
def test_a_job_that_gets_on_is_not_lost_however_long_it_takes(board: Board, clock: Clock, way: str) -> None:
    admit(board, "slow")
    board.take_up(Stage.DENOISING, ["slow"])
    for step in range(1, 10):
        clock.now += LOST_AFTER_S - 1
        if way == "denoised":
            board.denoised({"slow": step})
        elif way == "taken up":
            board.take_up(Stage.DENOISING, ["slow"])
        else:
            board.hand_on("slow", Stage.DECODING)
        board.forget_lost()
        assert in_flight(board) == ["slow"]


def test_a_lost_job_makes_room_for_the_next_and_its_id_and_preview_are_gone(board: Board, clock: Clock) -> None:
    admit(board, "job")
    board.show("job", Preview(3, ("file",)))
    clock.now += LONG
    board.admit("next", 20, 0.0, limit=1)
    assert in_flight(board) == ["next"]
    board.remove(["next"])
    board.admit("job", 20, 0.0, limit=1)
    assert board.preview("job", 0) is None
    assert board.find("job").seconds == 0


@pytest.mark.usefixtures("quick_beats")
def test_a_stage_is_at_work_no_longer_when_its_work_has_failed(board: Board, clock: Clock) -> None:
    before = set(threading.enumerate())
    for work in (board.at_work(Stage.DENOISING, []), board.encoding_texts()):
        with pytest.raises(ZeroDivisionError), work:
            clock.now += 1
            wait_for_beat(board, clock)
            raise ZeroDivisionError
    assert set(threading.enumerate()) <= before
    admit(board, "job")
    clock.now += LONG
    board.forget_lost()
    assert in_flight(board) == []
