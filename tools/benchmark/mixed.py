"""Short requests beside long ones: what in-flight batching is for, against batches that run to their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

from benchmark.contenders import Setup
from benchmark.figures import Spread, alternating, ratios
from benchmark.report import MEMORY_NOTE, Report, Table, memory_table, say, seconds, times
from benchmark.served import Served, serve

LONG_STEPS = 100
SHORT_REQUESTS = 3
"""In each round and situation, one after another."""
ALONE, IN_FLIGHT, PLAIN = "alone", "in flight", "plain"


def mixed(setup: Setup, repeats: int) -> Report:
    """A client's short requests, alone and while another keeps a long one going, in turns."""
    short: dict[str, list[float]] = {ALONE: [], IN_FLIGHT: [], PLAIN: []}
    long: dict[str, list[float]] = {IN_FLIGHT: [], PLAIN: []}
    with serve(setup, IN_FLIGHT) as in_flight, serve(setup, PLAIN, config="plain") as plain:
        servers = {ALONE: in_flight, IN_FLIGHT: in_flight, PLAIN: plain}
        for server in (in_flight, plain):
            say(f"warm-up: {server.name}")
            server.make(setup.request(0))
        for number, situation in alternating(list(servers), repeats):
            server = servers[situation]
            with nullcontext() if situation == ALONE else _long_requests(server, setup, long[situation]):
                for _ in range(SHORT_REQUESTS):
                    short[situation].append(server.make(setup.request(number)).seconds)
                    say(f"round {number} of {repeats}: {situation}: {short[situation][-1]:.3f} s")
        peaks = [*in_flight.peaks(), *plain.peaks()]
    return Report(
        title="Short requests beside long ones",
        tables=[*mixed_tables(short, long, setup.steps), memory_table(peaks)],
        notes=[
            f"One client always has a request of {LONG_STEPS} steps under way, while another sends {SHORT_REQUESTS} of "
            f"{setup.steps} steps, one after another. Alone: without the first client.",
            "In flight: the shipped configuration, where a request joins at the next step. Plain: the same models with "
            "`--model-config-name=plain`, where a batch runs to its end before the next begins.",
            "The situations take turns, forwards and backwards; ratios are taken request by request.",
            MEMORY_NOTE,
        ],
        measurements={"short_seconds": short, "long_seconds": long, "peaks": peaks},
    )


def mixed_tables(short: Mapping[str, Sequence[float]], long: Mapping[str, Sequence[float]], steps: int) -> list[Table]:
    """``short``, ``long``: the seconds that the requests took, by situation."""
    columns = ["", f"seconds for {steps} steps", "from … to", f"seconds for {LONG_STEPS} steps", "from … to"]
    rows = [
        [name, *Spread.of(own).cells(seconds), *(Spread.of(long[name]).cells(seconds) if name in long else ["", ""])]
        for name, own in short.items()
    ]
    compared = [(f"{IN_FLIGHT} / {ALONE}", IN_FLIGHT, ALONE), (f"{PLAIN} / {IN_FLIGHT}", PLAIN, IN_FLIGHT)]
    ratio_rows = [
        [label, *Spread.of(ratios(short[above], short[below])).cells(times)] for label, above, below in compared
    ]
    return [
        Table(columns, rows),
        Table([f"requests of {steps} steps", "median", "from … to"], ratio_rows),
    ]


@contextmanager
def _long_requests(server: Served, setup: Setup, taken: list[float]) -> Iterator[None]:
    """Inside the block a client has a long request under way; their seconds are added to ``taken``."""
    enough = threading.Event()

    def send() -> None:
        with server.connect() as ask:
            while not enough.is_set():
                taken.append(ask(setup.request(0, LONG_STEPS)).seconds)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            while not server.metrics()["tiny_sd_jobs_in_flight"] and not sending.done():
                time.sleep(0.02)
            yield
        finally:
            enough.set()
        sending.result()  # raises what stopped it
