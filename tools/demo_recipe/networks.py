"""The shapes of the built-in checkpoint's teacher, and the untrained checkpoint that its training begins with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tiny_sd_engine.architectures import MODEL_INDEX, SCHEDULER
from tiny_sd_engine.vocabulary import write_tokenizer

UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 5,
    "out_channels": 5,
    # The two innermost are equal: a tiny student joins what is left around the innermost.
    "block_out_channels": (64, 96, 128, 128),
    # Attention on 8 x 8 latents alone, the innermost that a tiny student keeps; on 16 x 16 it took a third of the time.
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 2,  # by diffusers' naming the number of heads
    "cross_attention_dim": 128,
    "norm_num_groups": 16,
    # Residual blocks are told of the whole prompt, too, along with the timestep. Attention alone had learned little of
    # left, right and counts in 5,400 steps; with this they were right after 1,500 more.
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 128,
}
NOISE: dict[str, Any] = {
    **SCHEDULER,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
}
"""The last timestep keeps 0.006 of the picture. Stable Diffusion's keeps 0.068, and in a picture of few colours their
mean is still readable then: the U-Net would learn to read the colours from its input, which holds none at inference,
instead of from the prompt (Lin et al., 2023, https://arxiv.org/abs/2305.08891)."""


def write_untrained(vae: Path, out: Path, seed: int) -> None:
    """Write a checkpoint to the folder ``out``: the autoencoder of the folder ``vae``, other networks untrained."""
    write_tokenizer(out / "tokenizer", max_length=TEXT_ENCODER["max_position_embeddings"])
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer", local_files_only=True)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        UNet2DConditionModel(**UNET).save_pretrained(out / "unet")
        config = CLIPTextConfig(**TEXT_ENCODER, vocab_size=len(tokenizer), **special)
        CLIPTextModel(config).save_pretrained(out / "text_encoder")
    shutil.copytree(vae, out / "vae")
    (out / "scheduler").mkdir()
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(NOISE, indent=2))
    (out / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2))
