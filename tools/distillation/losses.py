"""What the student is to learn: the task, the teacher's output, the teacher's features.

loss = w_task · MSE(student, target) + w_out · MSE(student, teacher) + w_feat · Σ over block pairs of MSE(block, block)

BK-SDM, section 3.2; the pairs and the weights of 1 are those of segmind/distill-sd, which trained Tiny-SD.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from distillation.surgery import Size


@dataclass(frozen=True)
class BlockPair:
    """A block of the student and the block of the teacher whose output it is to give, by their names in the U-Nets."""

    student: str
    teacher: str


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss; the last two need a teacher."""

    task: float = 1.0
    output: float = 1.0
    feature: float = 1.0


@dataclass(frozen=True)
class Losses:
    """The weighted sum and its parts, scalars of float32; without a teacher its parts are 0."""

    total: Tensor
    task: Tensor
    output: Tensor
    feature: Tensor


def block_pairs(levels: int, size: Size) -> tuple[BlockPair, ...]:
    """The pairs for a student of the size, cut from a teacher of so many levels. Their outputs have equal shapes.

    The last down block of a tiny student works at the resolution and width that the teacher's first up block comes
    back to, and so stands in for all that was removed below it.
    """
    if size == "small":
        names = (*_blocks("down", levels), "mid_block", *_blocks("up", levels))
        return tuple(BlockPair(name, name) for name in names)
    down, up = _blocks("down", levels), _blocks("up", levels)
    students = (*down[: levels - 1], *up[: levels - 1])
    teachers = (*down[: levels - 2], up[0], *up[1:])
    return tuple(BlockPair(*names) for names in zip(students, teachers, strict=True))


@contextmanager
def watched(unet: torch.nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """While this is open, each call of the U-Net leaves the outputs of the named blocks in the mapping it gives."""
    seen: dict[str, Tensor] = {}
    hooks = [unet.get_submodule(name).register_forward_hook(partial(_keep, seen, name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def task_loss(prediction: Tensor, target: Tensor) -> Losses:
    """The loss without a teacher. Both: [rows, channels, height, width]."""
    loss = _mse(prediction, target)
    return Losses(loss, loss, torch.zeros_like(loss), torch.zeros_like(loss))


def distillation_loss(
    prediction: Tensor,
    target: Tensor,
    taught: Tensor,
    features: Sequence[tuple[Tensor, Tensor]],
    weights: Weights,
) -> Losses:
    """The loss with a teacher.

    prediction, target, taught: [rows, channels, height, width]; taught is the teacher's prediction
    features: (student's, teacher's) outputs of each pair of blocks
    """
    task = _mse(prediction, target)
    output = _mse(prediction, taught)
    feature = torch.stack([_mse(ours, theirs) for ours, theirs in features]).sum()
    return Losses(weights.task * task + weights.output * output + weights.feature * feature, task, output, feature)


def _blocks(side: str, levels: int) -> list[str]:
    return [f"{side}_blocks.{level}" for level in range(levels)]


def _keep(seen: dict[str, Tensor], name: str, _block: torch.nn.Module, _inputs: Any, output: Any) -> None:
    # A down block gives its output and the skips; the others their output alone.
    seen[name] = output[0] if isinstance(output, tuple) else output


def _mse(ours: Tensor, theirs: Tensor) -> Tensor:
    return mse_loss(ours.float(), theirs.float())
