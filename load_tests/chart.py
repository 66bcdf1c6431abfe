"""Each request as a dot: when it was due, and how long it took."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from load_tests.figures import Outcome, Record, Slo

_WIDTH, _HEIGHT = 960, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 16, 40
_DOTS = 4000
"""Of more requests, evenly many are left out."""
_FAR = 2.0
"""The SLO has a line unless it is so many times as high as the highest dot."""
_COLOURS = {
    Outcome.ANSWERED: "#2f6db5",
    Outcome.REFUSED: "#d98c00",
    Outcome.FAILED: "#b3261e",
    Outcome.LOST: "#000000",
}


def chart(records: Sequence[Record], slo: Slo, seconds: float) -> str:
    """An SVG element, of ``records`` from a test that lasted ``seconds``."""
    longest = max([seconds, *(record.due for record in records)])
    highest = max([record.seconds for record in records], default=slo.seconds)
    limits = [slo.seconds] if slo.seconds <= _FAR * highest else []
    top = max([highest, *limits]) * 1.05

    def x(value: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * value / longest:.1f}"

    def y(value: float) -> str:
        return f"{_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / top):.1f}"

    def across(value: float, style: str) -> str:
        return f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}" {style}/>'

    every = math.ceil(len(records) / _DOTS) or 1
    shown = sorted(records, key=lambda record: record.due)[::every]
    elements = [
        *(across(at, 'stroke="#ddd"') for at in _round_values(top)),
        *(_text(_LEFT - 6, y(at), f"{at:g} s", "end") for at in _round_values(top)),
        *(_text(x(at), _HEIGHT - _BOTTOM + 18, f"{at:g} s", "middle") for at in _round_values(longest)),
        *(across(at, 'stroke="#17692b" stroke-dasharray="6 4"') for at in limits),
        *(_text(_WIDTH - _RIGHT, y(at), "SLO", "end") for at in limits),
        *(_dot(x(record.due), y(record.seconds), record.outcome, 0.6) for record in shown),
    ]
    for place, outcome in enumerate(_COLOURS):
        elements.append(_dot(_LEFT + 4 + 110 * place, _HEIGHT - 9, outcome, 1))
        elements.append(_text(_LEFT + 12 + 110 * place, _HEIGHT - 5, outcome.value, "start"))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Seconds of each request, over the instant at '
        f'which it was due" font-size="12" font-family="inherit">{"".join(elements)}</svg>'
    )


def _round_values(most: float) -> Iterator[float]:
    """Some multiples of 1, 2 or 5 and a power of ten, from 0 to ``most``.

    >>> list(_round_values(8.3))
    [0, 2, 4, 6, 8]
    """
    power = 10 ** math.floor(math.log10(most))
    step = next(power * part for part in (0.2, 0.5, 1, 2) if most / (power * part) <= 6)
    for number in range(math.floor(most / step) + 1):
        value = round(number * step, 9)
        yield int(value) if value == int(value) else value


def _dot(x: object, y: object, outcome: Outcome, opacity: float) -> str:
    return f'<circle cx="{x}" cy="{y}" r="3" fill="{_COLOURS[outcome]}" fill-opacity="{opacity}"/>'


def _text(x: object, y: object, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" dy="-3" text-anchor="{anchor}">{text}</text>'
