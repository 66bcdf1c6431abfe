"""The autoencoder. It shrinks pictures by 16; its encoder is set by hand, its decoder is trained on drawings.

Latents are plain averages: the brightness of each patch of 16 x 16 pixels, its two colour contrasts, and how brightness
differs between the patch's halves (left and right, top and bottom). A U-Net learns them easily, they mean the
same at every size of picture, and a preview is nearly a linear map. An encoder that was learned along with the decoder
kept them 14 % off, because group normalization shifts colours with whatever else is in the picture.

Whole drawings are shown to the decoder, not crops: it normalizes over the whole picture, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, l1_loss

from distillation.record import Entry, Record
from drawings import draw, random_scene

ARCHITECTURE: dict[str, Any] = {
    "block_out_channels": (16, 24, 48, 96, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 5,
    "up_block_types": ("UpDecoderBlock2D",) * 5,
    "layers_per_block": 1,
    "latent_channels": 5,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "sample_size": 512,
    "scaling_factor": 1.0,
}
_FACTOR = 16
_BATCHES = {128: 16, 256: 4, 512: 1}
"""Pictures of a batch, by their size in pixels: the same number of pixels."""
_CONTRASTS = ((0.65, 0.1, 0.25), (1.0, -1.0, 0.0), (-0.5, -0.5, 1.0))
"""Of red, green and blue, -1 to 1: brightness, red against green, blue against both. Brightness is weighted so that no
two of the drawings' colours are equally bright: where they are, halves do not differ and edges are lost."""
_HALVES = (((1.0, -1.0), (1.0, -1.0)), ((1.0, 1.0), (-1.0, -1.0)))
"""Of a patch's quarters: left against right, top against bottom."""
_LARGE, _FAR = 100.0, 20.0
_NOISE = 0.05
"""Deviation of the latents' distribution, whose means have deviation 1."""
_MUCH_NOISE = 0.25
_CONTRAST = (0.9, 1.3)
"""The decoder is to make clean pictures of latents that are a little off, too: noisy, or exaggerated by guidance."""
_HALVES_DEVIATION = 0.4
"""Their means' own: they are zero but at edges, where they would be huge else."""
_MEASURED = 400
"""Pictures whose latents are measured to make them have mean 0 and deviation 1."""


@dataclass(frozen=True)
class Plan:
    """How long and how to train; a run that is taken up again must have the same plan."""

    steps: int
    sizes: Mapping[int, float] = field(default_factory=lambda: {128: 0.5, 256: 0.3, 512: 0.2})
    """How often pictures of each size are shown."""
    learning_rate: float = 1e-3
    warm_up: int = 100
    save_every: int = 100
    seed: int = 0


