"""How far results are from exact ones."""

from __future__ import annotations

import torch


def far_apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference, in standard deviations."""
    assert ours.shape == exact.shape
    return float((ours.float() - exact).abs().max() / exact.std())
