"""Small previews straight from latents, without the VAE: one linear map from a latent's channels to its colour.

The map is the one that comes nearest to the checkpoint's own decoder on latents made up for the purpose.
"""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch.nn.functional import interpolate

from tiny_sd_engine.vae import VaeDecoder

_SAMPLES = 8
_EDGE = 16
"""Latents along each edge of a sample: enough to see the whole range of colours, little enough to decode in no time."""


class Previewer:
    """Latents to small JPEG files, a pixel for each latent."""

    def __init__(self, vae: VaeDecoder) -> None:
        self._factors = _fit(vae)

    def preview(self, latents: torch.Tensor) -> bytes:
        """A JPEG file of h x w pixels. latents: [channels, h, w] float32 on the CPU."""
        colours = latents.movedim(0, -1) @ self._factors[:-1] + self._factors[-1]
        file = io.BytesIO()
        Image.fromarray(colours.clamp(0, 255).round().to(torch.uint8).numpy()).save(
            file, "jpeg", quality=85, subsampling="4:4:4"
        )
        return file.getvalue()


def _fit(vae: VaeDecoder) -> torch.Tensor:
    """[channels + 1, 3] float32: what each channel adds to red, green and blue (0 to 255); last, a constant."""
    generator = torch.Generator().manual_seed(0)
    latents = [_latents(vae.channels, generator) for _ in range(_SAMPLES)]
    pixels = torch.stack([torch.from_numpy(image) for image in vae.decode(latents)]).float().movedim(-1, 1)
    colours = interpolate(pixels, (_EDGE, _EDGE), mode="area").movedim(1, -1).reshape(-1, 3)
    inputs = torch.stack(latents).movedim(1, -1).reshape(-1, vae.channels)
    factors: torch.Tensor = torch.linalg.lstsq(torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1), colours).solution
    return factors


def _latents(channels: int, generator: torch.Generator) -> torch.Tensor:
    """[channels, edge, edge] of variance 1 as a picture's latents: patches of all sizes, smooth to fine."""
    edges = [2**power for power in range(_EDGE.bit_length())]
    noise = [torch.randn(1, channels, edge, edge, generator=generator) for edge in edges]
    layers = [interpolate(layer, (_EDGE, _EDGE), mode="nearest") for layer in noise]
    return torch.cat(layers).sum(0) / math.sqrt(len(edges))
