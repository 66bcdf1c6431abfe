"""The autoencoder, trained from scratch on drawings.

It shrinks pictures by 16. Whole drawings of several sizes are shown, not crops: group normalization sees the whole
picture, and one that has seen crops alone shifts the colours of large pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from torch.nn.functional import avg_pool2d, l1_loss

from drawings import draw, random_scene

ARCHITECTURE: dict[str, Any] = {
    "block_out_channels": (16, 32, 64, 128, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 5,
    "up_block_types": ("UpDecoderBlock2D",) * 5,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 512,
    "scaling_factor": 1.0,
}
_BATCHES = {128: 12, 256: 3, 512: 1}
"""Pictures of a batch, by their size in pixels: the same number of pixels at least."""
_SHARES = (0.5, 0.3, 0.2)
_FINISHING_SHARES = (0.0, 0.4, 0.6)
"""How often each of these sizes is shown; the last part of the training sees large pictures alone."""
_FINISH = 0.2
_KL = 1e-6
_MEASURED = 256
"""Pictures whose latents are measured for centring."""


@dataclass(frozen=True)
class Plan:
    """How long and how to train; a run that is taken up again must have the same plan."""

    steps: int
    learning_rate: float = 1e-3
    warm_up: int = 100
    save_every: int = 100
    seed: int = 0


def train(plan: Plan, folder: Path, tell: Callable[[int, float], None]) -> AutoencoderKL:
    """Train, going on where a run in ``folder`` was broken off. Returns the averaged weights, latents centred.

    ``tell`` hears of each step and its loss.
    """
    torch.manual_seed(plan.seed)
    model = AutoencoderKL(**ARCHITECTURE).to(memory_format=torch.channels_last)
    average = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    step = _restore(parts, folder / "state.pt")
    while step < plan.steps:
        loss = _loss(model, _batch(plan, step), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.step(model.parameters())
        step += 1
        tell(step, loss.item())
        if step % plan.save_every == 0:
            _save(parts, step, folder / "state.pt")
    average.copy_to(model.parameters())
    centre(model, plan.seed)
    return model.eval()


def _rate(step: int, plan: Plan) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    done = (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def _batch(plan: Plan, step: int) -> torch.Tensor:
    """[pictures, 3, size, size] float32, -1 to 1; the same for the same step."""
    chance = np.random.default_rng([plan.seed, step])
    finishing = step >= (1 - _FINISH) * plan.steps
    size = int(chance.choice(list(_BATCHES), p=_FINISHING_SHARES if finishing else _SHARES))
    pictures = [draw(random_scene(chance, "train", landscapes=0.4), size, size) for _ in range(_BATCHES[size])]
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 127.5 - 1


def _loss(model: AutoencoderKL, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mean absolute error of the pixels, of their edges, and of the picture seen from afar, which holds the colours."""
    pictures = pictures.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(pictures).latent_dist
        made = model.decode(posterior.sample(generator)).sample
    made = made.float()
    edges = sum(l1_loss(made.diff(dim=dim), pictures.diff(dim=dim)) for dim in (-1, -2))
    afar = sum(l1_loss(avg_pool2d(made, far), avg_pool2d(pictures, far)) for far in (4, 16))
    return l1_loss(made, pictures) + edges + afar + _KL * posterior.kl().mean()


@torch.inference_mode()
def centre(model: AutoencoderKL, seed: int) -> None:
    """Change the layers around the latents so that these have mean 0 and deviation 1, each channel by itself."""
    chance = np.random.default_rng([seed, 1])
    latents = []
    for _ in range(_MEASURED):
        picture = torch.from_numpy(draw(random_scene(chance, "train", landscapes=0.25), 512, 512))
        with torch.autocast("cpu", torch.bfloat16):
            mean = model.encode(picture.movedim(-1, 0)[None].float() / 127.5 - 1).latent_dist.mean
        latents.append(mean[0].float().flatten(1))
    values = torch.cat(latents, dim=1)
    mean, deviation = values.mean(1), values.std(1)
    channels = len(mean)
    into, out = model.quant_conv, model.post_quant_conv
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()


def _restore(parts: dict[str, Any], path: Path) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def _save(parts: dict[str, Any], step: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, beside)
    beside.replace(path)