def train(model: AutoencoderKL, plan: Plan, folder: Path, tell: Callable[[int, float], None]) -> None:
    """Train the decoder, going on where a run in ``folder`` was broken off; it ends with the averaged weights.

    ``tell`` hears of each step and its loss; ``folder/losses.jsonl`` keeps them.
    """
    model.to(memory_format=torch.channels_last).train()
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    average = EMAModel(trained, decay=0.999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    kept = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    done = _restore(kept, folder / "state.pt")
    folder.mkdir(parents=True, exist_ok=True)
    with Record(folder / "losses.jsonl", after=done) as record:
        for step in range(done, plan.steps):
            began = time.perf_counter()
            loss = _loss(model, _batch(plan, step), torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss.backward()
            gradient = float(torch.nn.utils.clip_grad_norm_(trained, 1.0))
            optimizer.step()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            average.step(trained)
            seconds = time.perf_counter() - began
            record.add(Entry(step + 1, loss.item(), loss.item(), 0.0, 0.0, gradient, rate, seconds))
            tell(step + 1, loss.item())
            if (step + 1) % plan.save_every == 0:
                _save(kept, step + 1, folder / "state.pt")
    average.copy_to(trained)
    model.eval().requires_grad_(True)


def _rate(step: int, plan: Plan) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    done = (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def _batch(plan: Plan, step: int) -> Tensor:
    """[pictures, 3, size, size] float32, -1 to 1; the same for the same step."""
    chance = np.random.default_rng([plan.seed, step])
    size = int(chance.choice(list(plan.sizes), p=list(plan.sizes.values())))
    pictures = [draw(random_scene(chance, "train", landscapes=0.4), size, size) for _ in range(_BATCHES[size])]
    return pixels(np.stack(pictures))


def _loss(model: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mean absolute error of the pixels, of their edges, and of the picture seen from afar, which holds the colours."""
    with torch.no_grad():
        latents = model.quant_conv(torch.cat([features(pictures)] * 2, 1)).chunk(2, 1)[0]
        each = len(latents), 1, 1, 1
        contrast = torch.empty(each).uniform_(*_CONTRAST, generator=generator)
        noise = _NOISE + (_MUCH_NOISE - _NOISE) * torch.rand(each, generator=generator) ** 2
        latents = contrast * latents + noise * torch.randn(latents.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        made = model.decode(latents).sample
    made = made.float()
    edges = sum(l1_loss(made.diff(dim=dim), pictures.diff(dim=dim)) for dim in (-1, -2))
    afar = sum(l1_loss(avg_pool2d(made, far), avg_pool2d(pictures, far)) for far in (4, _FACTOR))
    return l1_loss(made, pictures) + edges + afar


def features(pictures: Tensor) -> Tensor:
    """What the encoder tells of pictures: [pictures, 5, height / 16, width / 16], from pixels of -1 to 1."""
    quarters = torch.einsum("kc,nchw->nkhw", torch.tensor(_CONTRASTS), avg_pool2d(pictures, _FACTOR // 2))
    halves = torch.tensor(_HALVES)[:, None] / 4
    return torch.cat([avg_pool2d(quarters, 2), nn.functional.conv2d(quarters[:, :1], halves, stride=2)], 1)


@torch.no_grad()
def set_encoder(model: AutoencoderKL, seed: int) -> None:
    """Give the encoder the weights with which it computes `features`, of mean 0 and deviation 1 each.

    Its residual blocks add nothing, its strided convolutions average. Each value is carried along with its negative,
    and with large constants of both signs: so the last group normalization finds mean 0 and a deviation that is the
    constants' alone, and only scales. Its SiLU sees values so far above zero that it changes nothing.
    """
    encoder = model.encoder
    for weights in encoder.parameters():
        weights.zero_()
    contrasts = torch.tensor(_CONTRASTS)
    signed = torch.stack([contrasts, -contrasts], 1).flatten(0, 1)  # each followed by its negative
    first = encoder.conv_in
    first.weight[: len(signed), :, 1, 1] = signed
    first.bias[len(signed) :: 2], first.bias[len(signed) + 1 :: 2] = _LARGE, -_LARGE
    carried = first.out_channels
    for block in encoder.down_blocks:
        for layer in block.resnets:
            if layer.conv_shortcut is not None:
                same = range(layer.in_channels)
                layer.conv_shortcut.weight[same, same, 0, 0] = 1.0
        for sampler in block.downsamplers or ():
            # It pads on the right and at the bottom, and so the first two taps of each direction make a patch's half.
            sampler.conv.weight[range(carried), range(carried), :2, :2] = 1 / 4
    halves = torch.tensor(_HALVES) / 4
    last = encoder.down_blocks[-2].downsamplers[0].conv
    last.weight[carried : carried + 2 * len(halves), 0, :2, :2] = torch.stack([halves, -halves], 1).flatten(0, 1)
    told = [*range(0, len(signed), 2), *range(carried, carried + 2 * len(halves), 2)]
    norm = encoder.conv_norm_out
    constants = carried - len(signed)
    norm.weight[told] = _LARGE * math.sqrt(constants / (norm.num_channels // norm.num_groups))
    norm.bias[told] = _FAR
    channels = len(told)
    encoder.conv_out.weight[range(channels), told, 1, 1] = 1.0
    encoder.conv_out.bias[:channels] = -_FAR
    _normalize(model.quant_conv, seed)


def _normalize(layer: nn.Conv2d, seed: int) -> None:
    """Make the layer after the encoder give latents of mean 0 and deviation 1, and a constant spread around them."""
    chance = np.random.default_rng([seed, 1])
    drawings = (draw(random_scene(chance, "train"), 256, 256) for _ in range(_MEASURED))
    values = torch.cat([features(pixels(drawing[None])).flatten(2) for drawing in drawings], 2)[0]
    scale = 1 / values.std(1)
    scale[len(_CONTRASTS) :] *= _HALVES_DEVIATION
    channels = len(values)
    layer.weight.zero_()
    layer.weight[range(channels), range(channels), 0, 0] = scale
    layer.bias[:channels] = -values.mean(1) * scale
    layer.bias[channels:] = 2 * math.log(_NOISE)


def pixels(drawings: np.ndarray) -> Tensor:
    """[drawings, 3, height, width] float32, -1 to 1."""
    return torch.from_numpy(drawings).movedim(-1, 1).float() / 127.5 - 1


def _restore(kept: dict[str, Any], path: Path) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    for name, each in kept.items():
        each.load_state_dict(state[name])
    return int(state["step"])


def _save(kept: dict[str, Any], step: int, path: Path) -> None:
    beside = path.with_suffix(".new")
    torch.save({"step": step, **{name: each.state_dict() for name, each in kept.items()}}, beside)
    beside.replace(path)
