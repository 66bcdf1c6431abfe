"""How soon a caller sees something: a stream's first event, step and preview, alone and beside long generations."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from benchmark.chart import Bars
from benchmark.contenders import Setup
from benchmark.figures import Spread, alternating
from benchmark.mixed import LONG_STEPS
from benchmark.report import MEMORY_NOTE, Report, memory_table, pair_table, say
from benchmark.served import serve
from tiny_sd_client import Client, Generation, Progress
from tiny_sd_client.parameters import Parameters

SIGNS = ("first event", "first step", "first preview", "picture")
LONG_ONES = 3
PREVIEW_EVERY = 2
ALONE, BESIDE = "alone", f"beside {LONG_ONES} long ones"


def first_signs(setup: Setup, repeats: int) -> Report:
    """A picture streamed alone and beside long ones, in turns."""
    taken: dict[str, dict[str, list[float]]] = {name: {sign: [] for sign in SIGNS} for name in (ALONE, BESIDE)}
    numbers = itertools.count()
    with serve(setup) as served, Client(f"grpc://{served.url}") as client:
        say("warm-up")
        watch(_stream(client, setup.request(next(numbers))))
        for number, situation in alternating((ALONE, BESIDE), repeats):
            others = [setup.request(next(numbers), LONG_STEPS) for _ in range(LONG_ONES)]
            with nullcontext() if situation == ALONE else _under_way(client, others):
                seen = watch(_stream(client, setup.request(next(numbers))))
            for sign, after in seen.items():
                taken[situation][sign].append(after)
            say(f"round {number} of {repeats}: {situation}: {', '.join(f'{s} {t:.3f} s' for s, t in seen.items())}")
        peaks = served.peaks()
    return Report(
        title="First signs of a picture",
        tables=[pair_table(taken), memory_table(peaks)],
        notes=[
            f"The Python client streams a picture of {setup.steps} steps from `tiny_sd_stream` by gRPC and wants a "
            f"preview every {PREVIEW_EVERY} steps. Seconds are from the call; the server looks for news twenty times "
            "a second. A sign that never came counts as come with the picture.",
            f"Long ones: {LONG_ONES} generations of {LONG_STEPS} steps, all past their first step when the call is "
            "made and cancelled when the picture is there.",
            "The situations take turns (A B, B A, …); ratios are taken within a round.",
            MEMORY_NOTE,
        ],
        chart=Bars(
            "seconds from the call",
            {name: {sign: Spread.of(own) for sign, own in signs.items()} for name, signs in taken.items()},
        ),
        measurements={"seconds": taken, "peaks": peaks},
    )


def watch(events: Iterable[Progress | Generation], now: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Seconds until each sign of a stream that is only now begun."""
    begin = after = now()
    seen: dict[str, float] = {}
    for event in events:
        after = now() - begin
        seen.setdefault("first event", after)
        if isinstance(event, Progress) and event.step:
            seen.setdefault("first step", after)
        if isinstance(event, Progress) and event.previews:
            seen.setdefault("first preview", after)
    return {sign: seen.get(sign, after) for sign in SIGNS}


def _stream(client: Client, parameters: Parameters) -> Iterator[Progress | Generation]:
    return client.stream(preview_every=PREVIEW_EVERY, **parameters.model_dump())


@contextmanager
def _under_way(client: Client, requests: Sequence[Parameters]) -> Iterator[None]:
    """All of them are past their first step for as long as the block; then the server is idle again."""
    jobs = [client.submit(**request.model_dump()) for request in requests]
    try:
        for job in jobs:
            while not job.done() and not ((progress := job.progress()) and progress.step):
                time.sleep(0.02)
        yield
        for job in jobs:
            if job.done():
                job.result()  # raises what went wrong
    finally:
        for job in jobs:
            job.cancel()
        while client.status().in_flight:
            time.sleep(0.02)
