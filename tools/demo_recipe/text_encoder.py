"""The text encoder learns what captions say before the U-Net learns to draw it.

Stable Diffusion's U-Net was given a text encoder that had read much already; one that is trained along with the U-Net
learns from few pixels what a shape is called. From the mean of its outputs, linear heads are to tell every attribute of
the scene; they are thrown away afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import CLIPTextModel, CLIPTokenizer

from distillation.record import Entry
from drawings import caption, parse, random_scene
from drawings.palette import COLOURS
from drawings.scene import POSITIONS, SIZES, SUBJECTS, TIMES, Shapes
from drawings.shapes import SHAPES

ATTRIBUTES: Mapping[str, Sequence[Any]] = {
    "shape": (None, *SHAPES),
    "subject": (None, *SUBJECTS),
    "colour": (None, *COLOURS),
    "background": (None, *COLOURS),
    "time": (None, *TIMES),
    "size": (None, *SIZES),
    "position": (None, *POSITIONS),
    "count": (None, 1, 2, 3),
}
"""What a caption may tell, and what of it; None where it tells nothing."""

_CAPTIONS = 64  # a step
_EMPTY = 0.05  # share of them that say nothing


def train(model: CLIPTextModel, tokenizer: CLIPTokenizer, steps: int, seed: int) -> Iterator[Entry]:
    """Train the model in place, a step each time the next entry is asked for."""
    torch.manual_seed(seed)
    chance = np.random.default_rng([seed, 2])
    heads = nn.ModuleDict({name: nn.Linear(model.config.hidden_size, len(ATTRIBUTES[name])) for name in ATTRIBUTES})
    trained = [*model.train().parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    for step in range(1, steps + 1):
        began = time.perf_counter()
        ids, told = _batch(chance, tokenizer)
        means = model(ids)[0].mean(1)
        loss = torch.stack([cross_entropy(heads[name](means), told[name]) for name in ATTRIBUTES]).sum()
        optimizer.zero_grad()
        loss.backward()
        gradient = float(nn.utils.clip_grad_norm_(trained, 1.0))
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        yield Entry(step, loss.item(), loss.item(), 0.0, 0.0, gradient, rate, time.perf_counter() - began)
    model.eval()


def widen_colours(model: CLIPTextModel, tokenizer: CLIPTokenizer, steps: int, seed: int) -> Iterator[Entry]:
    """Train the model in place to say of a colour alone what lies midway between a thing's and a background's, and of
    everything else what it says now; a step each time the next entry is asked for.

    In captions a colour alone is a thing's, whose background has another one. As a negative prompt it led towards such
    backgrounds. Midway between the two the U-Net finds a picture that has the colour anywhere.
    """
    torch.manual_seed(seed)
    chance = np.random.default_rng([seed, 3])
    former = deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-4, total_steps=steps)
    backgrounds = [caption(Shapes(background=colour), chance) for colour in COLOURS]
    alone = _tokens(tokenizer, list(COLOURS))
    midway = torch.lerp(former(alone)[0], former(_tokens(tokenizer, backgrounds))[0], 0.5)
    # What is said of the word itself is said of it at the start of other captions, too.
    over = (alone == tokenizer.eos_token_id).int().cumsum(1) > 0
    wanted = torch.where(over[..., None], midway, former(alone)[0])
    for step in range(1, steps + 1):
        began = time.perf_counter()
        ids = _tokens(tokenizer, _captions(chance))
        others = ~(ids[:, None] == alone).all(-1).any(-1)
        told = model(torch.cat([alone, ids[others]]))[0]
        loss = mse_loss(told, torch.cat([wanted, former(ids[others])[0]]))
        optimizer.zero_grad()
        loss.backward()
        gradient = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        yield Entry(step, loss.item(), loss.item(), 0.0, 0.0, gradient, rate, time.perf_counter() - began)
    model.eval()


def _batch(chance: np.random.Generator, tokenizer: CLIPTokenizer) -> tuple[Tensor, dict[str, Tensor]]:
    """Token ids, [captions, tokens], and which of ``ATTRIBUTES`` each caption tells, [captions] each."""
    captions = _captions(chance)
    scenes = [parse(words) for words in captions]
    told = {
        name: torch.tensor([values.index(getattr(scene, name, None)) for scene in scenes])
        for name, values in ATTRIBUTES.items()
    }
    return _tokens(tokenizer, captions), told


def _captions(chance: np.random.Generator) -> list[str]:
    return [
        "" if chance.random() < _EMPTY else caption(random_scene(chance, "train"), chance) for _ in range(_CAPTIONS)
    ]


def _tokens(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """[captions, tokens] int64."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return ids
