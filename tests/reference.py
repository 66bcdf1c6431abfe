"""diffusers' own pipeline: what every picture is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from tiny_sd_client.parameters import Parameters

# The mapping that the documentation promises, written down a second time on purpose.
REFERENCE_SCHEDULERS = {
    "DDIM": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "DPM Multi": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM Single": (diffusers.DPMSolverSinglestepScheduler, {"solver_order": 2}),
    "Euler a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "Euler": (diffusers.EulerDiscreteScheduler, {}),
    "Heun": (diffusers.HeunDiscreteScheduler, {}),
    "DPM2 a Karras": (diffusers.KDPM2AncestralDiscreteScheduler, {"use_karras_sigmas": True}),
    "DPM2 Karras": (diffusers.KDPM2DiscreteScheduler, {"use_karras_sigmas": True}),
    "LMS": (diffusers.LMSDiscreteScheduler, {}),
    "PNDM": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "DDPM": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_sde_ancestral": (diffusers.DPMSolverSinglestepScheduler, {"solver_order": 2}),
}


class Reference:
    """diffusers' StableDiffusionPipeline, called as its documentation says."""

    def __init__(self, checkpoint: Path) -> None:
        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            checkpoint, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self._scheduler_config = self.pipeline.scheduler.config

    def pixels(self, parameters: Parameters, **more: Any) -> list[np.ndarray]:
        """[height, width, 3] uint8 for each sample."""
        kind, overrides = REFERENCE_SCHEDULERS[parameters.scheduler.value]
        self.pipeline.scheduler = kind.from_config(self._scheduler_config, **overrides)
        texts = more or {"prompt": parameters.prompt, "negative_prompt": parameters.negative_prompt}
        images = self.pipeline(
            **texts,
            num_inference_steps=parameters.num_inference_steps,
            guidance_scale=parameters.guidance_scale,
            width=parameters.img_width,
            height=parameters.img_height,
            num_images_per_prompt=parameters.samples,
            generator=[torch.Generator().manual_seed(parameters.seed + i) for i in range(parameters.samples)],
        ).images
        return [np.asarray(image) for image in images]


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    """In steps of 1/255, over all pixels and channels."""
    assert ours.shape == theirs.shape
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())
