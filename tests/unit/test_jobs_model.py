"""The job board against a model of it in plain Python, under random use from two sides."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from board_users import Clock, shown
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tiny_sd_engine import jobs
from tiny_sd_engine.errors import Busy, Cancelled, DuplicateId, EngineError, Overdue, UnknownJob
from tiny_sd_engine.jobs import DROPPED_AFTER_S, LOST_AFTER_S, Board, Preview, Stage


@dataclass
class Known:
    """What a board should know of a job."""

    admitted: float
    seen: float
    deadline: float
    stage: Stage = Stage.DENOISING
    waits: bool = True
    step: int = 0
    cancelled: bool = False
    preview: tuple[int, tuple[str, ...]] | None = None

    @property
    def told(self) -> tuple[Stage, int]:
        queued = self.waits and self.stage == Stage.DENOISING
        return Stage.CANCELLING if self.cancelled else Stage.QUEUED if queued else self.stage, self.step


STEPS = 20
ids = st.sampled_from("abcdef")
stages = st.sampled_from([Stage.DENOISING, Stage.DECODING])


class BoardAndModel(RuleBasedStateMachine):
    """Two processes' views of one board, either used at random, and a model of it in plain Python."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.patch.setattr(jobs, "time", self.clock)
        self.known: dict[str, Known] = {}
        self.active = dict.fromkeys([Stage.DENOISING, Stage.DECODING], 0.0)
        self.newest = dict(self.active)
        self.boards: list[Board] = []

    @initialize()
    def open(self) -> None:
        path = self.folder / f"{time.monotonic_ns()}.sqlite"
        self.boards = [Board(path), Board(path)]

    def teardown(self) -> None:
        for board in self.boards:
            board.close()
        self.patch.undo()

    @property
    def board(self) -> Board:
        self.boards.reverse()
        return self.boards[0]

    def lost(self, job: Known) -> bool:
        patience = DROPPED_AFTER_S if job.waits and job.stage == Stage.DECODING else LOST_AFTER_S
        limit = self.clock.now - patience
        passed_by = job.seen < self.newest[job.stage] - patience
        idle = self.active[job.stage] < limit
        return job.seen < limit and (not job.waits or idle or passed_by)

    def forget(self) -> None:
        self.known = {id: job for id, job in self.known.items() if not self.lost(job)}

    @rule(id=ids, limit=st.integers(1, 5), patience=st.sampled_from([0.0, 3.0, 60.0]))
    def admit(self, id: str, limit: int, patience: float) -> None:
        self.clock.now += 1 / 64  # so that the order of jobs is certain
        deadline = self.clock.time() + patience if patience else 0.0
        kept = {id: job for id, job in self.known.items() if not self.lost(job)}
        expected: type[EngineError] | None = DuplicateId if id in kept else Busy if len(kept) >= limit else None
        if expected:
            with pytest.raises(expected):
                self.board.admit(id, STEPS, deadline, limit)
        else:
            self.board.admit(id, STEPS, deadline, limit)
            self.forget()
            self.known[id] = Known(self.clock.now, self.clock.now, deadline)

    @rule(stage=stages, wanted=st.lists(ids, unique=True, max_size=4))
    def take_up(self, stage: Stage, wanted: list[str]) -> None:
        expected: dict[str, type[EngineError]] = {}
        for id in wanted:
            if job := self.known.get(id):
                if job.cancelled:
                    expected[id] = Cancelled
                elif job.deadline and self.clock.time() > job.deadline:
                    expected[id] = Overdue
                if job.waits:
                    self.newest[stage] = max(self.newest[stage], job.seen)
                job.stage, job.waits, job.seen = stage, False, self.clock.now
        self.active[stage] = self.clock.now
        assert {id: type(reason) for id, reason in self.board.take_up(stage, wanted).items()} == expected

    @rule(steps=st.dictionaries(ids, st.integers(0, STEPS), max_size=3))
    def denoised(self, steps: dict[str, int]) -> None:
        self.board.denoised(steps)
        for id, step in steps.items():
            if job := self.known.get(id):
                job.step, job.seen = step, self.clock.now

    @rule(id=ids, step=st.integers(1, STEPS))
    def show(self, id: str, step: int) -> None:
        self.board.show(id, Preview(step, (id, str(step))))
        if job := self.known.get(id):
            job.preview = (step, (id, str(step)))

    @rule(id=ids)
    def hand_on(self, id: str) -> None:
        self.board.hand_on(id, Stage.DECODING)
        if job := self.known.get(id):
            job.stage, job.waits, job.step, job.seen = Stage.DECODING, True, STEPS, self.clock.now

    @rule(ended=st.lists(ids, max_size=2))
    def remove(self, ended: list[str]) -> None:
        self.board.remove(ended)
        for id in ended:
            self.known.pop(id, None)

    @rule(id=ids)
    def cancel(self, id: str) -> None:
        if job := self.known.get(id):
            job.cancelled = True
            assert self.board.cancel(id).stage == Stage.CANCELLING
        else:
            with pytest.raises(UnknownJob):
                self.board.cancel(id)

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.0, 10.5, 30.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def forget_lost(self) -> None:
        self.board.forget_lost()
        self.forget()

    @invariant()
    def they_agree(self) -> None:
        for board in self.boards:
            assert all(entry.seconds_left is None or entry.seconds_left >= 0 for entry in board.entries())
            told = [(entry.id, (entry.stage, entry.step), entry.seconds) for entry in board.entries()]
            assert told == [(id, job.told, self.clock.now - job.admitted) for id, job in self.known.items()]
            for id in "abcdef":
                job = self.known.get(id)
                assert shown(board.preview(id, 0)) == (job.preview if job else None)


def test_a_board_does_what_its_model_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    BoardAndModel.folder = tmp_path_factory.mktemp("boards")
    machine: Any = BoardAndModel.TestCase
    machine.settings = settings(max_examples=60, stateful_step_count=40)
    machine("runTest").runTest()
