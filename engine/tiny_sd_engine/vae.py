"""Latents → pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_sd_engine import checkpoint, memory
from tiny_sd_engine.device import Device
from tiny_sd_engine.errors import EngineError

_KEPT_PIXELS = 512 * 512  # of a picture whose memory is kept: 1.5 GiB; one of 1024 times 1024 would leave 4


class VaeDecoder:
    """The decoder half of a checkpoint's VAE. On a CPU it says what memory the whole process keeps."""

    def __init__(self, path: Path, device: Device) -> None:
        self._vae = checkpoint.load_vae(path, device)
        self._device = device
        self.channels, self._pixels_per_latent = checkpoint.latent_shape(path)

    def decode(self, latents: Sequence[torch.Tensor]) -> list[NDArray[np.uint8]]:
        """Decode images of any sizes; equal sizes share VAE calls.

        latents: one [channels, h, w] float32 per image. Returns one [height, width, 3] uint8 per image, in their order.
        Raises :class:`EngineError` for a picture that is not finite, which half precision may come to.
        """
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, image in enumerate(latents):
            by_shape[image.shape].append(index)
        pixels: dict[int, NDArray[np.uint8]] = {}
        for (_, height, width), indices in by_shape.items():
            pixels_each = height * width * self._pixels_per_latent**2
            if self._device.torch_device.type == "cpu":
                memory.keep(pixels_each <= _KEPT_PIXELS)
            most = max(1, self._device.pixels_per_decode // pixels_each)
            for start in range(0, len(indices), most):
                call = indices[start : start + most]
                pixels.update(zip(call, self._call(torch.stack([latents[index] for index in call])), strict=True))
        return [pixels[index] for index in range(len(latents))]

    def warm_up(self, width: int, height: int) -> None:
        """Decode one picture of this size, in pixels."""
        self.decode([torch.zeros(self.channels, height // self._pixels_per_latent, width // self._pixels_per_latent)])

    @torch.inference_mode()
    def _call(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        scaled = (latents / self._vae.config.scaling_factor).to(self._device.torch_device, self._device.dtype)
        images = self._vae.decode(scaled, return_dict=False)[0].float()
        if not images.isfinite().all():
            raise EngineError("the decoded picture is not finite")
        bytes_ = (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.asarray(bytes_.permute(0, 2, 3, 1).cpu())
