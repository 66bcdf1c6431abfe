"""What the job board survives, and where it is kept."""

from __future__ import annotations

import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import board_users
import pytest
from board_users import SPAWN, admit, in_flight, processes, shown

from tiny_sd_engine import jobs
from tiny_sd_engine.jobs import Board, Preview, Stage
from tiny_sd_engine.settings import SettingError


@pytest.fixture(autouse=True)
def nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the machine stands still; what gets lost and when: test_jobs.py."""
    monkeypatch.setattr(jobs, "LOST_AFTER_S", 600.0)
    monkeypatch.setattr(jobs, "DROPPED_AFTER_S", 600.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs" / "board.sqlite"


@pytest.fixture
def board(path: Path) -> Iterator[Board]:
    with closing(Board(path)) as board:
        yield board


# What it survives


def is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as database:
        return bool(database.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def test_a_process_that_is_killed_in_the_middle_of_a_write_leaves_the_board_as_it_was(board: Board, path: Path) -> None:
    admit(board, "job")
    before = path.stat().st_size
    writing = SPAWN.Event()
    with processes(board_users.stop_in_the_middle_of_a_write, (path, writing)) as (process,):
        assert writing.wait(60)
        assert path.stat().st_size > before, "half of it is in the file"
        process.kill()
        process.join()
    assert path.with_name("board.sqlite-journal").stat().st_size > 0
    for view in (board, Board(path)):
        assert (view.find("job").stage, view.find("job").step) == (Stage.QUEUED, 0)
        admit(view, f"next of {id(view)}")
        view.remove([f"next of {id(view)}"])
    assert board.preview("0", 0) is None
    assert is_sound(path)


def test_processes_that_are_killed_at_any_moment_leave_a_sound_board(board: Board, path: Path) -> None:
    source = random.Random(1)
    admit(board, "mine")
    for _ in range(4):
        working = SPAWN.Event()
        with processes(board_users.work_for_ever, (path, working)) as (process,):
            assert working.wait(60)
            time.sleep(source.uniform(0, 0.05))
            process.kill()
            process.join()
        left = in_flight(board)
        assert left[0] == "mine"
        assert len(left) <= 2, "at most the one that it was at work on"
        board.remove(left[1:])
        assert is_sound(path)


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a board."""

    name: str
    begin: Callable[[Board, Path], Callable[[], None]]
    """Brings it about; returns what ends it."""


def closed(board: Board, path: Path) -> Callable[[], None]:
    board.close()
    return lambda: board.__init__(path)  # type: ignore[misc]


