"""A report's figure: bars or lines with whiskers from the least to the most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.figures import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
"""Okabe and Ito's, which colour-blind people tell apart."""
_MARKERS = ("o", "s", "^", "D")
_LOGARITHMIC_FROM = 20
"""Times the shortest bar, beyond which that could hardly be seen beside the longest."""


@dataclass(frozen=True)
class Bars:
    """Groups of bars. Series or groups without a value are left out."""

    unit: str
    series: Mapping[str, Mapping[str, Spread]]
    """By series, then by group; a single series needs no name."""

    def draw(self, axes: Axes) -> None:
        """Each bar bears its median."""
        groups = list(dict.fromkeys(group for own in self.series.values() for group in own))
        width = 0.8 / len(self.series)
        for index, (name, own) in enumerate(self.series.items()):
            places = [groups.index(group) + (index - (len(self.series) - 1) / 2) * width for group in own]
            bars = axes.bar(
                places,
                [spread.median for spread in own.values()],
                width * 0.92,
                yerr=_whiskers(own.values()),
                capsize=3,
                label=name,
                color=_COLOURS[index],
            )
            axes.bar_label(bars, fmt="{:.3g}", padding=2, fontsize=8)
        axes.set_xticks(range(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        medians = [spread.median for own in self.series.values() for spread in own.values()]
        if max(medians) > _LOGARITHMIC_FROM * min(medians):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(self.unit)
        axes.margins(y=0.12)


@dataclass(frozen=True)
class Lines:
    """Lines over a number that doubles."""

    unit: str
    over: str
    series: Mapping[str, Mapping[int, Spread]]

    def draw(self, axes: Axes) -> None:
        """From zero upwards."""
        for index, (name, own) in enumerate(self.series.items()):
            axes.errorbar(
                list(own),
                [spread.median for spread in own.values()],
                yerr=_whiskers(own.values()),
                capsize=3,
                label=name,
                color=_COLOURS[index],
                marker=_MARKERS[index],
            )
        axes.set_xscale("log", base=2)
        places = sorted({place for own in self.series.values() for place in own})
        axes.set_xticks(places, map(str, places))
        axes.set(xlabel=self.over, ylabel=self.unit)
        axes.set_ylim(bottom=0)


Chart = Bars | Lines


def save(chart: Chart, path: Path) -> None:
    """Write ``chart`` as a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- an extra, and slow to load

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    chart.draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    if len(chart.series) > 1:
        axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=150)


def _whiskers(spreads: Any) -> Sequence[Sequence[float]]:
    spreads = list(spreads)
    return [[each.median - each.least for each in spreads], [each.most - each.median for each in spreads]]
