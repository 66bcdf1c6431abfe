"""The whole pipeline in one process: the same parts, in the same order, as the server's stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiny_sd_engine import checkpoint
from tiny_sd_engine.denoiser import Denoiser
from tiny_sd_engine.device import Device, limit_threads, select_device
from tiny_sd_engine.flight import Job, Task
from tiny_sd_engine.images import encode, image_parameters
from tiny_sd_engine.prompts import tokenize
from tiny_sd_engine.text_encoder import TextEncoder
from tiny_sd_engine.vae import VaeDecoder


class Parameters(Protocol):
    """The documented parameters, checked; ``tiny_sd_client.parameters.Parameters`` is one."""

    prompt: str
    negative_prompt: str
    scheduler: Any
    num_inference_steps: int
    guidance_scale: float
    samples: int
    seed: int
    img_width: int
    img_height: int
    image_format: Any

    def resolved(self) -> Parameters:
        """The same with a seed drawn where none was given."""

    def picture(self) -> dict[str, Any]:
        """What determines the pictures, as JSON values."""


@dataclass(frozen=True)
class Generation:
    """What :meth:`Pipeline.generate` gives: image files in the asked format, and what they were made from."""

    images: list[bytes]
    seeds: list[int]
    parameters: dict[str, Any]
    pixels: list[NDArray[np.uint8]]
    """[height, width, 3] uint8 each."""


class Pipeline:
    """A checkpoint, loaded whole. One generation at a time: it is not meant for several threads."""

    def __init__(self, path: Path, device: Device, max_rows: int | None = None) -> None:
        self.tokenizer = checkpoint.load_tokenizer(path)
        self.text_encoder = TextEncoder(path, device)
        self.denoiser = Denoiser(path, device, max_rows)
        self.vae = VaeDecoder(path, device)

    @classmethod
    def from_checkpoint(cls, path: str | Path, precision: str = "auto", device: str = "auto") -> Pipeline:
        """Load a diffusers folder. ``precision``: auto, fp32, bf16 or fp16; ``device``: auto, GPU or CPU.

        Raises :class:`tiny_sd_engine.errors.CheckpointError` for a folder that cannot be used.
        """
        checkpoint.inspect(Path(path))
        limit_threads()
        return cls(Path(path), select_device(device, precision=precision))

    def generate(self, parameters: Parameters) -> Generation:
        """Make the pictures. Raises :class:`tiny_sd_engine.errors.InvalidInput` for a prompt of too many tokens."""
        return self.generate_together([parameters])[0]

    def generate_together(self, many: Sequence[Parameters]) -> list[Generation]:
        """Make the pictures of several requests in flight together, as the server does under load."""
        many = [parameters.resolved() for parameters in many]
        keys = [object() for _ in many]
        try:
            each = zip(keys, many, strict=True)
            jobs = [self.denoiser.job(key, partial(self._task, parameters)) for key, parameters in each]
            self.denoiser.run_to_end(jobs)
        finally:  # also when one is refused, or the caller interrupts
            for key in keys:
                self.denoiser.remove(key)
        return [self._finish(parameters, job) for parameters, job in zip(many, jobs, strict=True)]

    def _task(self, parameters: Parameters) -> Task:
        tokens = tokenize(self.tokenizer, parameters.prompt, parameters.negative_prompt)
        (prompt_embeds, negative_embeds), _ = self.text_encoder.encode([tokens.prompt, tokens.negative_prompt])
        return Task(
            prompt_embeds,
            negative_embeds,
            scheduler=parameters.scheduler.value,
            num_inference_steps=parameters.num_inference_steps,
            guidance_scale=parameters.guidance_scale,
            seeds=[parameters.seed + i for i in range(parameters.samples)],
            width=parameters.img_width,
            height=parameters.img_height,
        )

    def _finish(self, parameters: Parameters, job: Job) -> Generation:
        if job.error:
            raise job.error
        pixels = self.vae.decode(job.latents().unbind())
        resolved = parameters.picture()
        image_format = parameters.image_format.value
        return Generation(
            images=[encode(p, image_format, image_parameters(resolved, i)) for i, p in enumerate(pixels)],
            seeds=list(job.task.seeds),
            parameters=resolved,
            pixels=pixels,
        )
