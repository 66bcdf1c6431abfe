"""How far results are from exact ones."""

from __future__ import annotations

import torch


def far_apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """The root mean square of the differences, in standard deviations. The largest one would be a matter of luck."""
    assert ours.shape == exact.shape
    return float((ours.float() - exact).square().mean().sqrt() / exact.std())
