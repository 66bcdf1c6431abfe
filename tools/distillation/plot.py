"""Loss curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from distillation.record import Entry

_PARTS = {
    "loss": "Loss",
    "task": "Task",
    "output": "Output of the teacher",
    "feature": "Features of the teacher",
}
_POINTS = 200


def plot(runs: Mapping[str, Sequence[Entry]], path: Path) -> None:
    """Write a PNG with one panel for each part of the loss and one curve for each run, by its name.

    A curve is the mean over windows of steps, at most 200 of them, with the spread of the middle half around it.
    """
    parts = {
        part: {name: entries for name, entries in runs.items() if any(getattr(entry, part) for entry in entries)}
        for part in _PARTS
    }
    shown = {part: having for part, having in parts.items() if having}
    # Without a teacher the task is all there is.
    if len(shown) == 2:
        del shown["task"]
    rows, columns = (2, 2) if len(shown) > 1 else (1, 1)
    figure = Figure(figsize=(5.5 * columns, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (part, having) in zip(axes, shown.items(), strict=True):
        for name, entries in having.items():
            steps, middle, low, high = _smooth(entries, part)
            (line,) = axis.plot(steps, middle, label=name, linewidth=1.5)
            axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set(title=_PARTS[part], xlabel="step", yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(which="both", alpha=0.25)
        if len(runs) > 1:
            axis.legend()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)


def _smooth(entries: Sequence[Entry], part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Last step, mean and quartiles of each window."""
    values = np.array([getattr(entry, part) for entry in entries])
    steps = np.array([entry.step for entry in entries])
    windows = np.array_split(np.arange(len(values)), min(_POINTS, len(values)))
    low, high = zip(*(np.quantile(values[window], (0.25, 0.75)) for window in windows), strict=True)
    means = [values[window].mean() for window in windows]
    return np.array([steps[window[-1]] for window in windows]), np.array(means), np.array(low), np.array(high)
