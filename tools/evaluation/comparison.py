"""Two checkpoints side by side: how large they are, how much they compute, how long they take."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from benchmark.figures import alternating
from evaluation.orders import Order
from tiny_sd_engine import checkpoint
from tiny_sd_engine.pipeline import Pipeline

_GUIDED_ROWS = 2  # of the U-Net, for one guided picture


@dataclass(frozen=True)
class Size:
    """What a checkpoint is made of, from its configuration; no weights are read."""

    unet_parameters: int
    parameters: int
    """Of the U-Net, the text encoder and the VAE, its encoder included."""
    unet_flops: int
    """Floating-point operations of one U-Net call for one guided picture, two to a multiplication with addition."""


def measure_size(path: Path, pixels: int) -> Size:
    """The size of a diffusers folder, and its work for a square picture so many pixels wide.

    Operations are counted by torch.utils.flop_counter: convolutions, matrix products and attention.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_config(path, "unet")).eval()
        vae = AutoencoderKL.from_config(_config(path, "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(_config(path, "text_encoder")))
    counts = [sum(tensor.numel() for tensor in network.parameters()) for network in (unet, vae, text_encoder)]
    return Size(counts[0], sum(counts), _unet_flops(unet, path, pixels))


def measure_speed(pipelines: Sequence[Pipeline], order: Order, rounds: int) -> list[list[float]]:
    """Seconds for the same picture by each pipeline, one figure a round, after one that is not counted.

    They take turns, A B, B A, …, so that drift of the machine favours nobody.
    """
    parameters = order.parameters()
    for pipeline in pipelines:
        pipeline.generate(parameters)
    seconds: list[list[float]] = [[] for _ in pipelines]
    for _, index in alternating(range(len(pipelines)), rounds):
        start = time.perf_counter()
        pipelines[index].generate(parameters)  # ends with the pixels on the CPU, so the device has finished
        seconds[index].append(time.perf_counter() - start)
    return seconds


def _unet_flops(unet: Any, path: Path, pixels: int) -> int:
    channels, factor = checkpoint.latent_shape(path)
    side = -(-pixels // factor)
    latents = torch.empty(_GUIDED_ROWS, channels, side, side, device="meta")
    tokens = torch.empty(
        _GUIDED_ROWS, checkpoint.tokens_per_window(path), unet.config.cross_attention_dim, device="meta"
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(latents, torch.zeros((), device="meta"), tokens)
    return counter.get_total_flops()


def _config(path: Path, component: str) -> dict[str, Any]:
    return json.loads((path / component / "config.json").read_text(encoding="utf-8"))
