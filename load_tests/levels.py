"""How many of all users are at work in the course of a test; ``progress`` goes from 0 to 1, and so do the results."""

from __future__ import annotations

import math

_STEPS = 5
_SPIKE = (0.4, 0.6)
_BASE = 0.25
_RAMP = 0.05


def step(progress: float) -> float:
    """A fifth, two fifths, … all: where it begins to hurt."""
    return (math.floor(progress * _STEPS) + 1) / _STEPS


def spike(progress: float) -> float:
    """A quarter, but all of them in the middle fifth: what a rush does, and whether it is forgotten afterwards."""
    return 1.0 if _SPIKE[0] <= progress < _SPIKE[1] else _BASE


def soak(progress: float) -> float:
    """All, after a ramp over the first twentieth: what only shows after hours."""
    return min(1.0, progress / _RAMP)


def users(share: float, peak: int) -> int:
    """``share`` of ``peak`` users, but one at least."""
    return max(1, round(share * peak))
