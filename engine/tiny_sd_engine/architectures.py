"""The architectures of the Tiny-SD family, and random weights for them: everything of a checkpoint but the training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tiny_sd_engine.vocabulary import write_tokenizer

SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "steps_offset": 1,
    "timestep_spacing": "linspace",
}
"""segmind/tiny-sd's scheduler configuration."""


_SD_VAE: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP_VIT_L_TEXT: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}


@dataclass(frozen=True)
class Architecture:
    """Configurations of the three networks, as diffusers and transformers take them."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=lambda: _SD_VAE)
    text_encoder: Mapping[str, Any] = field(default_factory=lambda: _CLIP_VIT_L_TEXT)


_SD_UNET = {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}
_FOUR_LEVELS = {
    **_SD_UNET,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "sd15": Architecture(unet={**_FOUR_LEVELS, "layers_per_block": 2}),
    "small-sd": Architecture(unet={**_FOUR_LEVELS, "layers_per_block": 1}),
    "tiny-sd": Architecture(
        unet={
            **_SD_UNET,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3,
            "up_block_types": ("CrossAttnUpBlock2D",) * 3,
            "layers_per_block": 1,
            "mid_block_type": None,
        }
    ),
    # Small enough for tests on two cores, and unlike the others in every number that code might take for granted.
    "test": Architecture(
        unet={
            "sample_size": 32,
            "attention_head_dim": 2,
            "cross_attention_dim": 48,
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "mid_block_type": None,
            "norm_num_groups": 8,
        },
        vae={
            "block_out_channels": (8, 8, 16, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 5,
            "up_block_types": ("UpDecoderBlock2D",) * 5,
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 512,
            "scaling_factor": 0.5,
        },
        text_encoder={
            "vocab_size": 2048,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "projection_dim": 48,
        },
    ),
}
"""By name: ``tiny-sd`` and ``small-sd`` are Segmind's distilled models, ``sd15`` their teacher's shape."""


def write_random(architecture: str, out: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, int]:
    """Write a checkpoint with random weights to the folder ``out``, the same for the same seed.

    Returns the number of parameters by component. Raises KeyError for an unknown architecture.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: PLC0415
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: PLC0415

    shape = ARCHITECTURES[architecture]
    write_tokenizer(out / "tokenizer", max_length=shape.text_encoder["max_position_embeddings"])
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer", local_files_only=True)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {
            "unet": UNet2DConditionModel(**shape.unet),
            "vae": AutoencoderKL(**shape.vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**shape.text_encoder, **special)),
        }
    _make_lively(networks["unet"])
    for component, network in networks.items():
        # torch's own method: diffusers' warns of casts that would matter to other models.
        torch.nn.Module.to(network, dtype).save_pretrained(out / component, safe_serialization=True)
    (out / "scheduler").mkdir(parents=True, exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2))
    (out / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2))
    return {component: sum(p.numel() for p in network.parameters()) for component, network in networks.items()}


def _make_lively(unet: torch.nn.Module) -> None:
    """Scale the last layer so that predictions have about the size of noise, as a trained U-Net's do."""
    last = unet.conv_out
    assert isinstance(last, torch.nn.Conv2d)
    fan_in = last.in_channels * math.prod(last.kernel_size)
    with torch.no_grad():
        last.weight.normal_(0.0, 1.5 / math.sqrt(fan_in), generator=torch.Generator().manual_seed(0))


MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
