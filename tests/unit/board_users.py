"""Who uses a job board in the tests of it: this process, and others of their own.

It imports little, so that they start fast.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

from tiny_sd_engine import jobs
from tiny_sd_engine.errors import Busy
from tiny_sd_engine.jobs import Board, Preview, Stage

SPAWN = multiprocessing.get_context("spawn")


class Clock:
    """Stands in for the module ``time``: it goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


def admit(board: Board, *ids: str, steps: int = 20) -> None:
    for id in ids:
        board.admit(id, steps, deadline=0.0, limit=99)


def in_flight(board: Board) -> list[str]:
    return [entry.id for entry in board.entries()]


def shown(preview: Preview | None) -> tuple[int, tuple[str, ...]] | None:
    return (preview.step, preview.files) if preview else None


@contextmanager
def processes(target: Callable[..., None], *arguments: tuple[Any, ...]) -> Iterator[list[Any]]:
    """A process for each tuple of arguments; none outlives the block."""
    started = [SPAWN.Process(target=target, args=each) for each in arguments]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def patient() -> None:
    """Let this process wait for the others however long they stand still, and take none of their jobs for lost."""
    jobs._LOCK_TIMEOUT_S = jobs.LOST_AFTER_S = jobs.DROPPED_AFTER_S = 600.0


def admit_many(path: Path, start: Barrier, name: str, limit: int, outcomes: Queue[str]) -> None:
    """Tell for each of 20 jobs whether it was admitted, or why not."""
    patient()
    board = Board(path)
    start.wait()
    for number in range(20):
        try:
            board.admit(f"{name}-{number}", 20, 0.0, limit)
            outcomes.put("admitted")
        except Busy as refusal:
            outcomes.put(str(refusal))


def come_and_go(path: Path, start: Barrier, name: str, limit: int, outcomes: Queue[str]) -> None:
    """Tell for each of 100 jobs, which end soon, how many are in flight with it, or why not."""
    patient()
    faults: list[str] = []

    def catch(fault: logging.LogRecord) -> bool:
        faults.append(fault.getMessage())
        return False

    logging.getLogger("tiny_sd_engine.jobs").addFilter(catch)
    board = Board(path)
    start.wait()
    for number in range(100):
        id = f"{name}-{number}"
        try:
            board.admit(id, 20, 0.0, limit)
        except Busy:
            outcomes.put("refused")
            continue
        together = len(board.entries())
        board.take_up(Stage.DENOISING, [id])
        time.sleep(0.002)
        board.remove([id])
        outcomes.put(faults.pop() if faults else str(together))


def stop_in_the_middle_of_a_write(path: Path, writing: Event) -> None:
    """Change every job, in a transaction so large that SQLite writes to the file before its end; then do nothing."""
    patient()
    board = Board(path)
    board._database.execute("PRAGMA cache_size=1")
    with board._transaction() as database:
        database.execute("UPDATE jobs SET step = 13, cancelled = 1")
        database.executemany("INSERT INTO previews VALUES (?, 13, ?)", [(f"{n}", "x" * 4000) for n in range(100)])
        writing.set()
        time.sleep(600)


def work_for_ever(path: Path, working: Event) -> None:
    """Take one job after the other from admission to its end."""
    patient()
    board = Board(path)
    for number in itertools.count():
        id = f"job-{number}"
        board.admit(id, 20, 0.0, 10**6)
        board.take_up(Stage.DENOISING, [id])
        board.denoised({id: 7})
        board.show(id, Preview(7, ("x" * 10_000,)))
        board.hand_on(id, Stage.DECODING)
        board.take_up(Stage.DECODING, [id])
        board.remove([id])
        working.set()


def put_up(folder: Path, ids: list[str]) -> None:
    """As a stage: put jobs up on the board of the server whose child this process is."""
    patient()
    board = Board.of_this_server(folder)
    for id in ids:
        board.admit(id, 20, 0.0, 99)


def serve(folder: Path, name: str, ids: list[str], ready: Event) -> None:
    """As a server whose process has this name: have a stage for each job put it up; then go on until killed."""
    Path("/proc/self/comm").write_text(name, encoding="utf-8")
    for id in ids:
        stage = SPAWN.Process(target=put_up, args=(folder, [id]))
        stage.start()
        stage.join()
    ready.set()
    time.sleep(600)
