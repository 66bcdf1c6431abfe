"""The result of a scenario, and how it reads in Markdown and JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmark.chart import Chart
from benchmark.contenders import Peak
from benchmark.figures import Spread, ratios

MEMORY_NOTE = (
    "Peak memory is the high-water mark of resident memory (VmHWM), loading included. Pages of shared libraries count "
    "in every process, so a sum over processes overstates."
)


@dataclass(frozen=True)
class Table:
    """Column names, and rows of cells. The first column is words, the others are figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Report:
    """What a scenario found out."""

    title: str
    tables: Sequence[Table]
    notes: Sequence[str]
    chart: Chart
    measurements: Mapping[str, Any]
    """Every single measurement, as JSON values and ``Peak``s."""
    failures: Sequence[str] = ()
    """Checks that did not hold."""

    def markdown(self, circumstances: Mapping[str, str]) -> str:
        """A section of a Markdown document."""
        blocks = [
            f"## {self.title}",
            *(f"**Failed check: {failure}.**" for failure in self.failures),
            *(table.markdown() for table in self.tables),
            _list(self.notes),
            "Measured with:",
            _list(f"{name}: {value}" for name, value in circumstances.items()),
        ]
        return "\n\n".join(blocks) + "\n"

    def json(self, circumstances: Mapping[str, str]) -> dict[str, Any]:
        """The single measurements, as JSON values."""
        measurements = dict(self.measurements)
        measurements["peaks"] = [asdict(peak) for peak in measurements["peaks"]]
        return {
            "title": self.title,
            "circumstances": dict(circumstances),
            "measurements": measurements,
            "failures": list(self.failures),
        }


def pair_table(taken: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """A row for each event, from the seconds until it in each round of two situations, and the second's ratio to the
    first.
    """
    first, second = taken
    rows = [
        [
            event,
            *Spread.of(taken[first][event]).cells(seconds),
            *Spread.of(taken[second][event]).cells(seconds),
            *Spread.of(ratios(taken[second][event], taken[first][event])).cells(times),
        ]
        for event in taken[first]
    ]
    columns = [f"seconds, {first}", f"seconds, {second}", "ratio"]
    return Table(["", *(cell for column in columns for cell in (column, "from … to"))], rows)


def memory_table(peaks: Iterable[Peak]) -> Table:
    """One row for each process."""
    return Table(
        ["process", "peak memory, MiB", "peak GPU memory by torch, MiB"],
        [[peak.process, _mebibytes(peak.resident_bytes), _mebibytes(peak.gpu_bytes)] for peak in peaks],
    )


def say(text: str) -> None:
    """Progress, for whoever waits; the report alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def seconds(value: float) -> str:
    """Seconds, to a tenth of a millisecond where there are few.

    >>> seconds(0.01566), seconds(12.3456)
    ('0.0157', '12.35')
    """
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def times(value: float) -> str:
    """A factor.

    >>> times(1.5)
    '1.50x'
    """
    return f"{value:.2f}x"


def surcharge(ratio: float) -> str:
    """A ratio as what comes on top, in percent.

    >>> surcharge(1.0254), surcharge(0.99)
    ('+2.5 %', '-1.0 %')
    """
    return f"{(ratio - 1) * 100:+.1f} %"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f}"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
