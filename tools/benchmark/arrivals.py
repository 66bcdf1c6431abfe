"""Arrivals planned ahead, sent by Locust: a mix of short and long requests in both modes, and a load near capacity."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.chart import Bars
from benchmark.contenders import BenchError, Setup
from benchmark.figures import Spread, alternating, ratios
from benchmark.report import MEMORY_NOTE, Report, Table, memory_table, say, seconds, times
from benchmark.served import Served, serve
from load_tests.figures import percentile
from local_server.install import ROOT

IN_FLIGHT, PLAIN, SHORT_ALONE = "in flight", "plain", "in flight, without the long ones"
CALLERS = 16
"""Of the closed loop that measures capacity; more than the U-Net takes at once on a CPU."""
MIX, SHARE_OF_SHORT = "draft=9,long=1", 0.9
"""Nine requests of 20 steps for each one of 60 to 100."""
SHARE_OF_CAPACITY = {"trace": 0.6, "near-capacity": 0.9}
_LOST_AFTER_S = 1200


@dataclass(frozen=True)
class Answers:
    """What became of one Locust run's requests."""

    rows: Sequence[Mapping[str, str]]
    """Locust's requests.csv."""

    def count(self, outcome: str) -> int:
        """How many ended so."""
        return sum(row["outcome"] == outcome for row in self.rows)

    def seconds(self, kind: str) -> list[float]:
        """Of the answered requests of a kind, from the instant at which they were due; in rising order."""
        return sorted(float(r["seconds"]) for r in self.rows if r["outcome"] == "answered" and r["kind"] == kind)

    @property
    def rate(self) -> float:
        """Answers per second, from the first arrival to the last answer."""
        first = min(float(row["due_s"]) for row in self.rows)
        last = max(float(row["due_s"]) + float(row["seconds"]) for row in self.rows)
        return self.count("answered") / (last - first)


