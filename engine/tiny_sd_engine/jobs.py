"""The job board: which generations are in flight, how far they are, which of them are to stop.

The stages run in processes of their own, and Triton tells none of them when a request has left its ensemble. They share
this board instead: one small SQLite file for each server, on tmpfs. SQLite gives transactions across processes and
recovers from one that is killed in the middle of a write; a caller's id is a value in it, never a path.

The first stage admits a job. ``denoising`` and ``decoding`` take it up, keep its entry alive while they work on it, and
hand it on; whoever answers the request last removes it. Between two stages a job may get lost, for Triton drops a
request whose caller is gone. What is lost looks like what waits, but the stage it waits for passes it by, and that is
how it is found (:meth:`Board.forget_lost`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from tiny_sd_engine.errors import Busy, Cancelled, DuplicateId, EngineError, InvalidInput, Overdue, UnknownJob
from tiny_sd_engine.settings import SettingError

log = logging.getLogger(__name__)

LOST_AFTER_S = 10.0
"""How long a job may go unseen by its stage, or wait for one that does nothing or takes up later jobs."""
DROPPED_AFTER_S = 3.0
"""The same for the wait between denoising and decoding, where Triton drops the requests whose callers are gone."""
_ID = re.compile(r"[!-~]{1,128}")
_MOST_PREVIEW_STEPS = 100
_BEAT_S = 1.0
_ON_THE_WAY_S = 0.01
"""Triton takes less than this to bring a request to its next stage."""
_JUST_MISSED_S = 0.1
"""Who has come this long before a run without being part of it will be part of the next; others may not fit in."""
# A transaction takes well under a millisecond: only a process that stands still in the middle of one is waited for.
_LOCK_TIMEOUT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    stage TEXT NOT NULL,              -- that works on it, or that it waits for
    waits INTEGER NOT NULL DEFAULT 1,
    seen REAL NOT NULL,               -- when it came to wait, or was last worked on
    admitted REAL NOT NULL,
    encoded REAL,                     -- when its texts were
    ends REAL,                        -- when denoising is expected to end
    step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL,
    deadline REAL NOT NULL,           -- Unix time; 0: none
    cancelled INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS previews (id TEXT PRIMARY KEY, step INTEGER NOT NULL, files TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stages (
    stage TEXT PRIMARY KEY,
    active REAL NOT NULL,             -- when it last worked
    newest REAL NOT NULL              -- since when the latest of the jobs it took up had waited
) WITHOUT ROWID;
"""


def job_id(given: str) -> str:
    """The id of a new job: the caller's, or for an empty one a new one. Raises :class:`InvalidInput`."""
    if given and not _ID.fullmatch(given):
        raise InvalidInput("id", f"got {len(given)} characters; allowed: 1 to 128 of printable ASCII, no spaces")
    return given or uuid.uuid4().hex


def preview_interval(given: object) -> int:
    """Steps from one preview to the next; 0: none. Raises :class:`InvalidInput`."""
    if type(given) is not int or not 0 <= given <= _MOST_PREVIEW_STEPS:
        allowed = f"an integer from 0 (none) to {_MOST_PREVIEW_STEPS}"
        raise InvalidInput("preview_every", f"got {str(given)[:40]}; allowed: {allowed}")
    return given


