"""How soon a server is of use: from its start until it is ready, and until its first picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from benchmark.chart import Bars
from benchmark.contenders import Peak, Setup
from benchmark.figures import Spread, alternating
from benchmark.report import MEMORY_NOTE, Report, memory_table, pair_table, say
from benchmark.served import serve

SIGNS = ("ready", "first picture")
OURS, COMPLETED = "as it comes", "configurations completed"
# The last of two contradicting flags counts.
_FLAGS: Mapping[str, Sequence[str]] = {OURS: (), COMPLETED: ("--strict-model-config=false",)}


def start(setup: Setup, repeats: int) -> Report:
    """Servers are started one after another, as they come and with the flag's default of Triton's own."""
    taken: dict[str, dict[str, list[float]]] = {way: {sign: [] for sign in SIGNS} for way in _FLAGS}
    peaks: list[Peak] = []
    for number, way in alternating(list(_FLAGS), repeats):
        began = time.perf_counter()
        with serve(setup, way, *_FLAGS[way]) as served:
            taken[way]["ready"].append(time.perf_counter() - began)
            served.make(setup.request(number))
            taken[way]["first picture"].append(time.perf_counter() - began)
            if number == repeats:
                peaks += served.peaks()
        say(
            f"round {number} of {repeats}: {way}: {', '.join(f'{sign} {taken[way][sign][-1]:.1f} s' for sign in SIGNS)}"
        )
    return Report(
        title="Start of a server",
        tables=[pair_table(taken), memory_table(peaks)],
        notes=[
            "Seconds are from the command that starts Triton; files have been read before, so they come from the page "
            "cache from the second start on. Warming up is part of the start.",
            f"{COMPLETED.capitalize()}: without `--disable-auto-complete-config`, as Triton starts by itself, which "
            "loads every Python model once more to ask it for what its configuration lacks: nothing.",
            "Ways to start take turns (A B, B A, …); ratios are taken within a round.",
            MEMORY_NOTE,
        ],
        chart=Bars(
            "seconds from the start",
            {way: {sign: Spread.of(own) for sign, own in signs.items()} for way, signs in taken.items()},
        ),
        measurements={"seconds": taken, "peaks": peaks},
    )
