"""Short requests beside long ones: what in-flight batching is for, against batches that run to their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

from benchmark.chart import Bars
from benchmark.contenders import Setup
from benchmark.figures import Spread, alternating, ratios
from benchmark.locked import Locked, serve_locked
from benchmark.report import MEMORY_NOTE, Report, Table, memory_table, say, seconds, times
from benchmark.served import Served, serve

LONG_STEPS = 100
SHORT_REQUESTS = 3
"""In each round and situation, one after another."""
AT_ONCE_LONG, AT_ONCE_SHORT = 2, 6
"""In each round, to see how long each server takes for the same work."""
ALONE, IN_FLIGHT, PLAIN, LOCKED = "alone", "in flight", "plain", Locked.name


def mixed(setup: Setup, repeats: int) -> Report:
    """A client's short requests, alone and while another keeps a long one going, in turns."""
    situations = (ALONE, IN_FLIGHT, PLAIN, LOCKED)
    short: dict[str, list[float]] = {name: [] for name in situations}
    long: dict[str, list[float]] = {name: [] for name in situations[1:]}
    rates: dict[str, list[float]] = {name: [] for name in situations}
    with (
        serve(setup, IN_FLIGHT) as in_flight,
        serve(setup, PLAIN, "--model-config-name=plain") as plain,
        serve_locked(setup) as locked,
    ):
        servers: dict[str, Served | Locked] = {ALONE: in_flight, IN_FLIGHT: in_flight, PLAIN: plain, LOCKED: locked}
        for server in (in_flight, plain, locked):
            say(f"warm-up: {server.name}")
            server.make(setup.request(0))
        for number, situation in alternating(situations, repeats):
            server = servers[situation]
            others: list[float] = []
            start = time.perf_counter()
            with nullcontext() if situation == ALONE else _long_requests(server, setup, others):
                own = [server.make(setup.request(number)).seconds for _ in range(SHORT_REQUESTS)]
            steps = SHORT_REQUESTS * setup.steps + len(others) * LONG_STEPS
            rates[situation].append(steps / (time.perf_counter() - start))
            short[situation] += own
            if others:
                long[situation] += others
            say(f"round {number} of {repeats}: {situation}: {', '.join(f'{each:.3f} s' for each in own)}")
        at_once: dict[str, list[float]] = {name: [] for name in situations[1:]}
        for number, situation in alternating(situations[1:], repeats):
            at_once[situation].append(_all_at_once(servers[situation], setup))
            say(f"round {number} of {repeats}: all at once: {situation}: {at_once[situation][-1]:.3f} s")
        peaks = [*in_flight.peaks(), *plain.peaks(), *locked.peaks()]
    return Report(
        title="Short requests beside long ones",
        tables=[*mixed_tables(short, long, rates, setup.steps), at_once_table(at_once), memory_table(peaks)],
        notes=[
            f"One client always has a request of {LONG_STEPS} steps under way, while another sends {SHORT_REQUESTS} of "
            f"{setup.steps} steps, one after another. Alone: without the first client.",
            "In flight: the shipped configuration, where a request joins at the next step. Plain: the same models with "
            "`--model-config-name=plain`, where a batch runs to its end before the next begins. "
            f"{LOCKED}: diffusers' pipeline as its documentation uses it, one request after another.",
            "Steps a second are those of both clients, until the last long request is done; the fewer requests these "
            "steps belong to, the fewer pictures there are to decode.",
            f"All at once: {AT_ONCE_LONG} requests of {LONG_STEPS} steps and {AT_ONCE_SHORT} of {setup.steps}, sent "
            "together; the seconds until the last is answered.",
            "The situations take turns, forwards and backwards; ratios are taken request by request.",
            MEMORY_NOTE,
        ],
        chart=Bars(
            "seconds per request",
            {
                f"{steps} steps": {name: Spread.of(own) for name, own in taken.items() if own}
                for steps, taken in ((setup.steps, short), (LONG_STEPS, long))
            },
        ),
        measurements={
            "short_seconds": short,
            "long_seconds": long,
            "steps_per_second": rates,
            "at_once_seconds": at_once,
            "peaks": peaks,
        },
    )


def mixed_tables(
    short: Mapping[str, Sequence[float]],
    long: Mapping[str, Sequence[float]],
    rates: Mapping[str, Sequence[float]],
    steps: int,
) -> list[Table]:
    """``short``, ``long``: the seconds that the requests took, by situation; ``rates``: steps a second, by round."""
    columns = ["", f"seconds for {steps} steps", "from … to", f"seconds for {LONG_STEPS} steps", "from … to"]
    rows = [
        [
            name,
            *Spread.of(own).cells(seconds),
            *(Spread.of(long[name]).cells(seconds) if name in long else ["", ""]),
            *Spread.of(rates[name]).cells("{:.1f}".format),
        ]
        for name, own in short.items()
    ]
    compared = [(IN_FLIGHT, ALONE), (PLAIN, IN_FLIGHT), (LOCKED, IN_FLIGHT)]
    ratio_rows = [
        [f"{above} / {below}", *Spread.of(ratios(short[above], short[below])).cells(times)] for above, below in compared
    ]
    return [
        Table([*columns, "steps a second", "from … to"], rows),
        Table([f"requests of {steps} steps", "median", "from … to"], ratio_rows),
    ]


def at_once_table(taken: Mapping[str, Sequence[float]]) -> Table:
    """``taken``: the seconds until the last of the same requests was answered, by round."""
    rows = [
        [name, *Spread.of(own).cells(seconds), *Spread.of(ratios(own, taken[IN_FLIGHT])).cells(times)]
        for name, own in taken.items()
    ]
    return Table(["all at once", "seconds", "from … to", "against in flight", "from … to"], rows)


def _all_at_once(server: Served | Locked, setup: Setup) -> float:
    steps = [LONG_STEPS] * AT_ONCE_LONG + [setup.steps] * AT_ONCE_SHORT
    start = time.perf_counter()

    def send(number: int) -> None:
        with server.connect() as ask:
            ask(setup.request(number, steps[number]))

    with ThreadPoolExecutor(len(steps)) as pool:
        list(pool.map(send, range(len(steps))))
    return time.perf_counter() - start


@contextmanager
def _long_requests(server: Served | Locked, setup: Setup, taken: list[float]) -> Iterator[None]:
    """Inside the block a client has a long request under way; their seconds are added to ``taken``."""
    enough = threading.Event()

    def send() -> None:
        with server.connect() as ask:
            while not enough.is_set():
                taken.append(ask(setup.request(0, LONG_STEPS)).seconds)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            while not server.working() and not sending.done():
                time.sleep(0.02)
            yield
        finally:
            enough.set()
        sending.result()  # raises what stopped it
