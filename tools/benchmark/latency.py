"""One picture at a time: the baselines against the engine against the engine served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from benchmark.baselines import load_diffusers, load_diffusers_best, load_openvino
from benchmark.chart import Bars
from benchmark.contenders import Picture, Setup, Worker, load_engine, worker
from benchmark.figures import Spread, alternating, largest_difference, ratios
from benchmark.report import MEMORY_NOTE, Report, Table, memory_table, say, seconds, surcharge, times
from benchmark.served import Served, serve

CONTENDERS: Mapping[str, Callable[[Setup], AbstractContextManager[Worker | Served]]] = {
    "diffusers": lambda setup: worker("diffusers", load_diffusers, setup),
    "diffusers-best": lambda setup: worker("diffusers-best", load_diffusers_best, setup),
    "openvino": lambda setup: worker("openvino", load_openvino, setup),
    "engine": lambda setup: worker("engine", load_engine, setup),
    "served": serve,
}
BASELINES = ("diffusers", "diffusers-best", "openvino")


def latency(setup: Setup, repeats: int, names: Sequence[str]) -> Report:
    """The named contenders make the same picture, ``repeats`` times in turns."""
    pictures: dict[str, list[Picture]] = {name: [] for name in names}
    with ExitStack() as stack:
        contenders = [stack.enter_context(CONTENDERS[name](setup)) for name in names]
        for contender in contenders:
            say(f"warm-up: {contender.name}")
            contender.make(setup.request(0))
        for number, contender in alternating(contenders, repeats):
            picture = contender.make(setup.request(number))
            say(f"round {number} of {repeats}: {contender.name}: {picture.seconds:.3f} s")
            pictures[contender.name].append(picture)
        peaks = [peak for contender in contenders for peak in contender.peaks()]
        settings = [f"{each.name}: {each.how}." for each in contenders if isinstance(each, Worker) and each.how]
    taken = {name: [picture.seconds for picture in own] for name, own in pictures.items()}
    files = {name: [picture.file for picture in own] for name, own in pictures.items()}
    notes, failures = compare_pictures(files)
    return Report(
        title="One picture at a time",
        tables=[*latency_tables(taken, setup.steps), memory_table(peaks)],
        notes=[
            "The contenders take turns (A B C, C B A, …) after a warm-up of one picture each. Every round has a prompt "
            "and a seed of its own; ratios are taken within a round.",
            "The served engine is timed at its gRPC client, the others inside their own processes, from the parameters "
            "to a PNG file.",
            *settings,
            "Seconds per U-Net call are those of the whole picture, divided by its steps.",
            *notes,
            MEMORY_NOTE,
        ],
        chart=Bars("seconds per picture", {"": {name: Spread.of(own) for name, own in taken.items()}}),
        measurements={"seconds": taken, "peaks": peaks},
        failures=failures,
    )


def latency_tables(taken: Mapping[str, Sequence[float]], steps: int) -> list[Table]:
    """What each contender took, in seconds by round; and their ratios, if there are two to compare."""
    rows = [
        [name, *Spread.of(own).cells(seconds), seconds(Spread.of(own).median / steps)] for name, own in taken.items()
    ]
    tables = [Table(["", "seconds per picture", "from … to", "seconds per U-Net call"], rows)]
    compared = [
        ("serving tax: served / engine - 1", "served", "engine", surcharge),
        *((f"speed-up: {name} / {ours}", name, ours, times) for name in BASELINES for ours in ("engine", "served")),
    ]
    rows = [
        [label, *Spread.of(ratios(taken[above], taken[below])).cells(show)]
        for label, above, below, show in compared
        if above in taken and below in taken
    ]
    return [*tables, Table(["", "median of the rounds", "from … to"], rows)] if rows else tables


def compare_pictures(files: Mapping[str, Sequence[bytes]]) -> tuple[list[str], list[str]]:
    """Notes on how the contenders' PNG files differ, and the checks that failed."""
    notes, failures = [], []
    rounds = len(next(iter(files.values())))
    if "engine" in files and "served" in files:
        unequal = sum(one != other for one, other in zip(files["engine"], files["served"], strict=True))
        if unequal:
            failures.append(f"the served pictures differ from the engine's in {unequal} of {rounds} rounds")
        else:
            notes.append("Served and engine: equal to the byte in every round.")
    for name in BASELINES if "engine" in files else ():
        if name in files:
            difference = max(map(largest_difference, files["engine"], files[name]))
            notes.append(f"Engine and {name}: the largest difference of a pixel is {difference}/255.")
    return notes, failures