def locked(board: Board, path: Path) -> Callable[[], None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other.close


def read_only(board: Board, path: Path) -> Callable[[], None]:
    def set_to(value: str) -> None:
        board._database.execute(f"PRAGMA query_only={value}")

    set_to("ON")
    return lambda: set_to("OFF")


FAULTS = [
    Fault("Cannot operate on a closed database.", closed),
    Fault("database is locked", locked),
    Fault("attempt to write a readonly database", read_only),
]


def for_a_beat(board: Board, work: AbstractContextManager[None]) -> None:
    """Be at work until the board has been told so once, or could not be told."""
    beats = threading.Semaphore(0)
    transaction = board._transaction

    def counted() -> AbstractContextManager[sqlite3.Connection]:
        beats.release()
        return transaction()

    board._transaction = counted  # type: ignore[method-assign]
    with work:
        for _ in range(2):  # the second begins when the first has ended
            assert beats.acquire(timeout=60)
    board._transaction = transaction  # type: ignore[method-assign]


STAGE_CALLS: dict[str, Callable[[Board], object]] = {
    "take_up": lambda board: board.take_up(Stage.DENOISING, ["job"]),
    "denoised": lambda board: board.denoised({"job": 3}),
    "show": lambda board: board.show("job", Preview(3, ("file",))),
    "hand_on": lambda board: board.hand_on("job", Stage.DECODING),
    "remove": lambda board: board.remove(["job"]),
    "at_work": lambda board: for_a_beat(board, board.at_work(Stage.DENOISING, ["job"])),
    "encoding_texts": lambda board: for_a_beat(board, board.encoding_texts()),
    "forget_lost": lambda board: board.forget_lost(),
}


@pytest.fixture
def impatient(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A board with a job. It does not wait long for others to unlock it, and busy stages say so often."""
    monkeypatch.setattr(jobs, "_LOCK_TIMEOUT_S", 0.01)
    monkeypatch.setattr(jobs, "_BEAT_S", 0.001)
    with closing(Board(path)) as board:
        admit(board, "job")
        yield board


@pytest.mark.parametrize("call", STAGE_CALLS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.begin.__name__)
def test_a_fault_of_the_board_costs_a_stage_nothing_but_a_line_in_the_log(
    impatient: Board, path: Path, caplog: pytest.LogCaptureFixture, fault: Fault, call: str
) -> None:
    end = fault.begin(impatient, path)
    assert not STAGE_CALLS[call](impatient), "nobody is to be stopped"
    end()
    assert set(caplog.messages) == {f"the job board failed: {fault.name}"}
    caplog.clear()
    assert STAGE_CALLS[call](impatient) in (None, {})
    assert caplog.messages == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.begin.__name__)
def test_nobody_is_let_in_past_a_board_that_fails(impatient: Board, path: Path, fault: Fault) -> None:
    end = fault.begin(impatient, path)
    with pytest.raises(sqlite3.Error, match=re.escape(fault.name)):
        admit(impatient, "next")
    end()
    assert in_flight(impatient) == ["job"]
    admit(impatient, "next")
    assert in_flight(impatient) == ["job", "next"]


def test_the_log_names_the_fault_and_not_its_consequences(board: Board) -> None:
    """A full disk makes SQLite roll back by itself."""
    pages = board._database.execute("PRAGMA page_count").fetchone()[0]
    board._database.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.Error, match="full"):
        admit(board, *(f"job-{number}" for number in range(1000)))
    admitted = in_flight(board)
    assert len(admitted) > 10
    board.remove(admitted[5:])
    admit(board, "next")
    assert in_flight(board) == [*admitted[:5], "next"]


def test_a_preview_that_does_not_fit_costs_no_more_than_itself(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    admit(board, "job")
    board.show("job", Preview(3, ("small",)))
    pages = board._database.execute("PRAGMA page_count").fetchone()[0]
    board._database.execute(f"PRAGMA max_page_count={pages}")
    board.show("job", Preview(6, ("x" * 100_000,)))
    assert caplog.messages == ["the job board failed: database or disk is full"]
    assert shown(board.preview("job", 0)) == (3, ("small",))
    board.denoised({"job": 7})
    assert board.find("job").step == 7


def test_a_reader_in_the_way_costs_one_change_and_no_more(impatient: Board, path: Path) -> None:
    """Such as a process that was stopped in the middle of reading."""
    with closing(Board(path)) as other:
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM jobs").fetchall()
        impatient.denoised({"job": 5})
        reader.close()
        assert other.find("job").step == 0
        impatient.denoised({"job": 6})
        assert other.find("job").step == 6
        admit(other, "next")
        assert in_flight(impatient) == ["job", "next"]


# Whose board it is


def test_a_board_is_for_its_user_alone(path: Path, board: Board) -> None:
    assert path.parent.stat().st_mode & 0o777 == 0o700


def boards(folder: Path) -> list[list[str]]:
    """The jobs of each board in a folder."""
    found = []
    for path in folder.glob("*.sqlite"):
        with closing(Board(path)) as board:
            found.append(in_flight(board))
    return sorted(found)


def put_up(folder: Path, *ids: str) -> None:
    """Have a stage of this process's own put up jobs."""
    with processes(board_users.put_up, (folder, [*ids])) as (stage,):
        stage.join(60)
        assert stage.exitcode == 0


def test_the_stages_of_a_server_share_a_board_and_servers_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    ready = [SPAWN.Event(), SPAWN.Event()]
    servers = [("a) R 1 (b", ["a", "b"]), ("tritonserver", ["c"])]
    arguments = [(folder, *each, up) for each, up in zip(servers, ready, strict=True)]
    with processes(board_users.serve, *arguments) as running:
        assert all(up.wait(60) for up in ready)
        for server in running:
            (path,) = folder.glob(f"*-{server.pid}-*.sqlite")
            age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(path.stem.split("-")[2]) / os.sysconf("SC_CLK_TCK")
            assert -1 < age_s < 120, "the name holds the start, as process ids are used again"
        put_up(folder, "d")
        put_up(folder, "e")
        assert boards(folder) == [["a", "b"], ["c"], ["d", "e"]]
    put_up(folder, "f")
    assert boards(folder) == [["d", "e", "f"]], "those of servers that are gone are swept away"


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    space = Path("/proc/self/ns/pid").stat().st_ino
    kept = [f"{space}-notes.sqlite", f"{space}-1-2-3.sqlite", f"{space}-.sqlite", f"{space + 1}-1-1.sqlite", "README"]
    swept = [f"{space}-{os.getpid()}-1.sqlite", f"{space}-{os.getpid()}-1.sqlite-journal"]
    for name in kept + swept:
        (tmp_path / name).touch()
    Board.of_this_server(tmp_path).close()
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= set(kept), "files of others, and boards of other containers, whose processes cannot be seen"
    assert left.isdisjoint(swept), "process ids are used again"
    assert len({name.removesuffix("-journal") for name in left - set(kept)}) == 1, "and there is the server's own board"


def test_a_folder_that_cannot_hold_a_board_is_named(tmp_path: Path) -> None:
    def complaint(path: Path) -> str:
        with pytest.raises(SettingError) as caught:
            Board(path)
        return str(caught.value)

    file = tmp_path / "file"
    file.write_text("This is not a database, " * 100, encoding="utf-8")
    for folder in (file, file / "below"):
        assert complaint(folder / "board.sqlite").startswith(
            f"TINY_SD_JOBS_DIR: cannot keep the job board in {folder}:"
        )
    assert "file is not a database" in complaint(file)
    (tmp_path / "board.sqlite").mkdir()
    assert complaint(tmp_path / "board.sqlite").startswith(
        f"TINY_SD_JOBS_DIR: cannot keep the job board in {tmp_path}:"
    )
    with pytest.raises(SettingError, match=r"^TINY_SD_JOBS_DIR: "):
        Board.of_this_server(file)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SettingError, match=r"^TINY_SD_JOBS_DIR: .*another user"):
        Board(tmp_path / "board.sqlite")
    assert list(tmp_path.iterdir()) == []