class Stage(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    """Admitted; its text is being encoded, or it waits for the U-Net."""
    DENOISING = "denoising"
    DECODING = "decoding"
    CANCELLING = "cancelling"
    """To be stopped at the next occasion."""


@dataclass(frozen=True)
class Entry:
    """A job in flight as the board knows it."""

    id: str
    stage: Stage
    step: int
    steps: int
    seconds: float
    """Since it was admitted."""
    seconds_left: float | None
    """Until the end of denoising, as the denoiser expects it; None: too early to tell."""


@dataclass(frozen=True)
class Preview:
    """What a generation looks like at a step."""

    step: int
    files: tuple[str, ...]
    """Small image files, one for each sample, as base64 text."""


class Board:
    """The board of one server. Every process opens its own; safe to call from several threads.

    Times are CLOCK_MONOTONIC's, which all processes of a machine share and nobody can set.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.parent.stat().st_uid not in (0, os.geteuid()):
                raise PermissionError("the folder belongs to another user")
            self._database = sqlite3.connect(path, _LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            # On tmpfs there is nothing to flush: the board does not outlive the machine, and need not.
            self._database.execute("PRAGMA synchronous=OFF")
            self._database.execute("PRAGMA journal_mode=TRUNCATE")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise SettingError(f"TINY_SD_JOBS_DIR: cannot keep the job board in {path.parent}: {error}") from error

    @classmethod
    def of_this_server(cls, folder: Path) -> Board:
        """The board that all stages of one Triton share: they are children of one process.

        Servers that share ``folder`` have boards of their own.
        """
        # Process ids are used again, so the start is part of the name; and containers that share the folder number
        # their processes each by itself.
        space = Path("/proc/self/ns/pid").stat().st_ino
        parent = os.getppid()
        board = cls(folder / f"{space}-{parent}-{_start(parent)}.sqlite")
        for left in folder.iterdir():
            name = re.fullmatch(rf"{space}-(\d+)-(\d+)\.sqlite(-journal)?", left.name)
            if name and _start(int(name[1])) != name[2]:  # of a server that is gone
                left.unlink(missing_ok=True)
        return board

    def close(self) -> None:
        """Close this process's view of the board."""
        with self._lock:
            self._database.close()

    def admit(self, id: str, steps: int, deadline: float, limit: int) -> None:
        """Put up a new job, if fewer than ``limit`` are in flight.

        ``deadline``: Unix time in seconds; 0: none. Raises :class:`Busy`, or :class:`DuplicateId`.
        """
        now = time.monotonic()
        with self._transaction() as database:
            self._forget_lost(now)
            if database.execute("SELECT 1 FROM jobs WHERE id = ?", (id,)).fetchone():
                raise DuplicateId(id)
            entries = self.entries()
            if len(entries) >= limit:
                left = [entry.seconds_left for entry in entries if entry.seconds_left is not None]
                raise Busy(len(entries), limit, max(1, math.ceil(min(left, default=1.0))))
            database.execute(
                "INSERT INTO jobs (id, stage, seen, admitted, steps, deadline) VALUES (?, ?, ?, ?, ?, ?)",
                (id, Stage.DENOISING, now, now, steps, deadline),
            )

    def encoded(self, ids: Iterable[str]) -> None:
        """The texts of these jobs have been encoded: from now on they wait for denoising itself."""
        now = time.monotonic()
        with faults_logged(), self._transaction() as database:
            database.executemany("UPDATE jobs SET encoded = ? WHERE id = ?", [(now, id) for id in ids])

    def newcomer_waits(self, since: float) -> bool:
        """Whether a job waits for denoising that came after ``since``, or shortly before, and was not taken up then.

        ``since``: what :func:`time.monotonic` said.
        """
        missed, now = since - _JUST_MISSED_S, time.monotonic() - _ON_THE_WAY_S
        with faults_logged(), self._lock:
            newcomers = "waits AND stage = ? AND encoded > ? AND encoded <= ?"
            row = self._database.execute(
                f"SELECT EXISTS (SELECT 1 FROM jobs WHERE {newcomers})", (Stage.DENOISING, missed, now)
            ).fetchone()
            return bool(row[0])
        return False

    def take_up(self, stage: Stage, ids: Iterable[str]) -> dict[str, EngineError]:
        """``stage`` works on these jobs now. Returns those of them that it should stop instead, with the reason."""
        now, clock = time.monotonic(), time.time()
        stops: dict[str, EngineError] = {}
        newest = 0.0
        with faults_logged(), self._transaction() as database:
            for id in ids:
                row = database.execute(
                    "SELECT waits, seen, cancelled, deadline FROM jobs WHERE id = ?", (id,)
                ).fetchone()
                if row is None:  # a request that did not come through the first stage
                    continue
                waits, seen, cancelled, deadline = row
                newest = max(newest, seen) if waits else newest
                if cancelled:
                    stops[id] = Cancelled()
                elif deadline and clock > deadline:
                    stops[id] = Overdue()
                database.execute(
                    "UPDATE jobs SET stage = ?, waits = 0, seen = ? WHERE id = ?",
                    (stage, now, id),
                )
            self._beat(stage, now, newest)
        return stops

    def denoised(self, steps: Mapping[str, int], left: Mapping[str, float] = MappingProxyType({})) -> None:
        """These jobs have got to these steps, and so many seconds are left until their last, where that is known."""
        now = time.monotonic()
        ends = {id: now + seconds for id, seconds in left.items()}
        with faults_logged(), self._transaction() as database:
            database.executemany(
                "UPDATE jobs SET seen = ?, step = ?, ends = ? WHERE id = ?",
                [(now, step, ends.get(id), id) for id, step in steps.items()],
            )

    def show(self, id: str, preview: Preview) -> None:
        """Put up a preview in place of the job's last one."""
        with faults_logged(), self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO previews SELECT id, ?, ? FROM jobs WHERE id = ?",
                (preview.step, json.dumps(preview.files), id),
            )

    def hand_on(self, id: str, stage: Stage) -> None:
        """The job is done here and goes to ``stage``."""
        with faults_logged(), self._transaction() as database:
            database.execute(
                "UPDATE jobs SET stage = ?, waits = 1, seen = ?, step = steps WHERE id = ?",
                (stage, time.monotonic(), id),
            )

    def remove(self, ids: Sequence[str]) -> None:
        """These jobs have ended; those that are not on the board are skipped."""
        with faults_logged(), self._transaction() as database:
            for table in ("jobs", "previews"):
                database.executemany(f"DELETE FROM {table} WHERE id = ?", [(id,) for id in ids])

    def cancel(self, id: str) -> Entry:
        """Ask the stages to stop a job. Raises :class:`UnknownJob`."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET cancelled = 1 WHERE id = ?", (id,))
            return self.find(id)

    def find(self, id: str) -> Entry:
        """The job with this id. Raises :class:`UnknownJob`."""
        for entry in self._select("WHERE id = ?", id):
            return entry
        raise UnknownJob

    def entries(self) -> list[Entry]:
        """All jobs in flight, the oldest first; lost ones stay until they are noticed."""
        return self._select("ORDER BY admitted")

    def preview(self, id: str, after_step: int) -> Preview | None:
        """The job's preview, if it has one of a step later than this."""
        with self._lock:
            row = self._database.execute(
                "SELECT step, files FROM previews WHERE id = ? AND step > ?", (id, after_step)
            ).fetchone()
        return Preview(row[0], tuple(json.loads(row[1]))) if row else None

    @contextmanager
    def at_work(self, stage: Stage, ids: Sequence[str]) -> Iterator[None]:
        """While the block runs, ``stage`` counts as busy and these jobs as worked on, however long that takes."""
        with self._every_beat(
            stage, "UPDATE jobs SET seen = ?1 WHERE id IN (SELECT value FROM json_each(?2))", json.dumps(ids)
        ):
            yield

    @contextmanager
    def encoding_texts(self) -> Iterator[None]:
        """While the block runs, all jobs that wait for denoising may wait for it instead, and none counts as lost."""
        with self._every_beat(
            Stage.DENOISING, "UPDATE jobs SET seen = ?1 WHERE waits AND stage = ?2", Stage.DENOISING.value
        ):
            yield

    @contextmanager
    def _every_beat(self, stage: Stage, statement: str, value: str) -> Iterator[None]:
        done = threading.Event()

        def beat() -> None:
            while not done.wait(_BEAT_S):
                with faults_logged(), self._transaction() as database:
                    now = time.monotonic()
                    self._beat(stage, now, newest=0.0)
                    database.execute(statement, (now, value))

        pulse = threading.Thread(target=beat, daemon=True)
        pulse.start()
        try:
            yield
        finally:
            done.set()
            pulse.join()

    def forget_lost(self) -> None:
        """Drop the jobs that no stage will ever take up."""
        with faults_logged(), self._transaction():
            self._forget_lost(time.monotonic())

    def _forget_lost(self, now: float) -> None:
        # A stage takes up jobs about in the order in which they came to wait. So what still waits when a much later one
        # was taken up, or while the stage has had nothing to do for long, will not come.
        for stage, patience in ((Stage.DENOISING, LOST_AFTER_S), (Stage.DECODING, DROPPED_AFTER_S)):
            self._database.execute(
                """
                DELETE FROM jobs WHERE stage = :stage AND waits AND seen < :now - :patience AND coalesce(
                    (SELECT active < :now - :patience OR jobs.seen < newest - :patience
                     FROM stages WHERE stage = :stage), 1)
                """,
                {"stage": stage, "now": now, "patience": patience},
            )
        self._database.execute("DELETE FROM jobs WHERE NOT waits AND seen < ?", (now - LOST_AFTER_S,))
        self._database.execute("DELETE FROM previews WHERE id NOT IN (SELECT id FROM jobs)")

    def _beat(self, stage: Stage, now: float, newest: float) -> None:
        self._database.execute(
            """
            INSERT INTO stages VALUES (?, ?, ?) ON CONFLICT (stage) DO UPDATE
            SET active = max(active, excluded.active), newest = max(newest, excluded.newest)
            """,
            (stage, now, newest),
        )

    def _select(self, which: str, *values: object) -> list[Entry]:
        now = time.monotonic()
        columns = "id, stage, waits, admitted, ends, step, steps, cancelled"
        with self._lock:
            rows = self._database.execute(f"SELECT {columns} FROM jobs {which}", values).fetchall()
        return [_entry(*row, now=now) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._database.in_transaction:
                yield self._database
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # after some faults SQLite has rolled back already
                    self._database.execute("ROLLBACK")
                raise


@contextmanager
def faults_logged() -> Iterator[None]:
    """A board that cannot be written costs the stages progress and cancellation, not pictures."""
    try:
        yield
    except sqlite3.Error as error:
        log.warning("the job board failed: %s", error)


def _start(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if there is none."""
    try:
        # proc_pid_stat(5): the 22nd field, counted behind the name, which may hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return None


def _entry(  # noqa: PLR0917 -- the columns of a row
    id: str,
    stage: str,
    waits: bool,
    admitted: float,
    ends: float | None,
    step: int,
    steps: int,
    cancelled: bool,
    *,
    now: float,
) -> Entry:
    shown = Stage(stage)
    if cancelled:
        shown = Stage.CANCELLING
    elif waits and shown is Stage.DENOISING:
        shown = Stage.QUEUED
    left = None
    if step == steps:
        left = 0.0
    elif ends is not None:
        left = max(0.0, ends - now)
    return Entry(id, shown, step, steps, now - admitted, left)
