"""From single requests to the figures of the report: pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

IMAGE = "final image"
MARKS = ("accepted", "first progress", "first preview")
"""What may come before the final image, in this order: the queue's receipt; a stream's first step and first preview."""
GENERATOR_SHARE = 0.01
"""A generator is too slow if it sends more than one request in a hundred later than this share of the SLO's seconds."""


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"  # all its pictures came
    REFUSED = "refused"  # the server is full, or the key's rate limit is reached
    FAILED = "failed"  # any other answer
    LOST = "lost"  # no answer: the connection broke, or it took too long


@dataclass(frozen=True)
class Record:
    """One request, as its caller saw it. All times are in seconds.

    ``due``: when it was to be sent, since the test began. ``late``: how much later it was sent. ``seconds``: from
    ``due`` until it ended. ``marks``: from ``due`` until what came before that, by the names in MARKS.
    """

    transport: str
    kind: str
    due: float
    late: float
    seconds: float
    outcome: Outcome
    marks: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    def row(self) -> list[Any]:
        """As plain values, which travel between processes."""
        return [
            self.transport,
            self.kind,
            self.due,
            self.late,
            self.seconds,
            self.outcome.value,
            dict(self.marks),
            self.problem,
        ]

    @classmethod
    def of(cls, row: Sequence[Any]) -> Record:
        """What :meth:`row` was made from."""
        *start, outcome, marks, problem = row
        return cls(*start, Outcome(outcome), marks, problem)


@dataclass(frozen=True)
class Slo:
    """The objective: at least ``share`` (0 to 1) of all requests have their pictures within ``seconds``."""

    seconds: float
    share: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"slo-seconds: got {self.seconds}; allowed: seconds above 0")
        if not 0 < self.share <= 1:
            raise ValueError(f"slo-share: got {self.share}; allowed: above 0, to 1")

    def kept(self, record: Record) -> bool:
        """Whether the request was answered in time."""
        return record.outcome is Outcome.ANSWERED and record.seconds <= self.seconds


@dataclass(frozen=True)
class Spread:
    """Percentiles of some values; None where there are no values."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of any number of values."""
        ordered = sorted(values)
        return cls(*(percentile(ordered, share) if ordered else None for share in (0.5, 0.95, 0.99)))


@dataclass(frozen=True)
class Line:
    """A group of requests: how many there were, how they ended, and the seconds until the final image.

    ``good``: answered within the SLO; ``goodput``: those, per second of the test.
    """

    name: str
    requests: int
    good: int
    goodput: float
    answered: int
    refused: int
    failed: int
    lost: int
    image: Spread

    @classmethod
    def of(cls, name: str, records: Sequence[Record], slo: Slo, seconds: float) -> Line:
        """Of the ``records`` of a test that lasted ``seconds``."""
        ended = Counter(record.outcome for record in records)
        good = sum(map(slo.kept, records))
        return cls(
            name,
            requests=len(records),
            good=good,
            goodput=good / seconds,
            answered=ended[Outcome.ANSWERED],
            refused=ended[Outcome.REFUSED],
            failed=ended[Outcome.FAILED],
            lost=ended[Outcome.LOST],
            image=Spread.of(record.seconds for record in records if record.outcome is Outcome.ANSWERED),
        )


@dataclass(frozen=True)
class Milestone:
    """When something came, for those of a transport's requests that it came for: ``count`` of them."""

    transport: str
    name: str
    count: int
    seconds: Spread


@dataclass(frozen=True)
class Figures:
    """All figures of a test that lasted ``seconds``.

    ``late``: by how much the generator itself was behind its plan; ``latest``: the most that it was.
    """

    slo: Slo
    seconds: float
    total: Line
    transports: Sequence[Line]
    kinds: Sequence[Line]
    milestones: Sequence[Milestone]
    late: Spread
    latest: float
    problems: Mapping[str, int]

    @property
    def share(self) -> float:
        """Of all requests, those answered within the SLO."""
        return self.total.good / self.total.requests if self.total.requests else 0.0

    @property
    def kept(self) -> bool:
        """Whether the SLO was kept, and nothing was lost. A test without requests kept nothing."""
        return self.share >= self.slo.share and not self.total.lost

    @property
    def generator_kept_up(self) -> bool:
        """Whether requests were sent when they were due, by and large."""
        return (self.late.p99 or 0.0) <= GENERATOR_SHARE * self.slo.seconds


def figures(records: Sequence[Record], slo: Slo, seconds: float) -> Figures:
    """What ``records`` come to. ``seconds``: how long the test lasted."""
    return Figures(
        slo,
        seconds,
        total=Line.of("all", records, slo, seconds),
        transports=_lines(records, slo, seconds, lambda record: record.transport),
        kinds=_lines(records, slo, seconds, lambda record: record.kind),
        milestones=_milestones(records),
        late=Spread.of(record.late for record in records),
        latest=max((record.late for record in records), default=0.0),
        problems=dict(Counter(record.problem for record in records if record.problem).most_common()),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the values, in rising order, that at least ``share`` of them do not exceed (nearest rank).

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.51)
    (2.0, 3.0)
    """
    # 0.95 · 20 must be 19, not a little more.
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)]


def _lines(records: Sequence[Record], slo: Slo, seconds: float, group: Callable[[Record], str]) -> list[Line]:
    return [
        Line.of(name, [record for record in records if group(record) == name], slo, seconds)
        for name in sorted({group(record) for record in records})
    ]


def _milestones(records: Sequence[Record]) -> list[Milestone]:
    found: list[Milestone] = []
    for transport in sorted({record.transport for record in records}):
        own = [record for record in records if record.transport == transport]
        taken = {mark: [record.marks[mark] for record in own if mark in record.marks] for mark in MARKS}
        taken[IMAGE] = [record.seconds for record in own if record.outcome is Outcome.ANSWERED]
        found += [
            Milestone(transport, name, len(seconds), Spread.of(seconds)) for name, seconds in taken.items() if seconds
        ]
    return found
