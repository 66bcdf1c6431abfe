"""Many callers at once: how many pictures a second, and how well their steps share U-Net calls."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean

from benchmark.chart import Lines
from benchmark.contenders import Setup, Worker, load_engine, worker
from benchmark.figures import Spread, alternating
from benchmark.report import MEMORY_NOTE, Report, Table, memory_table, say
from benchmark.served import Served, serve

CALLERS = (1, 2, 4, 8)
ENGINE = "engine, one after another"
PICTURES = 2
"""By each caller, one after another, each time it is its turn."""


def throughput(setup: Setup, repeats: int) -> Report:
    """The served engine with more and more callers, and the engine in process, in turns."""
    requests = map(setup.request, itertools.count())

    def by_engine(engine: Worker) -> float:
        return 1 / mean(engine.make(each).seconds for each in itertools.islice(requests, PICTURES))

    def by_callers(served: Served, callers: int) -> float:
        seconds = served.make_together([list(itertools.islice(requests, PICTURES)) for _ in range(callers)])
        return callers * PICTURES / seconds

    with worker("engine", load_engine, setup) as engine, serve(setup) as served:
        contenders: dict[str, Callable[[], float]] = {ENGINE: partial(by_engine, engine)}
        contenders |= {_served(callers): partial(by_callers, served, callers) for callers in CALLERS}
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        changes = {name: Counter[str]() for name in contenders}
        for name, measure in contenders.items():
            say(f"warm-up: {name}")
            measure()
        for number, name in alternating(list(contenders), repeats):
            before = served.metrics()
            rates[name].append(contenders[name]())
            changes[name].update({metric: value - before[metric] for metric, value in served.metrics().items()})
            say(f"round {number} of {repeats}: {name}: {rates[name][-1]:.3f} pictures/s")
        peaks = [*engine.peaks(), *served.peaks()]
    return Report(
        title="Many callers at once",
        tables=[throughput_table(rates, changes), memory_table(peaks)],
        notes=[
            f"Each caller is a gRPC client that asks for {PICTURES} pictures, one after another; all start together, "
            "and the rate counts until the last has its answer.",
            "The contenders take turns, forwards and backwards, after a warm-up each.",
            "A guided picture takes two rows of a U-Net call. Requests per execution are those that Triton hands to "
            "the U-Net stage together.",
            MEMORY_NOTE,
        ],
        chart=throughput_chart(rates),
        measurements={"pictures_per_second": rates, "unet_metrics": changes, "peaks": peaks},
    )


def throughput_chart(rates: Mapping[str, Sequence[float]]) -> Lines:
    """The engine, which has no callers, is a level to compare with."""
    spreads = {name: Spread.of(own) for name, own in rates.items()}
    lines = {"served": {callers: spreads[_served(callers)] for callers in CALLERS}}
    return Lines("pictures per second", "callers", lines | {ENGINE: dict.fromkeys(CALLERS, spreads[ENGINE])})


def throughput_table(rates: Mapping[str, Sequence[float]], changes: Mapping[str, Mapping[str, float]]) -> Table:
    """``rates``: pictures per second by round; ``changes``: of the U-Net stage's metrics, over all rounds."""
    rows = [
        [
            name,
            *Spread.of(own).cells("{:.3f}".format),
            _per(changes[name], "tiny_sd_unet_call_rows_sum", "tiny_sd_unet_call_rows_count"),
            _per(changes[name], "nv_inference_count", "nv_inference_exec_count"),
        ]
        for name, own in rates.items()
    ]
    return Table(["", "pictures per second", "from … to", "rows per U-Net call", "requests per execution"], rows)


def _served(callers: int) -> str:
    return f"served, {callers} at once"


def _per(change: Mapping[str, float], total: str, count: str) -> str:
    return f"{change[total] / change[count]:.2f}" if change.get(count) else ""