def trace(setup: Setup, repeats: int, run_s: int) -> Report:
    """The same arrivals in flight and batch by batch, in turns: what a short request waits for long ones.

    And in flight as many short ones, without the long ones.
    """
    runs: dict[str, list[Answers]] = {IN_FLIGHT: [], PLAIN: [], SHORT_ALONE: []}
    with serve(setup, IN_FLIGHT) as in_flight, serve(setup, PLAIN, "--model-config-name=plain") as plain:
        capacity = closed_loop(in_flight, setup, run_s, MIX).rate
        rate = SHARE_OF_CAPACITY["trace"] * capacity
        situations = {
            IN_FLIGHT: (in_flight, MIX, rate),
            PLAIN: (plain, MIX, rate),
            SHORT_ALONE: (in_flight, "draft", SHARE_OF_SHORT * rate),
        }
        for number, name in alternating(list(situations), repeats):
            server, mix, its_rate = situations[name]
            runs[name].append(open_loop(server, setup, run_s, mix, rate=its_rate, seed=(number + 1) // 2))
            say(f"round {number} of {repeats}: {name}: {runs[name][-1].count('answered')} answers")
        peaks = [*in_flight.peaks(), *plain.peaks()]
    return Report(
        title="A mix of short and long requests, arriving as they please",
        tables=[*trace_tables(runs), memory_table(peaks)],
        notes=[
            f"Locust's open loop: {rate:.2f} requests a second, planned ahead; {SHARE_OF_CAPACITY['trace']:.0%} of the "
            f"{capacity:.2f} that {CALLERS} callers without a pause got from the server in flight. Both modes get the "
            "same requests at the same instants.",
            f"Mix {MIX}: nine of ten have 20 steps, the tenth 60 to 100; {run_s} s each run. Seconds are from "
            "the instant at which a request was due.",
            "In flight: the shipped configuration. Plain: the same models with `--model-config-name=plain`, where a "
            "batch runs to its end before the next begins.",
            f"{SHORT_ALONE.capitalize()}: short requests alone, at {SHARE_OF_SHORT:.0%} of the rate.",
            "The situations take turns, forwards and backwards; ratios are taken round by round.",
            MEMORY_NOTE,
        ],
        chart=trace_chart(runs),
        measurements={"requests": {name: [run.rows for run in own] for name, own in runs.items()}, "peaks": peaks},
        failures=lost(run for own in runs.values() for run in own),
    )


def near_capacity(setup: Setup, repeats: int, run_s: int) -> Report:
    """Requests of one kind at nine tenths of what the server can do, against callers who never pause."""
    saturated, loaded, offered = [], [], []
    with serve(setup) as served:
        for number in range(1, repeats + 1):
            saturated.append(closed_loop(served, setup, min(run_s, 120), "draft"))
            offered.append(SHARE_OF_CAPACITY["near-capacity"] * saturated[-1].rate)
            loaded.append(open_loop(served, setup, run_s, "draft", rate=offered[-1], seed=number))
            say(f"round {number} of {repeats}: {loaded[-1].rate:.3f} of {offered[-1]:.3f} pictures/s")
        peaks = served.peaks()
    return Report(
        title="Near capacity",
        tables=[near_capacity_table(saturated, loaded, offered), memory_table(peaks)],
        notes=[
            f"Capacity: pictures a second that {CALLERS} callers without a pause get. Offered: "
            f"{SHARE_OF_CAPACITY['near-capacity']:.0%} of that, as a Poisson process planned ahead, for {run_s} s. "
            "Answered: pictures a second from the first arrival to the last answer.",
            "Seconds are from the instant at which a request was due.",
            MEMORY_NOTE,
        ],
        chart=near_capacity_chart(loaded),
        measurements={
            "capacity": [run.rows for run in saturated],
            "offered_per_second": offered,
            "requests": [run.rows for run in loaded],
            "peaks": peaks,
        },
        failures=lost([*saturated, *loaded]),
    )


def trace_tables(runs: Mapping[str, Sequence[Answers]]) -> list[Table]:
    """Seconds by kind and situation, and what some take for each second of others."""
    rows, compared = [], []
    for label, values in waits(runs).items():
        rows += [[f"{label}, {name}", *Spread.of(own).cells(seconds)] for name, own in values.items()]
        for above, below in ((PLAIN, IN_FLIGHT), (IN_FLIGHT, SHORT_ALONE)):
            if above in values and below in values:
                spread = Spread.of(ratios(values[above], values[below]))
                compared.append([f"{label}: {above} / {below}", *spread.cells(times)])
    ends = [[name, *(str(sum(r.count(o) for r in own)) for o in ("answered", "refused"))] for name, own in runs.items()]
    return [
        Table(["", "seconds", "from … to"], rows),
        Table(["", "median", "from … to"], compared),
        Table(["", "answered", "refused"], ends),
    ]


def trace_chart(runs: Mapping[str, Sequence[Answers]]) -> Bars:
    """A group of bars for each kind and percentile, a bar for each situation."""
    of_kind = waits(runs).items()
    return Bars(
        "seconds",
        {name: {label: Spread.of(own[name]) for label, own in of_kind if name in own} for name in runs},
    )


def waits(runs: Mapping[str, Sequence[Answers]]) -> dict[str, dict[str, list[float]]]:
    """Percentiles of seconds by kind, then by situation; one figure a round.

    Situations in which a round has none of a kind, and kinds that no situation has, are left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("draft", "long"):
        having = {name: own for name, own in runs.items() if all(run.seconds(kind) for run in own)}
        for share in (0.5, 0.99) if having else ():
            found[f"{kind} p{share * 100:.0f}"] = {
                name: [percentile(run.seconds(kind), share) for run in own] for name, own in having.items()
            }
    return found


def near_capacity_table(saturated: Sequence[Answers], loaded: Sequence[Answers], offered: Sequence[float]) -> Table:
    """A row for each figure; the spread is over the rounds."""
    p50 = [percentile(run.seconds("draft"), 0.5) for run in loaded]
    p99 = [percentile(run.seconds("draft"), 0.99) for run in loaded]
    rates = "{:.3f}".format
    rows = [
        ["capacity, pictures a second", *Spread.of(run.rate for run in saturated).cells(rates)],
        ["offered", *Spread.of(offered).cells(rates)],
        ["answered", *Spread.of(run.rate for run in loaded).cells(rates)],
        ["answered / offered", *Spread.of(ratios([run.rate for run in loaded], offered)).cells(rates)],
        ["p50, seconds", *Spread.of(p50).cells(seconds)],
        ["p99, seconds", *Spread.of(p99).cells(seconds)],
        ["p99 / p50", *Spread.of(ratios(p99, p50)).cells(times)],
        ["requests", *Spread.of(len(run.rows) for run in loaded).cells("{:.0f}".format)],
        ["refused", *Spread.of(run.count("refused") for run in loaded).cells("{:.0f}".format)],
    ]
    return Table(["", "median", "from … to"], rows)


def near_capacity_chart(loaded: Sequence[Answers]) -> Bars:
    """How long requests take."""
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    waited = [run.seconds("draft") for run in loaded]
    return Bars(
        "seconds", {"": {p: Spread.of(percentile(own, share) for own in waited) for p, share in shares.items()}}
    )


def lost(runs: Iterable[Answers]) -> list[str]:
    """What went wrong with any request, in words."""
    ended = Counter(row["outcome"] for run in runs for row in run.rows)
    many = [(outcome, ended[outcome]) for outcome in ("failed", "lost")]
    return [f"{count} requests {outcome}" for outcome, count in many if count]


def closed_loop(served: Served, setup: Setup, run_s: int, mix: str) -> Answers:
    """Callers who never pause."""
    return _locust(served, setup, run_s, mix, f"--users={CALLERS}", "--think-seconds=0")


def open_loop(served: Served, setup: Setup, run_s: int, mix: str, *, rate: float, seed: int) -> Answers:
    """``rate`` arrivals a second, planned ahead; the same seed gives the same requests at the same instants."""
    return _locust(served, setup, run_s, mix, "--users=4", f"--rate={rate}", f"--seed={seed}")


def _locust(served: Served, setup: Setup, run_s: int, mix: str, *arguments: str) -> Answers:
    """Raises :class:`BenchError` if Locust leaves no report."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--locustfile": ROOT / "load_tests" / "locustfile.py",
            "--transport": "grpc",
            "--grpc-url": f"grpc://{served.url}",
            "--sizes": setup.size,
            "--mix": mix,
            "--run-time": f"{run_s}s",
            "--spawn-rate": 100,
            "--timeout": _LOST_AFTER_S,
            "--slo-seconds": _LOST_AFTER_S,
            "--report": folder,
        }
        command = [str(Path(sys.executable).with_name("locust")), "--headless", "--only-summary"]
        command += [f"{name}={value}" for name, value in options.items()]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        try:
            with (Path(folder) / "requests.csv").open() as file:
                rows = list(csv.DictReader(file))
        except OSError:
            raise BenchError(f"Locust left no report: {done.stderr.strip()[-500:]}") from None
    if not rows:
        raise BenchError("Locust sent nothing: a longer run is needed")
    return Answers(rows)
