"""The report: a page for people, tables for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from load_tests.chart import chart
from load_tests.figures import GENERATOR_SHARE, IMAGE, MARKS, Figures, Line, Record, Spread

_COLUMNS = (
    "group",
    "name",
    "requests",
    "good",
    "goodput_per_s",
    "answered",
    "refused",
    "failed",
    "lost",
    "p50_s",
    "p95_s",
    "p99_s",
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h2 { margin-top: 2.2rem; font-size: 1.15rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
th { font-weight: 600; vertical-align: bottom }
dt { font-weight: 600; float: left; clear: left; width: 7rem }
dd { margin: 0 0 .2rem 7rem; overflow-wrap: anywhere }
p.kept { color: #17692b; font-weight: 600 } p.missed { color: #b3261e; font-weight: 600 }
svg { width: 100%; height: auto }
"""
_NOTES = (
    "Seconds run from the instant at which a request was due, whether or not it could be sent then: in the open loop "
    f"as planned, in the closed loop when its user was ready. p50, p95 and p99 are those of the {IMAGE} of answered "
    "requests, by nearest rank. In time: answered within the SLO; goodput: those, per second of the test. Lost: no "
    "answer at all."
)


@dataclass(frozen=True)
class Report:
    """What a test came to, from what requests, and the conditions that it ran under, by name."""

    figures: Figures
    records: Sequence[Record]
    conditions: Mapping[str, str]

    def verdict(self) -> list[str]:
        """The result, in sentences."""
        result, total = self.figures, self.figures.total
        kept = "kept" if result.kept else "missed"
        sentences = [
            f"SLO {kept}: {_percent(result.share)} of {total.requests} requests had their pictures within "
            f"{result.slo.seconds:g} s; wanted: {_percent(result.slo.share)}, and none lost.",
            f"Goodput {total.goodput:.3g} a second over {result.seconds:.0f} s; {total.refused} refused, "
            f"{total.failed} failed, {total.lost} lost.",
        ]
        if not result.generator_kept_up:
            sentences.append(
                f"The generator was too slow: more than one request in a hundred was sent over "
                f"{GENERATOR_SHARE * result.slo.seconds:g} s after it was due. The times include that; give it more "
                f"processes (--processes)."
            )
        return sentences

    def write(self, folder: Path) -> list[Path]:
        """Write report.html, slo.csv and requests.csv into ``folder``, which is made if need be. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        contents = {"report.html": self.html(), "slo.csv": self.slo_csv(), "requests.csv": self.requests_csv()}
        for name, text in contents.items():
            (folder / name).write_text(text)
        return [folder / name for name in contents]

    def slo_csv(self) -> str:
        """A line for all requests; for each transport, kind, and thing that came on the way; for the generator."""
        result = self.figures
        groups = [("all", [result.total]), ("transport", result.transports), ("kind", result.kinds)]
        rows = [
            [group, line.name, line.requests, line.good, f"{line.goodput:.6f}", *_ends(line), *_seconds(line.image)]
            for group, lines in groups
            for line in lines
        ]
        rows += [
            ["milestone", f"{each.transport}: {each.name}", each.count, "", "", "", "", "", "", *_seconds(each.seconds)]
            for each in result.milestones
        ]
        rows.append(["generator", "late", result.total.requests, "", "", "", "", "", "", *_seconds(result.late)])
        return _csv(_COLUMNS, rows)

    def requests_csv(self) -> str:
        """A line for each request, in the order in which they were due."""
        rows = [
            [f"{record.due:.4f}", f"{record.late:.4f}", record.transport, record.kind, record.outcome.value]
            + [_marked(record, mark) for mark in MARKS]
            + [f"{record.seconds:.4f}", record.problem]
            for record in sorted(self.records, key=lambda record: record.due)
        ]
        marks = [f"{mark.replace(' ', '_')}_s" for mark in MARKS]
        return _csv(["due_s", "late_s", "transport", "kind", "outcome", *marks, "seconds", "problem"], rows)

    def html(self) -> str:
        """A page that needs nothing else."""
        result = self.figures
        first, *further = self.verdict()
        lines = ["", "requests", "in time", "goodput, 1/s", "refused", "failed", "lost", "p50, s", "p95, s", "p99, s"]
        times = ["", "requests", "p50, s", "p95, s", "p99, s"]
        late = [["sent after it was due", str(result.total.requests), *_cells(result.late), f"{result.latest:.3f}"]]
        sections = [
            "<h1>Load test</h1>",
            f'<p class="{"kept" if result.kept else "missed"}">{escape(first)}</p>',
            *(f"<p>{escape(sentence)}</p>" for sentence in further),
            "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in self.conditions.items()) + "</dl>",
            "<h2>Requests</h2>",
            _table(lines, map(_line, [result.total, *result.transports, *result.kinds])),
            "<h2>What came when</h2>",
            _table(
                times,
                (
                    [f"{each.transport}: {each.name}", str(each.count), *_cells(each.seconds)]
                    for each in result.milestones
                ),
            ),
            "<h2>Each request</h2>",
            chart(self.records, result.slo, result.seconds),
            "<h2>The generator</h2>",
            _table([*times, "most, s"], late),
            "<h2>Notes</h2>",
            f"<p>{_NOTES}</p>",
        ]
        if result.problems:
            counted = ([problem, str(count)] for problem, count in result.problems.items())
            sections[-2:-2] = ["<h2>Problems</h2>", _table(["", "requests"], counted)]
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Load test</title>'
            f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(sections) + "\n</body></html>\n"
        )


def _line(line: Line) -> list[str]:
    numbers = (line.requests, line.good, f"{line.goodput:.3g}", line.refused, line.failed, line.lost)
    return [line.name, *map(str, numbers), *_cells(line.image)]


def _ends(line: Line) -> list[int]:
    return [line.answered, line.refused, line.failed, line.lost]


def _cells(spread: Spread) -> list[str]:
    return ["" if value is None else f"{value:.3f}" for value in (spread.p50, spread.p95, spread.p99)]


def _seconds(spread: Spread) -> list[str]:
    return ["" if value is None else f"{value:.4f}" for value in (spread.p50, spread.p95, spread.p99)]


def _marked(record: Record, mark: str) -> str:
    return f"{record.marks[mark]:.4f}" if mark in record.marks else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()
