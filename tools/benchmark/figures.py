"""From measurements to figures: pure functions."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")
_SERIES = re.compile(r'^(\w+)\{(?:.*,)?model="([^"]*)"[^}]*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Spread:
    """Median and extremes of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def cells(self, show: Callable[[float], str]) -> list[str]:
        """Two cells of a table: the median, and from where to where."""
        return [show(self.median), f"{show(self.least)} to {show(self.most)}"]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Round by round, so that what slows a whole round cancels out.

    >>> ratios([2.0, 6.0], [1.0, 2.0])
    [2.0, 3.0]
    """
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def alternating(contenders: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Who works when, with the number of the round from 1 on: A B C, C B A, A B C, … so that drift favours nobody."""
    for number in range(1, rounds + 1):
        for contender in contenders if number % 2 else reversed(contenders):
            yield number, contender


def largest_difference(one: bytes, other: bytes) -> int:
    """Of two image files of equal size, in steps of 1/255, over all pixels and channels."""
    pixels = [np.asarray(Image.open(io.BytesIO(file)), dtype=np.int16) for file in (one, other)]
    return int(np.abs(pixels[0] - pixels[1]).max())


def high_water_bytes(status: str) -> int:
    """The most memory that a process was resident with so far, from its /proc/<pid>/status."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ValueError("no VmHWM in this status: the process has ended")
    return int(found[1]) * 1024


def process_name(command: Sequence[str]) -> str:
    """``stub unet`` for the process of a Python model, from its command line; else the program's name.

    >>> process_name(["/backends/python/triton_python_backend_stub", "/models/unet/1/model.py", "region"])
    'stub unet'
    """
    for argument in command[1:]:
        if argument.endswith("/model.py"):
            return f"stub {Path(argument).parents[1].name}"
    return Path(command[0]).name


def read_metrics(text: str, model: str) -> dict[str, float]:
    """The values of one model's series, by metric, summed over all other labels; from Prometheus' text format.

    >>> read_metrics('calls{model="unet",version="1"} 3', "unet")
    {'calls': 3.0}
    """
    values: dict[str, float] = {}
    for name, of_model, value in _SERIES.findall(text):
        if of_model == model:
            values[name] = values.get(name, 0.0) + float(value)
    return values
