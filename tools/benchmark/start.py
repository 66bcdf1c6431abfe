"""How soon a server is of use: from its start until it is ready, and until its first picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.chart import Bars
from benchmark.contenders import Peak, Setup
from benchmark.figures import Spread, alternating
from benchmark.report import MEMORY_NOTE, Report, memory_table, pair_table, say
from benchmark.served import serve
from local_server import LocalServer

SIGNS = ("ready", "first picture")
OURS, COMPLETED = "as it comes", "configurations completed"


class Completing(LocalServer):
    """Triton as it starts by itself: it completes the models' configurations."""

    def command(self, binary: Path, flags: Sequence[str] = ()) -> list[str]:
        """As usual, but for a flag, which no later flag takes back. Without that flag there is nothing to compare."""
        command = super().command(binary, flags)
        command.remove("--disable-auto-complete-config")
        return command


_SERVERS: Mapping[str, type[LocalServer]] = {OURS: LocalServer, COMPLETED: Completing}


def start(setup: Setup, repeats: int) -> Report:
    """Servers are started one after another, as they come and as Triton does by itself."""
    taken: dict[str, dict[str, list[float]]] = {way: {sign: [] for sign in SIGNS} for way in _SERVERS}
    peaks: list[Peak] = []
    for number, way in alternating(list(_SERVERS), repeats):
        began = time.perf_counter()
        with serve(setup, way, server=_SERVERS[way]) as served:
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
